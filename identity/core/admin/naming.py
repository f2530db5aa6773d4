"""The names behind the ids in a record, for people who read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import select

from identity.canonical import canonical_id
from identity.core.admin.by import By
from identity.core.clients.applications import Application
from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership
from identity.core.record import audit
from identity.core.record.audit import Event
from identity.runtime import Runtime


class Named(NamedTuple):
    """Somebody or something by the name that people know; `kind` is `user` or `application`, or empty for whatever else it is."""

    kind: str
    id: str
    name: str


class Happening(NamedTuple):
    """An event with the names of who did it and to whom."""

    event: Event
    actor: Named
    target: Named


def names(rt: Runtime, ids: Iterable[str], *, tenant: str | None = None) -> dict[str, Named]:
    """Whom and what these ids name now; an id that names nothing any more stands for itself.

    `tenant`: for who may know of its members and its applications only.
    """
    wanted = set(ids)
    found = {one: Named("", one, one) for one in wanted}
    uuids = [one for one in wanted if canonical_id(one)]
    if not uuids:
        return found
    users = select(User.id, User.alias).where(User.id.in_(uuids))
    machines = select(Application.id, Application.name).where(Application.id.in_(uuids))
    if tenant is not None:
        users = users.join(Membership, Membership.user_id == User.id).where(Membership.tenant_id == tenant)
        machines = machines.where(Application.tenant_id == tenant)
    with rt.database.reading() as session:
        for kind, query in (("user", users), ("application", machines)):
            found |= {one: Named(kind, one, name) for one, name in session.execute(query)}
    return found


def happenings(rt: Runtime, events: Iterable[Event], *, tenant: str | None = None) -> list[Happening]:
    """Events with the names in them; `tenant` as for `names`."""
    read = list(events)
    known = names(rt, {one for event in read for one in (event.actor, event.target)}, tenant=tenant)
    return [Happening(event, known[event.actor], known[event.target]) for event in read]


def newest(rt: Runtime, by: By, subject: str, *, limit: int = 20) -> list[Happening]:
    """What happened to somebody or something, and what they did: newest first, of the tenant alone for who administers one."""
    return happenings(rt, audit.about(rt, subject, limit=limit, tenant=by.tenant), tenant=by.tenant)
