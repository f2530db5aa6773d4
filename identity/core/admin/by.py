"""Who administers, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from identity.ambient import Origin
from identity.errors import CONFLICT

STALE: Final = CONFLICT.saying("It has changed in between; read it again")


@dataclass(frozen=True, slots=True)
class By:
    """Who administers, and from where."""

    actor: str
    origin: Origin

    @classmethod
    def command_line(cls) -> By:
        return cls("command line", Origin.command_line())
