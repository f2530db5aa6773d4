"""Sliding windows: exactly at most N hits in any period, shared by the processes of one host or, through Redis, of many.

Both are storages of the `limits` library, so that Flask-Limiter can count in the same place; `take` is what our own limiter calls: one
step that tries to add a hit and says how the window stands.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from limits.storage import MovingWindowSupport, RedisStorage, Storage

Taken = tuple[bool, float, int, float]
"""Whether the hit was accepted, the oldest hit in the window, how many there are, and the time now (Unix seconds)."""

_HEADER: Final = struct.Struct("<QQQ")
_TIME: Final = struct.Struct("<d")
_KEPT_OPEN: Final = 512
_LONGEST_SECONDS: Final = 86_400


class EmbeddedStorage(Storage, MovingWindowSupport):
    """Sliding windows in mapped files, for every process of one host.

    A key's file is a header (size, first, count) and the times of its accepted hits in a ring, oldest at `first`: a hit costs the same
    whatever the budget. An advisory lock on the file makes a hit atomic, and goes away with its process however that dies. Nothing
    is synced: after a power cut the windows start empty, as a restarted Redis would.
    """

    STORAGE_SCHEME = ["identity-embedded"]  # noqa: RUF012 -- declared so by `limits`

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._folder = Path(uri.partition("://")[2])
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._rings: OrderedDict[tuple[str, int], _Ring] = OrderedDict()
        # The lock of a file is its descriptor's, which threads share: among threads, this one counts.
        self._turn = threading.Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    def take(self, key: str, limit: int, seconds: int) -> Taken:
        """Try to add a hit to the window of `key`."""
        with self._turn:
            while True:
                ring = self._ring(key, limit)
                fcntl.flock(ring.descriptor, fcntl.LOCK_EX)
                try:
                    if os.fstat(ring.descriptor).st_nlink:
                        return ring.take(seconds)
                finally:
                    fcntl.flock(ring.descriptor, fcntl.LOCK_UN)
                # Swept between our last hit and this one: count in its successor.
                self._rings.pop((key, limit)).close()

    def sweep(self) -> int:
        """Remove the windows that even the longest period has left behind; tell how many."""
        return sum(_remove_if_empty(Path(entry.path)) for entry in os.scandir(self._folder))

    def close(self) -> None:
        """Give every file back."""
        with self._turn:
            while self._rings:
                self._rings.popitem()[1].close()

    def _ring(self, key: str, limit: int) -> _Ring:
        ring = self._rings.get((key, limit))
        if ring is None:
            # A budget that was changed counts anew: its ring has another size, and another file.
            ring = self._rings[key, limit] = _Ring(self._path(key, limit), limit)
            if len(self._rings) > _KEPT_OPEN:
                self._rings.popitem(last=False)[1].close()
        self._rings.move_to_end((key, limit))
        return ring

    def _path(self, key: str, limit: int) -> Path:
        name = hashlib.blake2b(f"{limit} {key}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._folder / name

    # The interface of the `limits` library, for Flask-Limiter.

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return all(self.take(key, limit, expiry)[0] for _ in range(amount))

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        with self._turn:
            oldest, count = self._ring(key, limit).living(_now(), expiry)
        return oldest, count

    def check(self) -> bool:
        return os.access(self._folder, os.W_OK)

    def reset(self) -> int:
        self.close()
        paths = list(self._folder.iterdir())
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def clear(self, key: str) -> None:
        for known, limit in [ring for ring in self._rings if ring[0] == key]:
            self._path(known, limit).unlink(missing_ok=True)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise TypeError("only moving windows are kept here")

    def get(self, key: str) -> int:
        raise TypeError("only moving windows are kept here")

    def get_expiry(self, key: str) -> float:
        raise TypeError("only moving windows are kept here")


class SharedStorage(RedisStorage):
    """Sliding windows in Redis, for every process of every host: one round trip a hit, on the clock of the Redis server alone."""

    STORAGE_SCHEME = ["identity-redis"]  # noqa: RUF012 -- declared so by `limits`
    _TAKE: Final = """
        local limit, seconds = tonumber(ARGV[1]), tonumber(ARGV[2])
        local time = redis.call('TIME')
        local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
        while true do
            local oldest = redis.call('LINDEX', KEYS[1], 0)
            if not oldest or tonumber(oldest) > now - seconds then break end
            redis.call('LPOP', KEYS[1])
        end
        local count = redis.call('LLEN', KEYS[1])
        local accepted = count < limit and 1 or 0
        if accepted == 1 then
            redis.call('RPUSH', KEYS[1], string.format('%.6f', now))
            redis.call('EXPIRE', KEYS[1], seconds + 1)
            count = count + 1
        end
        return {accepted, redis.call('LINDEX', KEYS[1], 0), count, string.format('%.6f', now)}
    """

    def __init__(self, uri: str) -> None:
        import redis  # noqa: PLC0415 -- four megabytes that a host without Redis does not pay

        # Fail soon: a limiter that hangs would hold every request; one that is down answers 503 until it is back.
        pool = redis.ConnectionPool.from_url(uri, socket_timeout=1, socket_connect_timeout=1, health_check_interval=10)
        super().__init__("redis://", connection_pool=pool)
        self._client = redis.Redis(connection_pool=pool)
        self._script = self._client.register_script(self._TAKE)

    def take(self, key: str, limit: int, seconds: int) -> Taken:
        """Try to add a hit to the window of `key`. Raises redis.RedisError."""
        accepted, oldest, count, now = self._script(keys=[f"identity:limit:{limit}:{key}"], args=[limit, seconds])
        return bool(accepted), float(oldest or now), int(count), float(now)

    def sweep(self) -> int:
        """Redis forgets by itself."""
        return 0

    def close(self) -> None:
        """Give every connection back."""
        self._client.close()


class _Ring:
    """The mapped file of one window."""

    __slots__ = ("_map", "_size", "descriptor")

    def __init__(self, path: Path, size: int) -> None:
        length = _HEADER.size + _TIME.size * size
        self._size = size
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self.descriptor).st_size < length:
            # Its blocks now: a mapped page without one would end the process, not the request, on a full disk.
            os.posix_fallocate(self.descriptor, 0, length)
        self._map = mmap.mmap(self.descriptor, length)

    def take(self, seconds: int) -> Taken:
        """Try to add a hit; the caller holds the file's lock."""
        now = _now()
        first, count = self._drop_old(now, seconds)
        accepted = count < self._size
        if accepted:
            # The hit first, the header second: a process that dies between them has counted nothing.
            _TIME.pack_into(self._map, _HEADER.size + _TIME.size * ((first + count) % self._size), now)
            count += 1
        _HEADER.pack_into(self._map, 0, self._size, first, count)
        return accepted, self._time(first), count, now

    def living(self, now: float, seconds: int) -> tuple[float, int]:
        """The oldest hit that counts (or now), and how many do."""
        first, count = self._drop_old(now, seconds)
        return (self._time(first) if count else now), count

    def newest(self) -> float:
        """The last hit, or 0."""
        _, first, count = _HEADER.unpack_from(self._map)
        return self._time((first + count - 1) % self._size) if count else 0.0

    def close(self) -> None:
        self._map.close()
        os.close(self.descriptor)

    def _drop_old(self, now: float, seconds: int) -> tuple[int, int]:
        _, first, count = _HEADER.unpack_from(self._map)
        if count and self._time((first + count - 1) % self._size) > now + 1:
            return 0, 0  # Hits of the future: the clock was turned back, and nothing in the ring means anything.
        horizon = now - seconds
        while count and self._time(first) <= horizon:
            first, count = (first + 1) % self._size, count - 1
        return first, count

    def _time(self, index: int) -> float:
        moment: float = _TIME.unpack_from(self._map, _HEADER.size + _TIME.size * index)[0]
        return moment


def _remove_if_empty(path: Path) -> int:
    try:
        ring = _Ring(path, max(1, (path.stat().st_size - _HEADER.size) // _TIME.size))
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(ring.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if ring.newest() > _now() - _LONGEST_SECONDS:
            return 0
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return 0  # In use at this moment: not stale.
    finally:
        ring.close()
    return 1


def _now() -> float:
    """The host's clock, not an injected one: every process of the host must read the same."""
    return time.time()  # noqa: TID251 -- see above
