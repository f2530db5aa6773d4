"""The memory that the C library keeps for a thread: given back to the system when the thread has been idle.

glibc gives threads heaps of their own, and keeps in each what was free once: a worker would hold 19 MB of Argon2 memory for each slot in
which a password was ever hashed, for as long as it lives. Where the C library is another (musl), nothing is done and nothing is needed.
"""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD of <malloc.h>
_LITTLE: Final = 128 * 1024
# Beyond this nothing is kept anyway: glibc maps what is larger than half of it each time.
_ALL: Final = 64 * 1024 * 1024


def give_back() -> None:
    """Give back what is free at the end of the heap of the thread that calls this; the next hash in it takes ten milliseconds longer.

    `malloc_trim` does it for the main thread's heap alone. A heap is trimmed by whoever frees something there while more than the threshold
    is free, so something is taken and freed while that is low.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    library.mallopt(_TRIM_THRESHOLD, _LITTLE)
    library.free(library.malloc(_LITTLE - 4096))
    library.mallopt(_TRIM_THRESHOLD, _ALL)
