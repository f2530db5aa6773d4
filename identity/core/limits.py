"""Rate limits: which there are, and the sliding windows that count them.

A window is exact: at most N accepted requests in any period of its length. It is shared by every process: through Redis where that is
configured, else through one small file for each key in a folder of this host. Both are storages of the `limits` library, so
Flask-Limiter counts in the same place. A limiter that cannot count refuses; it never waves through.
"""

from __future__ import annotations

import array
import bisect
import fcntl
import hashlib
import math
import os
import struct
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

import redis
from limits import RateLimitItem, parse
from limits.storage import MovingWindowSupport, RedisStorage, Storage

from identity.errors import RATE_LIMITED, UNAVAILABLE, Refused
from identity.settings import Settings


_HEADER: Final = struct.Struct("<QQQ")
_TIME: Final = struct.Struct("<d")
_BATCH: Final = 64


class Policy(StrEnum):
    """The rows of the limit table of contract section 1; the value is the name of its setting, and of a tier of the gate."""

    AUTH = "auth"
    APPLICATION = "application"
    STANDARD = "standard"
    AI_ASSISTED = "ai-assisted"
    BULK_UPLOAD = "bulk-upload"


@dataclass(frozen=True, slots=True)
class Window:
    """How a key stands after a hit: what the `X-RateLimit-*` headers say."""

    limit: int
    remaining: int
    reset_at: int
    retry_after_seconds: int
    accepted: bool


class Limiter:
    """Counts hits against the policies of `settings`."""

    def __init__(self, settings: Settings) -> None:
        self.storage = open_storage(settings)
        self._items = {policy: _item(getattr(settings, f"limit_{policy.name.lower()}")) for policy in Policy}

    def hit(self, policy: Policy, key: str, *, budget: str | None = None) -> Window | None:
        """Count one request of `key`; None where the policy is off.

        `budget` (`"500/minute"` or `"off"`) takes the place of the policy's own. Raises Refused(RATE_LIMITED), whose evidence holds the
        Window, and Refused(UNAVAILABLE) when the count cannot be kept.
        """
        item = self._items[policy] if budget is None else _item(budget)
        if item is None:
            return None
        seconds = item.get_expiry()
        try:
            accepted, oldest, count, now = self.storage.take(f"{policy}:{key}", item.amount, seconds)
        except (redis.RedisError, OSError) as exc:
            raise Refused(
                UNAVAILABLE, detail=f"rate limits: {type(exc).__name__}", retry_after_seconds=1, cause=exc
            ) from exc
        reset = oldest + seconds
        window = Window(
            item.amount, max(0, item.amount - count), math.ceil(reset), max(1, math.ceil(reset - now)), accepted
        )
        if not accepted:
            raise Refused(
                RATE_LIMITED,
                detail=f"policy {policy}",
                evidence={"policy": str(policy), "window": window},
                retry_after_seconds=window.retry_after_seconds,
            )
        return window

    def ping(self) -> None:
        """Raise Refused(UNAVAILABLE) when hits cannot be counted."""
        try:
            healthy = self.storage.check()
        except (redis.RedisError, OSError) as exc:
            raise Refused(
                UNAVAILABLE, detail=f"rate limits: {type(exc).__name__}", retry_after_seconds=1, cause=exc
            ) from exc
        if not healthy:
            raise Refused(UNAVAILABLE, detail="rate limits do not answer", retry_after_seconds=1)

    def sweep(self) -> int:
        """Forget windows that have emptied; for the janitor."""
        return self.storage.sweep()


def parse_budget(text: str) -> str:
    """`text` if it is a budget (`120/minute`, `off`). Raises ValueError."""
    if text != "off" and (not text.isascii() or parse(text).amount > 1_000_000_000):
        raise ValueError(text)
    return text


@lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """What of a client address is counted: all of IPv4, the /64 of IPv6, of which one host commands every address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped else f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address


def open_storage(settings: Settings) -> EmbeddedStorage | SharedStorage:
    """The storage that the settings name."""
    if settings.redis_url:
        return SharedStorage(settings.redis_url)
    return EmbeddedStorage(f"identity-embedded://{_embedded_folder(settings)}")


class EmbeddedStorage(Storage, MovingWindowSupport):
    """Sliding windows in files, for every process of one host.

    A key's file holds the times of its accepted hits in a ring, so that a hit costs the same whatever the budget. An advisory lock on the file makes a hit atomic and goes away with
    its process, however that dies. Nothing is synced: after a power cut the windows start empty, as a restarted Redis would.
    """

    STORAGE_SCHEME = ["identity-embedded"]

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._folder = Path(uri.partition("://")[2])
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    def take(self, key: str, limit: int, seconds: int) -> tuple[bool, float, int, float]:
        """Try to add a hit: (accepted, oldest hit in the window, hits in the window, now)."""
        path = self._path(key)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_nlink:
                    return _take(descriptor, limit, seconds)
            finally:
                os.close(descriptor)
            # The janitor removed the file between our open and our lock: count in its successor.

    def sweep(self) -> int:
        """Remove the files without a hit for a day, longer than any window; tell how many."""
        horizon = time.time() - 86_400  # noqa: TID251 -- compared with the file system's clock
        stale = [Path(entry.path) for entry in os.scandir(self._folder) if entry.stat().st_mtime < horizon]
        return sum(self._remove(path) for path in stale)

    def _remove(self, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return 0  # In use: not stale after all.
        finally:
            os.close(descriptor)
        return 1

    def _path(self, key: str) -> str:
        return f"{self._folder}/{hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"

    # The interface of the `limits` library, for Flask-Limiter.

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return all(self.take(key, limit, expiry)[0] for _ in range(amount))

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now = time.time()  # noqa: TID251 -- the storage's own clock, see _take
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return now, 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            size, first, count = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
            oldest, _, living = _drop_old(descriptor, size, first, count, now, expiry)
        finally:
            os.close(descriptor)
        return oldest, living

    def check(self) -> bool:
        return os.access(self._folder, os.W_OK)

    def reset(self) -> int:
        paths = list(self._folder.iterdir())
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def clear(self, key: str) -> None:
        Path(self._path(key)).unlink(missing_ok=True)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError("only moving windows are kept here")

    get = get_expiry = incr  # type: ignore[assignment]  # fixed windows, which nothing here asks for


class SharedStorage(RedisStorage):
    """Sliding windows in Redis, for every process of every host: one round trip a hit, on the clock of the Redis server alone."""

    STORAGE_SCHEME = ["identity-redis"]
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
        # Fail soon: a limiter that hangs would hold every request; one that is down answers 503 until it is back.
        pool = redis.ConnectionPool.from_url(uri, socket_timeout=1, socket_connect_timeout=1, health_check_interval=10)
        super().__init__("redis://", connection_pool=pool)
        self._client = redis.Redis(connection_pool=pool)
        self._script = self._client.register_script(self._TAKE)

    def take(self, key: str, limit: int, seconds: int) -> tuple[bool, float, int, float]:
        """Try to add a hit: (accepted, oldest hit in the window, hits in the window, now)."""
        accepted, oldest, count, now = self._script(keys=[f"identity:limit:{key}"], args=[limit, seconds])
        return bool(accepted), float(oldest or now), int(count), float(now)

    def sweep(self) -> int:
        """Redis forgets by itself."""
        return 0


def _take(descriptor: int, limit: int, seconds: int) -> tuple[bool, float, int, float]:
    """Count a hit in a locked ring file: a header (size, first, count), then `size` times in a ring, oldest at `first`."""
    # The host's clock, not an injected one: every process of the host must read the same.
    now = time.time()  # noqa: TID251 -- see above
    raw = os.pread(descriptor, _HEADER.size, 0)
    size, first, count = _HEADER.unpack(raw) if len(raw) == _HEADER.size else (limit, 0, 0)
    if size != limit:
        first, count = _resize(descriptor, size, first, count, limit)
    oldest, first, count = _drop_old(descriptor, limit, first, count, now, seconds)
    accepted = count < limit
    if accepted:
        os.pwrite(descriptor, _TIME.pack(now), _HEADER.size + _TIME.size * ((first + count) % limit))
        count += 1
    os.pwrite(descriptor, _HEADER.pack(limit, first, count), 0)
    return accepted, oldest, count, now


def _drop_old(descriptor: int, size: int, first: int, count: int, now: float, seconds: int) -> tuple[float, int, int]:
    """Leave out the hits that no longer count, a batch at a time: (oldest that counts or now, first, count)."""
    while count:
        batch = min(count, size - first, _BATCH)
        times = array.array("d", os.pread(descriptor, batch * _TIME.size, _HEADER.size + _TIME.size * first))
        if times[0] > now + 1:
            break  # Of the future: the clock was turned back, and nothing in the ring means anything.
        old = bisect.bisect_right(times, now - seconds)
        if old < batch:
            return times[old], first + old, count - old
        first, count = (first + old) % size, count - old
    return now, 0, 0


def _resize(descriptor: int, size: int, first: int, count: int, limit: int) -> tuple[int, int]:
    """Lay the ring out anew for a budget that was changed, keeping its newest hits: the new (first, count)."""
    times = array.array("d", os.pread(descriptor, size * _TIME.size, _HEADER.size))
    kept = [times[(first + index) % size] for index in range(count)][-limit:]
    os.pwrite(descriptor, array.array("d", kept).tobytes(), _HEADER.size)
    return 0, len(kept)


def _embedded_folder(settings: Settings) -> Path:
    database = settings.database_url.partition(":///")[2]
    home = (
        Path(database).absolute().parent
        if settings.database_url.startswith("sqlite") and database
        else Path("var").absolute()
    )
    return home / "limits"


def _item(budget: str) -> RateLimitItem | None:
    return None if budget == "off" else parse(budget)
