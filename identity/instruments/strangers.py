"""Refusals of names that do not exist, counted in memory and written by the background loop as a few events.

Anybody can make up any number of names. Each would be a durable row that is kept for years; their sum says as much.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

_MOST_ADDRESSES: Final = 20

Sums = list[tuple[str, str, str, int]]
"""What was refused (an action of the audit), why, from which client address (empty: many others), how often."""


class Strangers:
    """The refusals of unknown names in this process that are not written yet."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._swap = threading.Lock()

    def note(self, action: str, reason: str, address: str) -> None:
        """Count one refusal."""
        with self._swap:
            known = (action, reason, address)
            has_room = known in self._counts or len(self._counts) < _MOST_ADDRESSES
            self._counts[known if has_room else (action, reason, "")] += 1

    def take(self) -> Sums:
        """What was counted since the last call."""
        with self._swap:
            counts, self._counts = self._counts, Counter()
        return [(*known, count) for known, count in counts.items()]

    def give_back(self, sums: Sums) -> None:
        """Count again what could not be written."""
        with self._swap:
            for action, reason, address, count in sums:
                self._counts[action, reason, address] += count
