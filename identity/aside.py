"""Work that steps aside while a server answers: how an event loop has many requests under way without a thread for each.

An `Errand` runs on the loop like any call. What it reads from a server goes through a `Channel`: it sends, steps aside, and goes on where
it was when its answer has come; nobody above the two needs to know. What must not be waited for on a loop (a transaction, a lock, a
connection that is still to be made) raises `Elsewhere`, and the work is done again on a thread. See docs/decisions/0012-stepping-aside.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from greenlet import getcurrent, greenlet

from identity import logs

_log: Final = logging.getLogger("identity.aside")
_MOST_WAITING: Final = 32
_TICK_SECONDS: Final = 0.2
_MOST_IDLE: Final = 64
# A context is a thread's, a task's or an errand's own.
_signal: Final[ContextVar[type[Exception] | None]] = ContextVar("signal", default=None)


class Elsewhere(Exception):
    """This needs what an event loop must not wait for; do it again on a thread."""


class Late(Exception):
    """A server has taken what was sent and not answered in time."""


class Errand(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A runner of work that may step aside, one work after the other: a new one for each would cost a mapping of memory.

    No lock may be held while it steps aside: whoever waits for that lock on the same loop would wait for ever.
    """

    def __init__(self, idle: list[Errand]) -> None:
        super().__init__(self._run_each)
        self._idle = idle
        self._work: Callable[[], Any] | None = None
        self._done: Callable[[Any], None] = print

    def start(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do the work until it steps aside or is done; then `done` is called on the loop with what it returned. Neither may raise."""
        self._work, self._done = work, done
        self._settle(self.switch())

    def go_on(self, answer: Any) -> None:
        """Go on with the answer that was waited for."""
        self._settle(self.switch(answer))

    def fail(self, reason: type[Exception]) -> None:
        """Go on with an exception instead."""
        self._settle(self.throw(reason))

    def _run_each(self) -> None:
        while self._work is not None:
            try:
                result = self._work()
            except Exception as exc:  # noqa: BLE001 -- whatever it is, somebody waits for `done`
                logs.event(_log, logging.ERROR, "an errand failed", exc_info=exc)
                result = None
            self._work = None
            self.parent.switch(result)

    def _settle(self, result: Any) -> None:
        if self._work is None:
            done = self._done
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(self)
            done(result)


class Errands:
    """The errands of one loop."""

    def __init__(self) -> None:
        self._idle: list[Errand] = []

    def run(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Begin `work` on an errand. See `Errand.start`."""
        errand = self._idle.pop() if self._idle else Errand(self._idle)
        errand.start(work, done)


def is_errand() -> bool:
    """Whether this runs on an event loop and may step aside."""
    return isinstance(getcurrent(), Errand)


class WithoutWaiting:
    """While it lasts, whatever would wait for a transaction or a lock raises `signal` instead. A class: each hot request enters it."""

    __slots__ = ("_signal", "_token")

    def __init__(self, signal: type[Exception]) -> None:
        self._signal = signal

    def __enter__(self) -> None:
        self._token = _signal.set(self._signal)

    def __exit__(self, *_: object) -> None:
        _signal.reset(self._token)


def refuse_waiting() -> None:
    """Raise the signal of `WithoutWaiting` inside one; said before a wait that an event loop must not know."""
    signal = _signal.get()
    if signal is not None:
        raise signal
    if is_errand():
        raise Elsewhere


class Channel:
    """A connection to a server that answers in the order in which it is asked, watched by the loop that made it.

    Who made it says what is sent and how an answer is read (`receive`). It is lost as a whole: by an error, and when the oldest question
    has waited for `patience` seconds. Whoever waits in it then is told Elsewhere, or Late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, patience: float) -> None:
        self._loop = loop
        # A copy: libpq closes its own when a connection breaks, and the loop must not take its successor's for it.
        try:
            self._descriptor = os.dup(descriptor)
        except OSError:
            self.release()
            raise
        self._patience = patience
        self._waiting: deque[tuple[Errand, float]] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self.is_lost = False
        loop.add_reader(self._descriptor, self._on_readable)

    def __len__(self) -> int:
        """How many wait for an answer."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= _MOST_WAITING

    def step_aside(self) -> Any:
        """The answer to what this errand has just sent. Raises Elsewhere, Late."""
        errand = getcurrent()
        self._waiting.append((errand, self._loop.time() + self._patience))
        self._arm()
        return errand.parent.switch()

    def receive(self) -> None:
        """Read what has arrived, and `deliver` each answer that is whole. Whatever it raises loses the channel."""
        raise NotImplementedError

    def release(self) -> None:
        """Close the connection itself; called once."""
        raise NotImplementedError

    def deliver(self, answer: Any) -> None:
        """Let the errand that has waited longest go on with its answer; it may ask again at once, and lose the channel."""
        errand, _ = self._waiting.popleft()
        errand.go_on(answer)

    def lose(self, reason: type[Exception]) -> None:
        """Give the connection up: nothing more is sent or read."""
        if not self.is_lost:
            self.is_lost = True
            # Not here: an errand that notices must not be left behind for those that wait beside it.
            self._loop.call_soon(self._end, reason)

    def _end(self, reason: type[Exception]) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._alarm is not None:
            self._alarm.cancel()
        self.release()
        while self._waiting:
            errand, _ = self._waiting.popleft()
            errand.fail(reason)

    def _on_readable(self) -> None:
        if self.is_lost:
            return
        try:
            self.receive()
        except Exception:  # noqa: BLE001 -- errors of three libraries and of ours; on a thread each of them is looked at again
            self.lose(Elsewhere)

    def _look_at_the_clock(self) -> None:
        self._alarm = None
        if not self._waiting or self.is_lost:
            return
        if self._waiting[0][1] <= self._loop.time():
            self.lose(Late)
            return
        # uvloop tells of a broken connection once, and not again where there was something to be read before the end.
        self._on_readable()
        self._arm()

    def _arm(self) -> None:
        if self._alarm is None and self._waiting:
            self._alarm = self._loop.call_later(_TICK_SECONDS, self._look_at_the_clock)


class Channels:
    """A few channels to one server, opened on threads when they are wanted: for each question the one in which fewest wait."""

    _RETRY_SECONDS: Final = 1.0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        count: int,
        connect: Callable[[], Any],
        watch: Callable[[asyncio.AbstractEventLoop, Any], Channel],
    ) -> None:
        """`connect` makes a connection, and may wait; `watch` makes a channel of it, on the loop."""
        self._loop = loop
        self._count = count
        self._connect = connect
        self._watch = watch
        self._open: list[Channel] = []
        self._opening = 0
        self._not_before = 0.0

    def choose(self) -> Any:
        """A channel with room. Raises Elsewhere where there is none (yet)."""
        if len(self._open) + self._opening < self._count:
            self._open_another()
        chosen = min(self._open, key=len, default=None)
        if chosen is None or chosen.is_full:
            raise Elsewhere
        if chosen.is_lost:
            self._open.remove(chosen)
            raise Elsewhere
        return chosen

    def _open_another(self) -> None:
        now = self._loop.time()
        if now < self._not_before:
            return
        self._opening += 1
        made = self._loop.run_in_executor(None, self._connect)
        made.add_done_callback(self._opened)

    def _opened(self, made: asyncio.Future[Any]) -> None:
        self._opening -= 1
        try:
            self._open.append(self._watch(self._loop, made.result()))
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 -- of three libraries, or no descriptor is left; threads serve meanwhile
            self._not_before = self._loop.time() + self._RETRY_SECONDS
