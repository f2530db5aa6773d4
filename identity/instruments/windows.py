"""Sliding windows: exactly at most N hits in any period, shared by the processes of one host or, through Redis, of many.

Both are storages of the `limits` library, so that Flask-Limiter can count in the same place; `take` is what our own limiter calls: one
step that tries to add a hit and says how the window stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import struct
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from limits.storage import MovingWindowSupport, RedisStorage, Storage

from identity import aside
from identity.aside import Channels, Late
from identity.files import FILE_MODE, make_folder
from identity.instruments.resp import Calls

Taken = tuple[bool, float, int, float]
"""Whether the hit was accepted, the oldest hit in the window, how many there are, and the time now (Unix seconds)."""

_HEADER: Final = struct.Struct("<QQQddd")
_TIME: Final = struct.Struct("<d")
_KEPT_OPEN: Final = 64
_FIRST_ROOM: Final = 16
_PROBE_BYTES: Final = 65_536
_SUFFIX: Final = ".window"
_FORGOTTEN_SECONDS: Final = 86_400
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class EmbeddedStorage(Storage, MovingWindowSupport):
    """Sliding windows in files, for every process of one host.

    A key's file is a header and the times of its accepted hits in a ring that grows as it is used: a hit costs the same whatever the
    budget. An advisory lock on the file makes a hit atomic, and goes away with its process however that dies. Few files are kept open, one
    descriptor each, so that any number of keys fits any limit on descriptors. Nothing is synced: after a power cut the windows start
    empty, as a restarted Redis would.
    """

    STORAGE_SCHEME = ["identity-embedded"]  # noqa: RUF012 -- declared so by `limits`

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._folder = Path(uri.partition("://")[2])
        self._rings: OrderedDict[str, _Ring] = OrderedDict()
        # The lock of a file is its descriptor's, which threads share: among threads, this one counts.
        self._turn = threading.Lock()

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    def take(self, key: str, limit: int, seconds: int) -> Taken:
        """Try to add a hit to the window of `key`."""
        with self._turn:
            while True:
                ring = self._ring(key)
                fcntl.flock(ring.descriptor, fcntl.LOCK_EX)
                try:
                    if os.fstat(ring.descriptor).st_nlink:
                        return ring.take(limit, seconds)
                finally:
                    fcntl.flock(ring.descriptor, fcntl.LOCK_UN)
                # Swept between our last hit and this one: count in its successor.
                self._rings.pop(key).close()

    def sweep(self) -> int:
        """Remove the windows that are over; tell how many."""
        if not self._folder.is_dir():
            return 0
        return sum(_remove_if_over(Path(entry.path)) for entry in os.scandir(self._folder))

    def close(self) -> None:
        """Give every file back."""
        with self._turn:
            self._close_all()

    def follow(self) -> None:
        """The files are where they were."""

    def serve_aside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Files are counted in at once."""

    def _close_all(self) -> None:
        while self._rings:
            self._rings.popitem()[1].close()

    def _ring(self, key: str) -> _Ring:
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = self._open(self._path(key))
            if len(self._rings) > _KEPT_OPEN:
                self._rings.popitem(last=False)[1].close()
        self._rings.move_to_end(key)
        return ring

    def _open(self, path: str | Path) -> _Ring:
        try:
            return _Ring(path)
        except FileNotFoundError:
            # Made here and not at the start: a command that counts nothing leaves no folder behind.
            make_folder(self._folder)
            return _Ring(path)
        except OSError as exc:
            if exc.errno not in _OUT_OF_DESCRIPTORS or not self._rings:
                raise
        # Others of this process took the rest. What is kept here only saves time, so it goes first.
        self._close_all()
        return _Ring(path)

    def _path(self, key: str) -> str:
        # Text and no Path: where more keys than files are in use, every hit spells one.
        name = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return f"{self._folder}/{name}{_SUFFIX}"

    # The interface of the `limits` library, for Flask-Limiter.

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return all(self.take(key, limit, expiry)[0] for _ in range(amount))

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        with self._turn:
            return self._ring(key).living(_now(), expiry)

    def check(self) -> bool:
        """Whether there is room for more windows: what a hit of a new key needs. Raises OSError."""
        path = self._folder / f"probe-{os.getpid()}-{threading.get_ident()}"
        with self._turn:
            try:
                probe = self._open(path)
                try:
                    probe.write(bytes(_PROBE_BYTES), 0)
                finally:
                    probe.close()
            finally:
                path.unlink(missing_ok=True)
        return True

    def reset(self) -> int:
        self.close()
        paths = list(self._folder.iterdir()) if self._folder.is_dir() else []
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def clear(self, key: str) -> None:
        Path(self._path(key)).unlink(missing_ok=True)

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
        local newest = redis.call('LINDEX', KEYS[1], -1)
        if newest and tonumber(newest) > now + 1 then redis.call('DEL', KEYS[1]) end
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
        self._pool = redis.ConnectionPool.from_url(
            uri, socket_timeout=1, socket_connect_timeout=1, health_check_interval=10
        )
        super().__init__("redis://", connection_pool=self._pool)
        self._client = redis.Redis(connection_pool=self._pool)
        self._script = self._client.register_script(self._TAKE)
        self._demoted = redis.exceptions.ReadOnlyError
        self._lost = redis.exceptions.RedisError
        self._probe = redis.Redis.from_url(uri, socket_timeout=1, socket_connect_timeout=1, retry=None)
        self._server = ""
        self._calls: Channels | None = None
        self._opened: set[Any] = set()

    def serve_aside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the errands of a loop count."""
        self._calls = Channels(loop, 1, self._connect, self._watch)

    def _connect(self) -> Any:
        """A connection of our own, with the script loaded."""
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()
        connection.send_command("SCRIPT", "LOAD", self._TAKE)
        connection.read_response()
        return connection

    def _watch(self, loop: asyncio.AbstractEventLoop, connection: Any) -> Calls:
        self._opened.add(connection)

        def close() -> None:
            self._opened.discard(connection)
            connection.disconnect()

        return Calls(loop, connection._sock, self._script.sha, close)  # noqa: SLF001 -- it has no public name

    def _take_aside(self, name: str, limit: int, seconds: int) -> Taken:
        assert self._calls is not None, "asked before"
        channel: Calls = self._calls.choose()
        try:
            accepted, oldest, count, now = channel.call(name, limit, seconds)
        except Late as exc:
            raise TimeoutError from exc
        return accepted == b"1", float(oldest or now), int(count), float(now)

    def _cut(self) -> None:
        """End the connections of errands; the loop that watches them hears of it, and makes others."""
        for connection in list(self._opened):
            with contextlib.suppress(OSError, AttributeError):  # Closed already, by the loop.
                connection._sock.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 -- see above

    def take(self, key: str, limit: int, seconds: int) -> Taken:
        """Try to add a hit to the window of `key`. Raises redis.RedisError."""
        name = f"identity:limit:{limit}:{key}"
        if self._calls is not None and aside.is_errand():
            return self._take_aside(name, limit, seconds)
        keys, arguments = [name], [limit, seconds]
        try:
            accepted, oldest, count, now = self._script(keys=keys, args=arguments)
        except self._demoted:
            # This server is a replica now: its name may lead to the new primary already, for who connects anew.
            self._pool.disconnect()
            self._cut()
            accepted, oldest, count, now = self._script(keys=keys, args=arguments)
        return bool(accepted), float(oldest or now), int(count), float(now)

    def check(self) -> bool:
        """Whether hits are counted: a replica answers and counts nothing. Raises redis.RedisError."""
        return self.take("probe", 1_000_000, 1)[0]

    def follow(self) -> None:
        """Leave a server to which the name no longer leads, paused or alive for itself."""
        try:
            told: Any = self._probe.info("server")
        except self._lost:
            return
        finally:
            self._probe.connection_pool.disconnect()
        server = str(told["run_id"])
        before, self._server = self._server, server
        if before not in ("", server):
            self._pool.disconnect()
            self._cut()

    def sweep(self) -> int:
        """Redis forgets by itself."""
        return 0

    def close(self) -> None:
        """Give every connection back."""
        self._pool.disconnect()
        self._cut()


class _Ring:
    """The file of one window: how much room its ring has, where the oldest hit lies, how many there are, when all of them are over."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str | Path) -> None:
        # Read and written by calls, not mapped: a mapping holds a second descriptor, and ends the process when a disk is full.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)

    def take(self, limit: int, seconds: int) -> Taken:
        """Try to add a hit; the caller holds the file's lock."""
        now = _now()
        room, first, count, oldest = self._drop_old(now, seconds)
        accepted = count < limit
        if accepted:
            if count == room:
                room = self._grow(room, first)
            # The hit first, the header second: a process that dies between them has counted nothing.
            self._put((first + count) % room, _TIME.pack(now))
            count += 1
            self.write(_HEADER.pack(room, first, count, oldest, now, now + seconds), 0)
        return accepted, oldest, count, now

    def living(self, now: float, seconds: int) -> tuple[float, int]:
        """The oldest hit that counts (or now), and how many do."""
        _, _, count, oldest = self._drop_old(now, seconds)
        return oldest, count

    def is_over(self, now: float) -> bool:
        """Whether its newest hit has left its window."""
        return now >= self._header()[5]

    def write(self, data: bytes, offset: int) -> None:
        """All of `data`. Raises OSError."""
        if os.pwrite(self.descriptor, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        os.close(self.descriptor)

    def _header(self) -> tuple[int, int, int, float, float, float]:
        """Room, first, count, the oldest and the newest hit, and when all are over."""
        header = os.pread(self.descriptor, _HEADER.size, 0)
        room, first, count, oldest, newest, ends_at = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        return room, first, count, oldest, newest, ends_at

    def _drop_old(self, now: float, seconds: int) -> tuple[int, int, int, float]:
        """Room, first, count and the oldest hit without what is over; where nothing is left, now counts as the oldest."""
        room, first, count, oldest, newest, _ = self._header()
        # Hits of the future: the clock was turned back, and nothing in the ring means anything.
        if not count or newest > now + 1 or newest <= now - seconds:
            return room, 0, 0, now
        if oldest > now - seconds:
            return room, first, count, oldest
        old, young = 0, count - 1  # Times ascend: how many are over is found by halves, however many there are.
        while old < young:
            middle = (old + young) // 2
            if self._time((first + middle) % room) > now - seconds:
                young = middle
            else:
                old = middle + 1
        first = (first + old) % room
        return room, first, count - old, self._time(first)

    def _grow(self, room: int, first: int) -> int:
        """Double the room of a full ring: what had wrapped to its beginning is written behind its end, where no reader looks yet."""
        wrapped = os.pread(self.descriptor, _TIME.size * first, _HEADER.size)
        if wrapped:
            self._put(room, wrapped)
        return max(_FIRST_ROOM, room * 2)

    def _put(self, index: int, times: bytes) -> None:
        self.write(times, _HEADER.size + _TIME.size * index)

    def _time(self, index: int) -> float:
        moment: float = _TIME.unpack(os.pread(self.descriptor, _TIME.size, _HEADER.size + _TIME.size * index))[0]
        return moment


def _remove_if_over(path: Path) -> int:
    if path.suffix != _SUFFIX:
        return _remove_if_forgotten(path)
    try:
        ring = _Ring(path)
    except OSError:
        return 0
    try:
        fcntl.flock(ring.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not ring.is_over(_now()):
            return 0
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return 0  # In use at this moment: not over.
    finally:
        ring.close()
    return 1


def _remove_if_forgotten(path: Path) -> int:
    """Remove what an earlier version or a process that died left behind, a day later."""
    try:
        if path.stat().st_mtime > _now() - _FORGOTTEN_SECONDS:
            return 0
        path.unlink()
    except OSError:
        return 0
    return 1


def _now() -> float:
    """The host's clock, not an injected one: every process of the host must read the same."""
    return time.time()  # noqa: TID251 -- see above
