"""Answers that are given again: to the same request, byte for byte, while everything that the first was made from is as it was.

Nothing is decided or spelled here. An ordinary exchange has made the answer and noted its grounds (`grounds`): the reads behind it, what it
counted, when it ends by itself. Its twin is given when the same bytes come from the same peer and each of those reads finds the same; it is
counted, logged and noted like the first, and differs only in its id and in how its window stands. Where a handler has named a last step
(`grounds.note_last_step`: a token is made for each answer), that one is taken anew, by a `Renewal`; one whose last step stands on grounds
of its own (a token that is given again) is spared it while they last. Whatever else, refusals above all, goes the ordinary way. See
docs/decisions/0011-answers-given-again.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from identity import logs
from identity.aside import Elsewhere
from identity.errors import Refused
from identity.grounds import Grounds
from identity.runtime import Runtime
from identity.wire import metrics
from identity.wire.endpoint import Answer, Call, Endpoint, Reply
from identity.wire.exchange import Exchange, fields_of, log_answer
from identity.wire.head import fresh_id

_CAPACITY: Final = 2_048
_CAPACITY_OF_OPEN: Final = 256
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_VARYING: Final = {"X-RateLimit-Remaining": "%(remaining)d", "X-RateLimit-Reset": "%(reset)d"}


class Again(NamedTuple):
    """An answer as it goes out: its status, the header fields that are its own as text, and its body."""

    status: int
    head: str
    body: bytes


class Kept(NamedTuple):
    """An answer with its grounds; `head` has places for what varies."""

    until: datetime
    reads: list[tuple[str, Any, list[Any]]]
    looks: list[tuple[Callable[[], object], object]]
    #: None where nothing is limited.
    hit: tuple[Any, str, str | None] | None
    deeds: list[Callable[[datetime], object]]
    route: str
    #: That the client chose; "" where each answer has an id of its own.
    request_id: str
    logged: str
    head: str
    status: int
    body: bytes


@dataclass(slots=True)
class Renewed:
    """The grounds of an answer whose last step is taken each time; `exchange` carries no credential."""

    until: datetime
    reads: list[tuple[str, Any, list[Any]]]
    looks: list[tuple[Callable[[], object], object]]
    exchange: Exchange
    grounds: Grounds
    #: What the last step made last, where it has said on what that stands.
    steady: Kept | None = None


class Renewal(Exchange):
    """An exchange whose caller was found for an earlier request of the same bytes: it is counted, and only its last step is taken."""

    __slots__ = ("_grounds",)

    def __init__(self, earlier: Exchange, grounds: Grounds) -> None:
        call = earlier.call
        super().__init__(earlier.rt, earlier.endpoint, call.request, call.params, earlier.networks)
        self._grounds = grounds

    def _pass(self, call: Call) -> Reply:
        grounds = self._grounds
        for deed in grounds.deeds:
            deed(self.rt.clock.now())
        policy, key, budget = grounds.hits[0]
        call.limit(policy, key, budget=budget)
        assert grounds.last_step is not None, "kept for it"
        reply: Reply = grounds.last_step(call)
        return reply


class Repeats:
    """The answers of this process that may be given again."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._key = rt.entropy.bytes(32)
        self._kept: dict[tuple[str, bytes], Kept | Renewed] = {}
        # Of their own, and few: whoever asks what is open to all must not push out what others have a right to.
        self._open: dict[tuple[str, bytes], Kept | Renewed] = {}

    def find(self, data: bytes, peer: str, endpoint: Endpoint) -> Kept | Renewed | None:
        """What was kept of the request `data` of `peer` to `endpoint`."""
        kept = self._open if endpoint.is_open else self._kept
        return kept.get(self._name(data, peer)) if kept else None

    def give(self, kept: Kept | Renewed) -> Again | None:
        """The answer that was kept, counted and logged; None where it has to be made the ordinary way."""
        started, rt = time.perf_counter(), self._rt
        now = rt.clock.now()
        try:
            if isinstance(kept, Renewed) and kept.steady is not None and now < kept.steady.until:
                kept = kept.steady
            if now >= kept.until or any(look() != found for look, found in kept.looks):
                return None
            if not rt.database.stand(kept.reads):
                return None
            if isinstance(kept, Renewed):
                return self._renew(kept)
            window = None if kept.hit is None else rt.limiter.hit(kept.hit[0], kept.hit[1], budget=kept.hit[2])
        except (Refused, Elsewhere):
            return None  # A hit that is refused was not counted: it is refused again, in all words.
        for deed in kept.deeds:
            deed(now)
        request_id = kept.request_id or fresh_id(rt)
        varying: dict[str, object] = {"id": request_id}
        if window is not None:
            varying |= {"remaining": window.remaining, "reset": window.reset_at}
        elapsed = time.perf_counter() - started
        rt.given_again += 1
        metrics.observe(kept.route, kept.status, elapsed)
        log_answer(request_id, kept.route, kept.status, elapsed, kept.logged)
        return Again(kept.status, kept.head % varying, kept.body)

    def _renew(self, kept: Renewed) -> Again | None:
        try:
            with self._rt.database.without_writes(Elsewhere), Grounds() as step:
                exchange = Renewal(kept.exchange, kept.grounds)
                answer = exchange.run()
        except Elsewhere:
            return None
        kept.steady = _standing(exchange, answer, step, beside=kept) if _may_stand(exchange, step) else None
        return Again(answer.status, head_of(answer), answer.body)

    def keep(self, data: bytes, peer: str, exchange: Exchange, answer: Answer, grounds: Grounds) -> None:
        """Keep the answer to `data` if all of its grounds are known."""
        if not _may_stand(exchange, grounds):
            return
        name = self._name(data, peer)
        is_open = exchange.endpoint.is_open
        kept, capacity = (self._open, _CAPACITY_OF_OPEN) if is_open else (self._kept, _CAPACITY)
        if len(kept) >= capacity and name not in kept:
            # The oldest half at once, as `epochs.Memory` does.
            for old in list(kept)[: capacity // 2]:
                kept.pop(old, None)
        if grounds.last_step is None:
            kept[name] = _standing(exchange, answer, grounds)
            return
        exchange.forget_credentials()
        kept[name] = Renewed(grounds.until or _NEVER, grounds.reads, grounds.looks, exchange, grounds)

    def _name(self, data: bytes, peer: str) -> tuple[str, bytes]:
        # Keyed, and a digest: what carries credentials is kept by nobody.
        return peer, blake2b(data, digest_size=16, key=self._key).digest()


def _may_stand(exchange: Exchange, grounds: Grounds) -> bool:
    """Whether all of the grounds of an answer are known."""
    if exchange.refused is not None or not grounds.is_complete:
        return False
    if exchange.endpoint.is_open:
        return not grounds.hits and not grounds.reads
    return grounds.until is not None and len(grounds.hits) == 1


def _standing(exchange: Exchange, answer: Answer, grounds: Grounds, *, beside: Renewed | None = None) -> Kept:
    """An answer that stands on its grounds, and on those that are beside them."""
    origin = exchange.call.origin
    is_own = origin.request_id == origin.error_id
    until = grounds.until or _NEVER
    return Kept(
        until=until if beside is None else min(until, beside.until),
        reads=grounds.reads if beside is None else [*beside.reads, *grounds.reads],
        looks=grounds.looks if beside is None else [*beside.looks, *grounds.looks],
        hit=grounds.hits[0] if grounds.hits else None,
        deeds=grounds.deeds,
        route=exchange.endpoint.name,
        request_id="" if is_own else origin.request_id,
        logged=logs.members(fields_of(exchange.call, None)),
        head=head_of(answer._replace(headers=tuple(_opened(answer.headers, is_own=is_own)))),
        status=answer.status,
        body=answer.body,
    )


def _opened(headers: tuple[tuple[str, str], ...], *, is_own: bool) -> list[tuple[str, str]]:
    """Header fields with places for what varies from one answer to the next."""
    varying = _VARYING | {"X-Request-Id": "%(id)s"} if is_own else _VARYING
    return [(name, varying.get(name) or value.replace("%", "%%")) for name, value in headers]


def head_of(answer: Answer, extra_headers: tuple[tuple[str, str], ...] = ()) -> str:
    """An answer's own header fields, as they go over the wire.

    Raises ValueError for a header that would end early and let its value write the response.
    """
    lines = [f"{name}: {value}\r\n" for name, value in answer.headers + extra_headers]
    head = "".join(lines)
    if head.count("\r") != len(lines) or head.count("\n") != len(lines):
        raise ValueError("a line break inside a response header")
    # A 304 has no body, and says nothing of the one that it would have had.
    return f"{head}Content-Length: {len(answer.body)}\r\n" if answer.status != 304 else head
