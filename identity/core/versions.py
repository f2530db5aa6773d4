"""The versions of rows: what a caller may state to be told when somebody else was first.

Only who states a version (`If-Match`) is ever refused for a change in between; everybody else waits for the row and changes what is there.
"""

from __future__ import annotations

from collections.abc import Collection

from identity.errors import STALE, Refused


def check(version: int, asked: Collection[int] | None) -> None:
    """Raise Refused(STALE) unless `version`, of a row that is locked, is among those that were asked for; None asks for none."""
    if asked is not None and version not in asked:
        raise Refused(STALE, detail="stale version", evidence={"expected": sorted(asked), "seen": version})
