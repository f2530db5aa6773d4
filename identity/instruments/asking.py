"""Which clients ask for tokens far more often than these live, by what this process hears of them.

A client that asks anew for each call is slow and costs everybody. It works, so nobody notices; what is counted here becomes a warning.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

LONG_ENOUGH_SECONDS: Final = 3_600
_OFTEN: Final = 10
_CAPACITY: Final = 4_096


class Often(NamedTuple):
    """A client that asked again within a tenth of its tokens' life, time after time, for an hour."""

    client_id: str
    asked: int
    token_seconds: int


@dataclass(slots=True)
class _Streak:
    began: datetime
    last: datetime
    asked: int


class Asking:
    """How often each client asked of late."""

    def __init__(self) -> None:
        self._streaks: dict[str, _Streak] = {}
        self._found: list[Often] = []
        self._turn = threading.Lock()

    def note(self, client_id: str, token_seconds: int, now: datetime) -> None:
        """Count that a client asked for a token that lives so long. Once in a tenth of its life is not too often."""
        with self._turn:
            streak = self._streaks.get(client_id)
            if streak is None or (now - streak.last).total_seconds() >= token_seconds / _OFTEN:
                self._begin(client_id, now)
                return
            streak.last = now
            streak.asked += 1
            if (now - streak.began).total_seconds() >= LONG_ENOUGH_SECONDS:
                if len(self._found) < _CAPACITY:
                    self._found.append(Often(client_id, streak.asked, token_seconds))
                self._begin(client_id, now)

    def take(self) -> list[Often]:
        """Who was found since the last call."""
        with self._turn:
            found, self._found = self._found, []
        return found

    def give_back(self, found: list[Often]) -> None:
        """Keep what could not be written for the next time."""
        with self._turn:
            self._found = (found + self._found)[:_CAPACITY]

    def _begin(self, client_id: str, now: datetime) -> None:
        if len(self._streaks) >= _CAPACITY and client_id not in self._streaks:
            for old in list(self._streaks)[: _CAPACITY // 2]:
                del self._streaks[old]
        self._streaks[client_id] = _Streak(now, now, 1)
