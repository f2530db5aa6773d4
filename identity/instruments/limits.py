"""Rate limits: which there are, and what a hit against one answers.

The counting is `windows`': in Redis where that is configured, else in files that the processes of this host share. A limiter
that cannot count refuses; it never waves through.
"""

from __future__ import annotations

import asyncio
import math
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from limits import RateLimitItem, parse

from identity import grounds
from identity.errors import RATE_LIMITED, UNAVAILABLE, Refused
from identity.instruments.windows import EmbeddedStorage, SharedStorage
from identity.settings import Settings


class Policy(StrEnum):
    """The limits that docs/interfaces.md lists; the value is the name of its setting, and of a tier of the gate."""

    AUTH = "auth"
    APPLICATION = "application"
    STANDARD = "standard"
    AI_ASSISTED = "ai-assisted"
    BULK_UPLOAD = "bulk-upload"


class Window(NamedTuple):
    """How a key stands after a hit: what the `X-RateLimit-*` headers say."""

    limit: int
    remaining: int
    reset_at: int
    retry_after_seconds: int
    accepted: bool


class Limiter:
    """Counts hits against the policies of `settings`."""

    def __init__(self, settings: Settings) -> None:
        self.storage_uri = _storage_uri(settings)
        self.storage = _open_storage(settings)
        lost = self.storage.base_exceptions
        self._failures: tuple[type[Exception], ...] = (OSError, *(lost if isinstance(lost, tuple) else (lost,)))
        self._items = {policy: _item(getattr(settings, f"limit_{policy.name.lower()}")) for policy in Policy}

    def hit(self, policy: Policy, key: str, *, budget: str | None = None) -> Window | None:
        """Count one request of `key`; None where the policy is off.

        `budget` (`"500/minute"` or `"off"`) takes the place of the policy's own. Raises Refused(RATE_LIMITED), whose evidence holds the
        Window, and Refused(UNAVAILABLE) when the count cannot be kept.
        """
        grounds.note_hit(policy, key, budget)
        item = self._items[policy] if budget is None else _item(budget)
        if item is None:
            return None
        seconds = item.get_expiry()
        try:
            accepted, oldest, count, now = self.storage.take(f"{policy}:{key}", item.amount, seconds)
        except self._failures as exc:
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
        except self._failures as exc:
            raise Refused(
                UNAVAILABLE, detail=f"rate limits: {type(exc).__name__}", retry_after_seconds=1, cause=exc
            ) from exc
        if not healthy:
            raise Refused(UNAVAILABLE, detail="rate limits do not answer", retry_after_seconds=1)

    def serve_aside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the errands of a loop count."""
        self.storage.serve_aside(loop)

    def follow(self) -> None:
        """Count where the configured name leads now; for the background loop."""
        self.storage.follow()

    def sweep(self) -> int:
        """Forget windows that have emptied; for the janitor."""
        return self.storage.sweep()

    def close(self) -> None:
        """Give files and connections back."""
        self.storage.close()


def parse_budget(text: str) -> str:
    """`text` if it is a budget (`120/minute`, `off`). Raises ValueError."""
    if text != "off" and (not text.isascii() or parse(text).amount > 1_000_000_000):
        raise ValueError(text)
    return text


def budget_of(text: str) -> tuple[int, int] | None:
    """How many in how many seconds a budget permits (`5/10 minutes`); None for `off`."""
    item = _item(text)
    return None if item is None else (item.amount, item.get_expiry())


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


def client_key(client: str, address: str, purpose: str = "") -> str:
    """What a client's authentications are counted by: the client (canonical, where it is an id) and the address that tries.

    `purpose` keeps windows apart: who introspects must not use up what tokens are asked with.
    """
    return f"{purpose}{client} {address_key(address)}"


def _open_storage(settings: Settings) -> EmbeddedStorage | SharedStorage:
    return SharedStorage(settings.redis_url) if settings.redis_url else EmbeddedStorage(_storage_uri(settings))


def _storage_uri(settings: Settings) -> str:
    """Where hits are counted, as the `limits` library spells it."""
    if settings.redis_url:
        return settings.redis_url.replace("unix://", "redis+unix://", 1)
    return f"{EmbeddedStorage.STORAGE_SCHEME[0]}://{embedded_folder(settings)}"


def embedded_folder(settings: Settings) -> Path:
    """Where windows are kept that no Redis keeps: beside the SQLite database, else in `var/`."""
    database = settings.database_url.partition(":///")[2]
    home = (
        Path(database).absolute().parent
        if settings.database_url.startswith("sqlite") and database
        else Path("var").absolute()
    )
    return home / "limits"


def _item(budget: str) -> RateLimitItem | None:
    return None if budget == "off" else parse(budget)
