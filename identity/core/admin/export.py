"""Everything that is held about one person, for the answer that the law owes them. No secret and no hash is part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from identity.core.admin import users
from identity.core.admin.users import UserDetail
from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyPairInfo
from identity.core.mail import outbox
from identity.core.mail.outbox import MailInfo
from identity.core.record import audit, explain
from identity.core.record.audit import Event
from identity.core.record.explain import Explanation
from identity.core.tokens import sessions
from identity.core.tokens.session_rows import SessionInfo
from identity.instruments import tallies
from identity.paging import Listed, Part
from identity.runtime import Runtime

_STEP: Final = 1_000


class Use(NamedTuple):
    """How often a key pair of theirs was used in an hour, for which route, with which answer, from where."""

    credential: str
    hour: datetime
    route: str
    status: int
    address: str
    uses: int


@dataclass(frozen=True, slots=True)
class Person:
    """What is held about somebody."""

    user: UserDetail
    sessions: Sequence[SessionInfo]
    keypairs: Sequence[KeyPairInfo]
    mails: Sequence[MailInfo]
    events: Sequence[Event]
    refusals: Sequence[Explanation]
    uses: Sequence[Use]


def gather(rt: Runtime, user_id: str) -> Person:
    """All of it. Raises Refused(NOT_FOUND)."""
    user = users.describe_user(rt, user_id)
    found = user.info.id
    addresses = [one.address for one in user.emails]
    done = _whole(lambda part: audit.listing(rt, part, actor=found))
    suffered = _whole(lambda part: audit.listing(rt, part, target=found))
    events = {event.id: event for event in (*done, *suffered)}
    pairs = keypairs.listing_of(rt, found)
    with rt.database.reading() as session:
        counted = tallies.uses_of(session, [f"key:{one.id}" for one in pairs])
        uses = [Use(one.credential, one.hour, one.route, one.status, one.address, one.uses) for one in counted]
    return Person(
        user,
        _whole(lambda part: sessions.listing(rt, part, user=found)),
        pairs,
        _whole(lambda part: outbox.listing(rt, part, recipients=addresses)),
        sorted(events.values(), key=lambda event: (event.at, event.id)),
        _whole(lambda part: explain.listing(rt, part, caller=found)),
        uses,
    )


def _whole(read: Callable[[Part], Listed[Any]]) -> list[Any]:
    """Every item of a list."""
    found: list[Any] = []
    after = ""
    while True:
        part = read(Part(limit=_STEP, after=after))
        found += part.items
        if part.next is None:
            return found
        after = part.next
