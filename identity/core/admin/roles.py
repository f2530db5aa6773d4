"""Roles: which there are, who holds them, and typing errors for one that decides something here.

Any well-formed name may be given as a role. A role may be declared, with a description, before anybody holds it; one that was ever given
needs no declaration. Two roles mean something to this service itself, `users_admin` and `owner`: what is nearly one of them, and is no role
that there is, is refused unless the caller insists, since such a slip makes an administrator who is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ForeignKey, Index, String, delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, mapped_column

from identity import paging
from identity.canonical import is_name
from identity.columns import Instant, holds
from identity.core.admin.by import By
from identity.core.clients.applications import Application
from identity.core.keeping import Keeping
from identity.core.people import tenancy
from identity.core.people.accounts import ADMIN_ROLE, User, clean_name
from identity.core.people.tenancy import OWNER_ROLE, Membership
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Problem, Refused
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Unit

HOLDERS_TOLD: Final = 20
_MEANINGS: Final = {
    ADMIN_ROLE: "Administers the whole service",
    OWNER_ROLE: "In a tenant: administers that tenant and nothing else",
}
#: How many slips of a key may lie between a name and the role that was meant.
_SLIPS: Final = {ADMIN_ROLE: 2, OWNER_ROLE: 1}


class Role(Base):
    """A role that was declared: everywhere, or in one tenant."""

    __tablename__ = "role"
    __table_args__ = (
        Index(
            "uq_role_everywhere",
            "name",
            unique=True,
            sqlite_where=text("tenant_id IS NULL"),
            postgresql_where=text("tenant_id IS NULL"),
        ),
        Index(
            "uq_role_in_tenant",
            "tenant_id",
            "name",
            unique=True,
            sqlite_where=text("tenant_id IS NOT NULL"),
            postgresql_where=text("tenant_id IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"))
    description: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(Instant)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a role: a user or an application, with its alias or name."""

    kind: str
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class RoleInfo:
    """A role, in a tenant or (None) outside of all; `holders` are the first few of `count`."""

    name: str
    tenant: str | None
    description: str
    declared: bool
    count: int
    holders: tuple[Holder, ...]


def declare(rt: Runtime, by: By, *, name: str, description: str, tenant: str | None = None) -> RoleInfo:
    """Declare a role, everywhere or in one tenant. Raises Refused(VALIDATION), Refused(NOT_FOUND), Refused(CONFLICT)."""
    if not is_name(name):
        raise Refused(VALIDATION.saying("A role needs 1 to 64 of a-z, 0-9 and ._:-"), field="name")
    if name in _MEANINGS:
        raise Refused(CONFLICT.saying("That role always exists"), field="name")
    with by.unit(rt) as unit:
        if tenant is not None:
            tenancy.get(unit.session, tenant)
        row = Role(
            id=rt.new_id(),
            name=name,
            tenant_id=tenant,
            description=clean_name(description, field="description"),
            created_at=unit.now,
        )
        try:
            unit.add(row)
        except IntegrityError as exc:
            raise Refused(CONFLICT.saying("That role is declared already"), field="name", cause=exc) from exc
        audit.record(
            rt, unit, Action.ROLE_DECLARED, actor=by.actor, target=name, **({"tenant": tenant} if tenant else {})
        )
        return _info(unit.session, (name, tenant), row.description, _counts(unit.session))


def withdraw(rt: Runtime, by: By, *, name: str, tenant: str | None = None) -> None:
    """Take a declaration back; whoever holds the role keeps it. Raises Refused(NOT_FOUND)."""
    declared = Role.tenant_id.is_(None) if tenant is None else Role.tenant_id == tenant
    with by.unit(rt) as unit:
        if not unit.changed(delete(Role).where(Role.name == name, declared)):
            raise Refused(NOT_FOUND, detail="no such declaration")
        audit.record(
            rt, unit, Action.ROLE_WITHDRAWN, actor=by.actor, target=name, **({"tenant": tenant} if tenant else {})
        )


def listing(rt: Runtime, part: Part) -> Listed[RoleInfo]:
    """Roles, declared or held, by name: each with how many hold it, and the first of them."""
    with rt.database.reading() as session:
        counts = _counts(session)
        declared = {(row.name, row.tenant_id): row.description for row in session.scalars(select(Role))}
        found = {*counts, *declared, *((name, None) for name in _MEANINGS)}
        return paging.cut(found, part, lambda one: (one[0], one[1] or "")).mapped(
            lambda shown: [_info(session, one, declared.get(one), counts) for one in shown]
        )


def of_tenant(rt: Runtime, tenant: str) -> list[RoleInfo]:
    """The roles of one tenant, declared or held, by name: each with how many hold it, and without who. Reads nobody else's."""
    with rt.database.reading() as session:
        counts = _counts(session, tenant)
        asked = select(Role.name, Role.description).where(Role.tenant_id == tenant)
        declared = {row.name: row.description for row in session.execute(asked)}
        found = sorted({*declared, *(name for name, _ in counts)})
        return [_said((name, tenant), declared.get(name), counts, ()) for name in found]


def check(unit: Unit, names: Iterable[str], *, insists: bool, field: str = "roles") -> None:
    """Refuse (VALIDATION) a name that is no role yet and nearly `users_admin` or `owner`, unless the caller insists."""
    for name in () if insists else names:
        meant = next((role for role in _MEANINGS if _is_nearly(name, role)), None)
        if meant is not None and not _exists(unit.session, name):
            raise Refused(_DID_YOU_MEAN[meant], field=field, detail=f"nobody holds {name[:64]}")


def _did_you_mean(role: str) -> Problem:
    return VALIDATION.saying(f"There is no such role. Did you mean {role}? Send newRole: true to make a new one")


_DID_YOU_MEAN: Final = {role: _did_you_mean(role) for role in _MEANINGS}


def _is_nearly(name: str, role: str) -> bool:
    return name != role and _distance(name, role) <= _SLIPS[role]


def _distance(one: str, other: str) -> int:
    """How many letters must be added, dropped, replaced or swapped with their neighbour (optimal string alignment)."""
    if abs(len(one) - len(other)) > max(_SLIPS.values()):
        return len(one) + len(other)
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if above and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _exists(session: Session, name: str) -> bool:
    asked = (
        select(Role.id).where(Role.name == name),
        *(select(table.id).where(holds(table.roles, name)) for table in (User, Application)),
        select(Membership.user_id).where(holds(Membership.roles, name)),
    )
    return any(session.execute(query.limit(1)).first() is not None for query in asked)


def _counts(session: Session, only: str | None = None) -> dict[tuple[str, str | None], int]:
    """How many hold each role, by name and tenant, or in `only` one. Equal sets of roles are counted by the database: there are few."""
    counts: dict[tuple[str, str | None], int] = {}
    for tenant, roles, number in _sets(session, only):
        for name in roles:
            counts[name, tenant] = counts.get((name, tenant), 0) + number
    return counts


def _sets(session: Session, only: str | None) -> Iterator[tuple[str | None, Sequence[str], int]]:
    if only is None:
        for roles, number in session.execute(select(User.roles, func.count()).group_by(User.roles)):
            yield None, roles, number
    for table in (Membership, Application):
        grouped = select(table.tenant_id, table.roles, func.count()).group_by(table.tenant_id, table.roles)
        if only is not None:
            grouped = grouped.where(table.tenant_id == only)
        for tenant, roles, number in session.execute(grouped):
            yield tenant, roles, number


def _info(
    session: Session,
    role: tuple[str, str | None],
    description: str | None,
    counts: dict[tuple[str, str | None], int],
) -> RoleInfo:
    return _said(role, description, counts, tuple(_holders(session, *role)) if counts.get(role) else ())


def _said(
    role: tuple[str, str | None],
    description: str | None,
    counts: dict[tuple[str, str | None], int],
    holders: tuple[Holder, ...],
) -> RoleInfo:
    name, tenant = role
    declared = description is not None or name in _MEANINGS
    return RoleInfo(name, tenant, description or _MEANINGS.get(name, ""), declared, counts.get(role, 0), holders)


def _holders(session: Session, name: str, tenant: str | None) -> Iterator[Holder]:
    """The first few holders of a role, users before applications."""
    people = select(User.id, User.alias)
    if tenant is None:
        people = people.where(holds(User.roles, name))
    else:
        belongs = Membership.tenant_id == tenant, holds(Membership.roles, name)
        people = people.join(Membership, Membership.user_id == User.id).where(*belongs)
    left = HOLDERS_TOLD
    for user_id, alias in session.execute(people.order_by(User.id).limit(left)):
        left -= 1
        yield Holder("user", user_id, alias)
    where: InstrumentedAttribute[str | None] = Application.tenant_id
    machines = select(Application.id, Application.name).where(
        holds(Application.roles, name), where.is_(None) if tenant is None else where == tenant
    )
    for client_id, called in session.execute(machines.order_by(Application.app_id).limit(left)):
        yield Holder("application", client_id, called)


KEEPING: Final = Keeping((Role,))
