"""Whose a thing must be for a deed: always said, never assumed.

A function that changes somebody's address or key pair takes `of`, without a default: either the owner, whose things alone it then finds, or
`ANYONE`, which only administrators' use cases say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Anyone(Enum):
    """The type of `ANYONE`."""

    ANYONE = "anyone"


ANYONE: Final = Anyone.ANYONE


@dataclass(frozen=True, slots=True)
class Owner:
    """The user whose things alone may be found."""

    user_id: str


def may_touch(of: Owner | Anyone, user_id: str) -> bool:
    """Whether a thing of `user_id` is within `of`."""
    return isinstance(of, Anyone) or of.user_id == user_id
