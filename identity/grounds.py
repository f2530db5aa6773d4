"""What an answer was made from, noted while it is made: which rows were read, what was counted, and until when it holds by itself.

Who has all of that can tell later, for the price of the reads, whether making it again would make the same (`wire/repeats.py`). Parts
that read or count something note it here, if somebody asks; what cannot be noted says so with `give_up`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from datetime import datetime
from typing import Any, Final, Self

_noting: Final[ContextVar[Grounds | None]] = ContextVar("grounds", default=None)


class Grounds:
    """The grounds of one answer; inside its `with` block they are noted, by whatever runs in this thread or task."""

    __slots__ = ("_token", "deeds", "hits", "is_complete", "last_step", "looks", "reads", "until")

    def __init__(self) -> None:
        #: Statements with their parameters, and the rows that were found.
        self.reads: list[tuple[str, Any, list[Any]]] = []
        #: What is known without a read: how to look at it again, and what was found.
        self.looks: list[tuple[Callable[[], object], object]] = []
        #: What was counted against limits: policy, key, budget.
        self.hits: list[tuple[Any, str, str | None]] = []
        #: What else was counted or noted, to be done again with the time of then.
        self.deeds: list[Callable[[datetime], object]] = []
        self.until: datetime | None = None
        #: What makes the rest of each answer anew, from a call; where there is one, nothing of what it does is a ground of this answer.
        self.last_step: Callable[[Any], Any] | None = None
        self.is_complete = True
        self._token: Token[Grounds | None] | None = None

    def __enter__(self) -> Self:
        self._token = _noting.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _noting.reset(self._token)


def note_read(statement: str, parameters: Any, found: Sequence[Any]) -> None:
    """A read outside of any transaction, as the driver sees it."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None:
        grounds.reads.append((statement, parameters, list(found)))


def note_look(look: Callable[[], object], found: object) -> None:
    """Something that this process holds: the answer stands while `look` finds the same."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None:
        grounds.looks.append((look, found))


def note_hit(policy: Any, key: str, budget: str | None) -> None:
    """A request that was counted."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None:
        grounds.hits.append((policy, key, budget))


def note_deed(deed: Callable[[datetime], object]) -> None:
    """Something that every such answer does: `deed` does it again, at the time that it is given."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None:
        grounds.deeds.append(deed)


def note_end(until: datetime) -> None:
    """When something ends that was taken for good."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None and (grounds.until is None or until < grounds.until):
        grounds.until = until


def note_last_step(last_step: Callable[[Any], Any]) -> None:
    """What is done from here on is done anew for each answer: `last_step` does it for the call that it is given. It holds no credential."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None:
        grounds.last_step = last_step


def give_up() -> None:
    """There is more behind this answer than can be noted: the time of day, or an answer that was made for the first time."""
    grounds = _noting.get()
    if grounds is not None and grounds.last_step is None:
        grounds.is_complete = False
