"""What is told of the use of a credential that may have leaked: values only; `incidents` finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Earned(NamedTuple):
    """The tokens that it was given in an hour at an address; an empty address: at many."""

    hour: datetime
    address: str
    tokens: int


class Used(NamedTuple):
    """How often a route answered it so."""

    route: str
    status: int
    uses: int
    last_hour: datetime


class Seen(NamedTuple):
    """An address that it was used from."""

    address: str
    uses: int
    first_hour: datetime
    last_hour: datetime


class Opened(NamedTuple):
    """A session that it opened."""

    session_id: str
    user_id: str | None
    opened_at: datetime
    address: str
    user_agent: str


class Deed(NamedTuple):
    """An event of the audit that it is behind."""

    event_id: str
    at: datetime
    action: str
    actor: str
    target: str
    address: str


@dataclass(frozen=True, slots=True)
class Touched:
    """What a credential has touched since a moment. Lists tell the newest; `counts` how many there are of each."""

    since: datetime
    until: datetime
    earned: Sequence[Earned]
    used: Sequence[Used]
    seen: Sequence[Seen]
    opened: Sequence[Opened]
    deeds: Sequence[Deed]
    counts: dict[str, int]
