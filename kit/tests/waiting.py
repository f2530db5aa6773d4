"""Waiting for what happens behind the scenes."""

from __future__ import annotations

import time
from collections.abc import Callable

from identity_verifier import Verifier


def settled(verifier: Verifier) -> None:
    """Return once nothing is fetched any more."""
    sources = verifier._sources
    until(lambda: not any(each.in_flight() for each in (sources.keys, *sources.lists.values())))


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)
