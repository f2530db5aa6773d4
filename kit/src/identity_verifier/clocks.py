"""The two clocks of the kit: what time it is, for what tokens say; and how long something took, for how old an answer is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Clock = Callable[[], float]

wall: Final[Clock] = time.time
"""Seconds since 1970."""


def _elapsed() -> Clock:
    # A machine that slept must not think its status list young: the boot clock counts sleep, the monotonic one does not.
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    if boot is None:
        return time.monotonic
    return lambda: time.clock_gettime(boot)


elapsed: Final[Clock] = _elapsed()
"""Seconds since some moment; never set back, whatever somebody does to the clock."""
