"""One answer of the issuer, kept for as long as it may be believed.

The life of an answer has three parts. While it is *fresh* it is used, and from 80 % of its life on renewed behind the scenes. Once it is
over, the next caller waits for a new one, so that nobody is judged by what is out of date while the issuer can be asked. When the issuer
does not answer, the answer is *stale*: each user decides whether that will do, nobody waits for whom it does, and one attempt every few
seconds goes on in the background. There is never more than one attempt in flight, whoever and however many ask.

Waiting is left to the caller: `renewal()` gives a future, which a thread waits for and an event loop awaits.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from identity_verifier.clocks import Clock
from identity_verifier.refusals import Unreachable, log

T = TypeVar("T")

RETRY_SECONDS: Final = 5.0
_RENEW_AT: Final = 0.8
# An attempt that is older than this has lost its thread (a connection can be kept waiting byte by byte); another may start.
_LOST_SECONDS: Final = 30.0
_all: Final[weakref.WeakSet[Cached[Any]]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A checked answer, the seconds that it is good for, and the ETag to ask again with."""

    value: T = field(repr=False)
    seconds: float
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class _Held(Generic[T]):
    value: T = field(repr=False)
    etag: str | None
    renew_at: float
    until: float
    since: float


class Cached(Generic[T]):
    """`load(value, etag)` gets what is held, and returns what is to be held from now on, or raises Unreachable."""

    def __init__(self, name: str, load: Callable[[T | None, str | None], Loaded[T]], *, elapsed: Clock) -> None:
        self.name = name
        self.attempts = 0
        self.failure: str | None = None
        self._load = load
        self._elapsed = elapsed
        self._held: _Held[T] | None = None
        self._retry_at = 0.0
        self._flight: Future[None] | None = None
        self._flight_since = 0.0
        self._lock = threading.Lock()
        _all.add(self)

    def fresh(self) -> T | None:
        """What is held, while it is fresh; starts its renewal in good time. Never waits."""
        held = self._held
        if held is None:
            return None
        now = self._elapsed()
        if now >= held.until:
            return None
        if now >= held.renew_at and now >= self._retry_at:
            self.renewal()
        return held.value

    def stale(self, *, up_to_seconds: float) -> T | None:
        """What is held, unless its time was over more than `up_to_seconds` ago. Never waits."""
        held = self._held
        return held.value if held is not None and self._elapsed() < held.until + up_to_seconds else None

    def age_seconds(self) -> float | None:
        """The seconds since the issuer last said so."""
        held = self._held
        return None if held is None else self._elapsed() - held.since

    def is_fresh(self) -> bool:
        """Whether what is held may be believed without a doubt; starts nothing."""
        held = self._held
        return held is not None and self._elapsed() < held.until

    def renewal(self, *, even_if_fresh: bool = False) -> Future[None] | None:
        """An attempt to get a new answer: the one in flight, or a new one; None where there is no need, or the last failure is too young.

        The future never raises: look again when it is done. `even_if_fresh` says that what is held is known to be too old.
        """
        with self._lock:
            now = self._elapsed()
            flight = self._flight
            if flight is not None and not flight.done() and now - self._flight_since < _LOST_SECONDS:
                return flight
            # Whoever found nothing a moment ago may come after the attempt that has brought it.
            held = self._held
            is_new = held is not None and now < held.renew_at
            if (is_new or now < self._retry_at) and not even_if_fresh:
                return None
            flight = self._flight = Future()
            # From here on nobody who waits can cancel it, and with it the waiting of all others.
            flight.set_running_or_notify_cancel()
            self._flight_since = now
            self.attempts += 1
        threading.Thread(target=self._fly, args=(flight,), name=f"identity-verifier {self.name}", daemon=True).start()
        return flight

    def drop(self, value: T) -> None:
        """Forget what is held, if it is this."""
        held = self._held
        if held is not None and held.value == value:
            self._held = None

    def in_flight(self) -> Future[None] | None:
        """The attempt that is under way, if there is one; starts nothing."""
        flight = self._flight
        return None if flight is None or flight.done() else flight

    def awaited(self, *, can_go_on: bool) -> Future[None] | None:
        """A renewal to wait for; None where the issuer was just seen not to answer, and the caller can go on without it.

        The renewal goes on behind the scenes then.
        """
        flight = self.renewal()
        return None if self.failure is not None and can_go_on else flight

    def _fly(self, flight: Future[None]) -> None:
        held = self._held
        try:
            loaded = self._load(held.value if held else None, held.etag if held else None)
        except Unreachable as exc:
            self._fail(str(exc))
        except Exception as exc:  # noqa: BLE001 -- see below
            # Whatever a strange answer broke: nobody may wait for ever, and the next attempt may do better.
            log.exception("%s could not be renewed", self.name)
            self._fail(type(exc).__name__)
        else:
            now = self._elapsed()
            if self.failure is not None:
                log.warning("%s: the issuer answers again", self.name)
            self._held = _Held(
                loaded.value, loaded.etag, now + _RENEW_AT * loaded.seconds, now + loaded.seconds, since=now
            )
            self.failure = None
            self._retry_at = 0.0
        finally:
            flight.set_result(None)

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            log.warning("%s could not be renewed: %s", self.name, reason)
        self.failure = reason
        self._retry_at = self._elapsed() + RETRY_SECONDS

    def _forget_flight(self) -> None:
        self._lock = threading.Lock()
        self._flight = None


def _after_fork() -> None:
    # The thread of an attempt stays behind in the parent; a child that waited for it would wait for ever.
    for cached in list(_all):
        cached._forget_flight()  # noqa: SLF001 -- its own module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
