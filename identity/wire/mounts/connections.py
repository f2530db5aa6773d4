"""What a worker speaks on its sockets: HTTP/1.1 by gunicorn's asgi protocol, with three guards of ours and one short cut.

The guards: a connection is bounded in time from its first byte on, only plain requests reach the parser in C, and clients are told before
a worker stops. The short cut: a whole request for a hot endpoint is answered where its bytes arrive, without a task, a future or a
message; one that waits for a database steps aside. See docs/decisions/0003-asgi-worker.md.
"""

from __future__ import annotations

import re
import signal
from functools import partial
from typing import Any, Final

from gunicorn.asgi import protocol
from gunicorn.asgi.parser import PythonProtocol
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi
from gunicorn_h1c import H1CProtocol

from identity.wire.endpoint import MAX_BODY, Answer, Endpoint, Request
from identity.wire.exchange import Exchange
from identity.wire.mounts.fastlane import FastLane, headers_of
from identity.wire.repeats import Again, head_of

_DRAIN_SECONDS: Final = 1.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*(?=\r\n|$)")
_VISIBLE: Final = re.compile(rb"[\x21-\x7e]*")


def die_when_told() -> None:
    """Let the signals that end a worker end this process, whatever handlers it has inherited."""
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's asgi worker, speaking `Connection`."""

    is_draining = False

    def init_process(self) -> None:
        # Asked of the base class, which then knows gunicorn_h1c: asked of a subclass, it would settle for the parser in Python.
        ASGIProtocol._check_h1c_protocol_available()  # noqa: SLF001 -- it has no public way
        gasgi.ASGIProtocol = Connection  # The worker offers no other way to name its protocol.
        super().init_process()

    def init_signals(self) -> None:
        """A worker that is told to go before it serves goes at once; one that serves, by gunicorn's handlers.

        gunicorn installs them on a loop that does not run yet, where a signal is forgotten: the master would wait for such a worker
        until its patience ends.
        """
        die_when_told()
        self.loop.call_soon(super().init_signals)

    async def _shutdown(self) -> None:
        # Set by a signal, but not when the master has died: its orphans would go on promising keep-alive.
        self.alive = False
        await super()._shutdown()

    def handle_exit_signal(self) -> None:
        """Stop, but tell clients first.

        For a second every answer says `Connection: close`, so that no client sends its next request on a connection that is being closed
        between the two: gunicorn alone can close one just after promising to keep it.
        """
        self.is_draining = True
        self.loop.call_later(_DRAIN_SECONDS, super().handle_exit_signal)


class Connection(ASGIProtocol):  # type: ignore[misc]  # see above
    """One client's connection: bounded in time from its first byte on, and refused in our envelope where it speaks no HTTP."""

    app: FastLane
    _callback_parser: Any
    _is_lenient: bool
    _body_left: int
    _limits: dict[str, int]
    _peer = ""
    _answered_at = 0.0
    _has_begun = False
    _is_half_closed = False
    _begun: Exchange | None = None
    _is_aside = False
    _early = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        # gunicorn times every request head of a connection but the first: a slow client could hold that one for ever.
        self._arm_patience()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # It holds our callbacks, and the garbage collector cannot look inside it: each connection would leave ten kilobytes for ever.
        self._callback_parser = None

    def data_received(self, data: bytes) -> None:
        """Answer at once what can be; read other plain requests with the parser in C, and everything else with the strict one in Python.

        The C parser takes bare line feeds, folded headers and odd chunk extensions for what they might mean, where a proxy in front may
        read another request than we do. So it gets to see only what has no two readings: a whole head with clean line ends, no
        transfer coding, and a body of the announced length. The first other thing puts the connection in strict hands for good.
        """
        if self._is_aside:
            # The next request, before this one is answered: not before its turn, and no more of it than one reading.
            self._early += data
            self._pause_reading()
            return
        if self._current_request is None:
            self._begun = None  # An exchange is finished by the request that began it, or by none.
        endpoint = None
        if self._is_lenient and not self._body_left and self._is_idle():
            endpoint = self.app.find_quick(_line_of(data))
            # Only where there may be an answer: finding one costs a digest of the request.
            if endpoint is not None and endpoint.repeats:
                kept = self.app.repeats.find(data, self._peer, endpoint)
                if kept is not None:
                    self._is_aside = True
                    again = partial(self._answered_again, data, endpoint)
                    self.app.do_soon(partial(self.app.repeats.give, kept), again)
                    return
        self._take(data, endpoint)

    def _take(self, data: bytes, endpoint: Endpoint | None) -> None:
        """Read `data`; `endpoint`: the one whose request begins with it, if it can be answered at once."""
        if self._is_lenient:
            if not self._is_plain(data):
                if self._current_request is not None:
                    self._close_transport()  # Behind a request under way no other parser can take over, nor any answer be told apart.
                    return
                self._read_strictly()
            elif endpoint is not None and not self._body_left and self._answer_soon(data, endpoint):
                return
        super().data_received(data)

    def eof_received(self) -> bool:
        """The client sends no more: keep the way back open as long as a whole request waits for its answer."""
        body = self._body_receiver
        is_whole = self._current_request is not None and body is not None and body._complete  # noqa: SLF001 -- as gunicorn asks it
        self._is_half_closed = self._is_aside or is_whole
        return self._is_half_closed

    def _feed_callback_parser(self, data: bytes) -> bool:
        """A connection may idle for long, but a head that has begun must be whole in the time for a request."""
        goes_on: bool = super()._feed_callback_parser(data)
        if self._current_request is not None:
            self._has_begun = False
        elif goes_on and not self._has_begun:
            self._has_begun = True
            self._arm_patience()
        return goes_on

    def _arm_keepalive_timer(self) -> None:
        # The beginning of the next request may have come together with the last one.
        if self._is_half_closed:
            # It had its answer before it closed its side, so nobody waits for another; a stop would wait for it.
            super()._keepalive_timeout()
        elif self._has_begun:
            self._arm_patience()
        else:
            super()._arm_keepalive_timer()

    def _arm_patience(self) -> None:
        self._cancel_keepalive_timer()
        patience = self.app.runtime.settings.request_timeout_seconds
        self._keepalive_handle = self.worker.loop.call_later(patience, self._keepalive_timeout)

    def _is_plain(self, data: bytes) -> bool:
        if self._body_left:
            self._body_left -= len(data)
            return self._body_left >= 0
        body_left = _body_left_of(data)
        self._body_left = body_left or 0
        return body_left is not None

    def _is_idle(self) -> bool:
        """Whether no request is under way, nobody is told to go, and the client takes what it is sent."""
        return (
            self._current_request is None
            and not self._closed
            and self.worker.alive
            and not self.worker.is_draining
            and not self._flow_control.write_paused
        )

    def _answer_soon(self, data: bytes, endpoint: Endpoint) -> bool:
        """Answer a whole plain request for a hot endpoint that needs no thread, at once or later; tell whether it was one."""
        request = self._plain_request(data, endpoint)
        if request is None:
            return False
        exchange = self.app.begin(endpoint, request)
        self._is_aside = True
        self.app.do_soon(
            partial(self.app.answer_quickly, exchange, data, self._peer), partial(self._answered, exchange, data)
        )
        return True

    def _answered(self, exchange: Exchange, data: bytes, answer: Answer | None) -> None:
        """Send the answer, or let gunicorn take the request where it needs a thread; then read on."""
        self._is_aside = False
        if answer is not None:
            self._send(_as_http(answer, self._last_words()))
        elif not self._closed:
            self._begun = exchange
            super().data_received(data)
        self._read_on()

    def _answered_again(self, data: bytes, endpoint: Endpoint, again: Again | None) -> None:
        """Send the answer, or make it the ordinary way where it no longer stands; then read on."""
        self._is_aside = False
        if again is not None:
            head = "".join([again.head, *(f"{name}: {value}\r\n" for name, value in self._last_words())])
            self._send(_response(again.status, head, again.body))
        elif not self._closed:
            self._take(data, endpoint if self._is_idle() else None)
        self._read_on()

    def _last_words(self) -> tuple[tuple[str, str], ...]:
        return (("Connection", "close"),) if self._is_last() else ()

    def _is_last(self) -> bool:
        """Whether the connection ends with this answer: it was told to go, or has closed its side, while it waited."""
        return bool(self.worker.is_draining or self._is_half_closed)

    def _send(self, response: bytes) -> None:
        if self._closed:
            return
        self._safe_write(response)
        self._answered_at = self.worker.loop.time()
        if self._is_last():
            self._close_transport()

    def _read_on(self) -> None:
        """Take what came while a request waited for its answer."""
        if self._early and not self._is_aside and not self._closed:
            early, self._early = self._early, b""
            self._resume_reading()
            self.data_received(early)

    def _plain_request(self, data: bytes, endpoint: Endpoint) -> Request | None:
        """The whole request in `data`, or None for one that gunicorn must look at: refuse, close after, or answer with a 100 first."""
        chunks: list[bytes] = []
        parser = H1CProtocol(on_body=chunks.append, **self._limits)
        try:
            parser.feed(data)
        except Exception:  # noqa: BLE001 -- it raises several unrelated classes; gunicorn will see the same and tell them apart
            return None
        if not parser.is_complete or not parser.should_keep_alive or parser.http_version != (1, 1):
            return None
        raw = parser.asgi_headers
        if not _VISIBLE.fullmatch(parser.path) or any(b"_" in name or name == b"expect" for name, _ in raw):
            return None
        path, _, query = parser.path.decode("ascii").partition("?")
        body = b"".join(chunks)
        limit = 0 if endpoint.ignores_body else MAX_BODY
        return Request(
            method=parser.method.decode("ascii"),
            target=path,
            path=path,
            query=query,
            headers=headers_of(raw),
            body=body if len(body) <= limit else None,
            peer=self._peer,
        )

    def _build_http_scope(self, *request: Any) -> dict[str, Any]:
        scope: dict[str, Any] = super()._build_http_scope(*request)
        scope["identity.begun"], self._begun = self._begun, None
        return scope

    def _keepalive_timeout(self) -> None:
        # Answers at once do not wind the clock, they leave a note for when it rings.
        left = self._keepalive if self._is_aside else self._answered_at + self._keepalive - self.worker.loop.time()
        if left > 0 and not self._has_begun:
            self._keepalive_handle = self.worker.loop.call_later(left, self._keepalive_timeout)
        else:
            super()._keepalive_timeout()

    def _setup_callback_parser(self) -> None:
        super()._setup_callback_parser()
        self._is_lenient = not isinstance(self._callback_parser, PythonProtocol)
        self._body_left = 0
        names = ("limit_request_line", "limit_request_fields", "limit_request_field_size")
        self._limits = {name: getattr(self.cfg, name) for name in names}

    def _read_strictly(self) -> None:
        """Between two requests: let the parser in Python read from here on."""
        self._is_lenient = False
        self._callback_parser = PythonProtocol(
            on_headers_complete=self._on_headers_complete,
            on_body=self._on_body,
            on_message_complete=self._on_message_complete,
            **self._limits,
        )

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        return bool(
            self.worker.is_draining or self._is_half_closed or super()._will_close(request, response_requires_close)
        )

    def _is_websocket_upgrade(self, _request: Any) -> bool:
        return False  # We speak none: such a request is an ordinary one (RFC 9110 section 7.8).

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        # `message` may quote the request: it goes nowhere.
        if self._closed:
            return
        answer = self.app.refuse_unread(status, self._peer)
        self._safe_write(_as_http(answer, (*extra_headers, ("Connection", "close"))))


def _line_of(data: bytes) -> bytes:
    """The method and the path of a request that begins with `data`, as it spells them."""
    return data[: data.find(b" ", data.find(b" ") + 1)].partition(b"?")[0]


def _body_left_of(data: bytes) -> int | None:
    """How much body is still to come after `data`, if that is one plain request head and no more than its body; else None."""
    head, end, body = data.partition(b"\r\n\r\n")
    lines = head.count(b"\r\n")
    folded = b"\r\n " in head or b"\r\n\t" in head
    if not end or folded or head.count(b"\n") != lines or head.count(b"\r") != lines:
        return None
    lowered = head.lower()
    if b"transfer-encoding" in lowered:
        return None
    announced = _LENGTH.findall(lowered)
    if len(announced) > 1 or (not announced and b"content-length" in lowered):
        return None
    left = (int(announced[0]) if announced else 0) - len(body)
    return left if left >= 0 else None


def _as_http(answer: Answer, extra_headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """`answer` as it goes over the wire. Raises ValueError as `head_of` does."""
    return _response(answer.status, head_of(answer, extra_headers), answer.body)


def _response(status: int, head: str, body: bytes) -> bytes:
    start = protocol._get_cached_status_line((1, 1), status)  # noqa: SLF001 -- as gunicorn writes the others
    fixed = protocol._CACHED_SERVER_HEADER + protocol._get_cached_date_header()  # noqa: SLF001 -- see above
    return b"%b%b%b\r\n%b" % (start, head.encode("latin-1"), fixed, body)
