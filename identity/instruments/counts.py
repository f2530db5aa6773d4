"""What this process has counted and nobody has collected yet: for metrics, which the domain knows nothing of."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

Key = tuple[str, ...]
"""What is counted, and its labels."""

LOGINS: Final = "logins"
REFUSALS: Final = "refusals"
LOCKOUTS: Final = "lockouts"
CACHE_HITS: Final = "cache_hits"
TOKENS: Final = "tokens"


class Counts:
    """Counts by name and labels. Labels are words of ours, so that there are few: never what a client chose."""

    def __init__(self) -> None:
        self._counts: Counter[Key] = Counter()
        self._swap = threading.Lock()

    def add(self, name: str, *labels: str, by: int = 1) -> None:
        """Count so many more."""
        with self._swap:
            self._counts[name, *labels] += by

    def take(self) -> Counter[Key]:
        """What was counted since the last call."""
        with self._swap:
            taken, self._counts = self._counts, Counter()
        return taken
