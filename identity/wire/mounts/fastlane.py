"""The ASGI mount: the hot endpoints below Flask, and Flask itself for everything else.

Requests are read whole, bounded in size and time, before anything works on them, so that a slow client holds a few kilobytes and no
thread. A hot endpoint then runs on the event loop: at once when the databases are on this host (its reads take microseconds), else it
steps aside while they answer; one that turns out to need a transaction is run again on a thread. Flask gets a bounded number of threads;
what they cannot take is told to come back.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from identity.aside import Elsewhere, Errands
from identity.errors import INTERNAL, UNAVAILABLE, UNREADABLE, Refused
from identity.grounds import Grounds
from identity.runtime import Runtime
from identity.wire.endpoint import ENVELOPE, MAX_BODY, Answer, Endpoint, Request
from identity.wire.exchange import Exchange, refuse_outside
from identity.wire.head import networks_of
from identity.wire.repeats import Repeats

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
_PARAMETER: Final = re.compile(r"(?<=/)\{(\w+)\}$", re.ASCII)
# What is spelled in one way only. Flask's routing decides over everything else.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_WAITING_FOR_EACH_THREAD: Final = 32
_LONGEST_SECONDS: Final = 12  # Longer than a statement may take (`engines.STATEMENT_SECONDS`).


class FastLane:
    """An ASGI application over a Runtime, its endpoints and the Flask application that mounts all of them."""

    def __init__(self, rt: Runtime, endpoints: Iterable[Endpoint], flask: Callable[..., Iterable[bytes]]) -> None:
        self.runtime = self._rt = rt
        self._flask = flask
        self._networks = networks_of(rt.settings.trusted_proxies)
        self._hot: dict[tuple[str, str], Endpoint] = {}
        for endpoint in endpoints:
            methods = ("GET", "POST", "PUT", "PATCH", "DELETE") if endpoint.any_method else (endpoint.method,)
            if endpoint.hot:
                # A path may end in one parameter, which stands here as `{}`.
                self._hot |= {
                    (method, prefix + _PARAMETER.sub("{}", endpoint.path)): endpoint
                    for prefix in endpoint.mounts
                    for method in methods
                }
        self.repeats = Repeats(rt)
        self._pool = ThreadPoolExecutor(rt.settings.threads, "identity")
        # Routes behind this lane that take more than the rest.
        self._large = {
            (endpoint.method, prefix + endpoint.path): endpoint
            for endpoint in endpoints
            if endpoint.max_body > MAX_BODY
            for prefix in endpoint.mounts
        }
        self._capacity = rt.settings.threads * _WAITING_FOR_EACH_THREAD
        self._under_way = 0
        self._errands: Errands | None = None
        self._quick = self._quick_ways(may_step_aside=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"no {scope['type']} here")  # What the ASGI specification asks for.
        endpoint = self._find(scope["method"], scope["path"])
        try:
            large = self._large.get((scope["method"], scope["path"])) if endpoint is None else None
            if large is not None and (refusal := await self._turn_away(scope, large)) is not None:
                await _send_answer(refusal, send)
                return
            limit = MAX_BODY if large is None else large.max_body
            body = await self._read(scope, receive, limit if endpoint is None or not endpoint.ignores_body else 0)
        except ConnectionResetError:
            return  # Nobody is left to answer to.
        except TimeoutError:
            late = Refused(UNREADABLE.saying("The request body did not arrive in time", status=408))
            await _send_answer(refuse_outside(self._rt, _request(scope, b""), late, ENVELOPE, self._networks), send)
            return
        try:
            if endpoint is None:
                await self._pass_on(scope, body, send)
            else:
                await _send_answer(await self._answer(scope, endpoint, body), send)
        except Refused as refused:
            shape = ENVELOPE if endpoint is None else endpoint.shape
            await _send_answer(refuse_outside(self._rt, _request(scope, body), refused, shape, self._networks), send)

    async def _turn_away(self, scope: Scope, endpoint: Endpoint) -> Answer | None:
        """The refusal of whoever may not send a large body; nothing of it is read."""
        request = _request(scope, b"")
        try:
            return await self._on_thread(Exchange(self._rt, endpoint, request, {}, self._networks).turn_away)
        except Refused as refused:
            return refuse_outside(self._rt, request, refused, endpoint.shape, self._networks)

    def refuse_unread(self, status: int, peer: str) -> Answer:
        """The answer to what could not be read as an HTTP request; `status` is what the parser says of it."""
        problem = INTERNAL if status == INTERNAL.status else UNREADABLE.saying(UNREADABLE.message, status=status)
        nothing = Request("-", "/", "/", "", {"host": "unread"}, b"", peer)
        return refuse_outside(
            self._rt, nothing, Refused(problem, detail="not an HTTP request"), ENVELOPE, self._networks
        )

    def serve_aside(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let hot endpoints whose databases are elsewhere be answered on this loop: their requests step aside while those answer."""
        if not self._rt.settings.is_embedded and self._rt.database.serve_aside(loop):
            self._rt.limiter.serve_aside(loop)
            self._errands = Errands()
            self._quick = self._quick_ways(may_step_aside=True)

    def find_quick(self, line: bytes) -> Endpoint | None:
        """The hot endpoint of this method and path, as a request line spells them, that needs no thread to wait in; or None."""
        found = self._quick.get(line)
        if found is not None:
            return found
        parent, _, last = line.rpartition(b"/")
        return self._quick.get(parent + b"/{}") if _PLAIN.fullmatch(last.decode("latin-1")) else None

    def _quick_ways(self, *, may_step_aside: bool) -> dict[bytes, Endpoint]:
        return {
            f"{method} {path}".encode(): endpoint
            for (method, path), endpoint in self._hot.items()
            if self._is_immediate(endpoint) or (may_step_aside and not endpoint.writes)
        }

    def begin(self, endpoint: Endpoint, request: Request) -> Exchange:
        """The exchange of a request with a hot endpoint."""
        parameter = _PARAMETER.search(endpoint.path)
        params = {parameter[1]: request.path.rpartition("/")[2]} if parameter else {}
        return Exchange(self._rt, endpoint, request, params, self._networks)

    def do_soon(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Call `done` with what quick work returns: now, or when the databases that it steps aside for have answered."""
        if self._errands is None:
            done(work())
        else:
            self._errands.run(work, done)

    def answer_quickly(self, exchange: Exchange, data: bytes, peer: str) -> Answer | None:
        """As `answer_at_once`; an answer to `data` that may be given again is kept."""
        if not exchange.endpoint.repeats:
            return self.answer_at_once(exchange)
        with Grounds() as grounds:
            answer = self.answer_at_once(exchange)
        if answer is not None:
            self.repeats.keep(data, peer, exchange, answer, grounds)
        return answer

    def answer_at_once(self, exchange: Exchange) -> Answer | None:
        """The answer of an immediate endpoint, or None where it has to wait after all, because it must write."""
        try:
            with self._rt.database.without_writes(Elsewhere):
                return exchange.run()
        except Elsewhere:
            return None

    def _find(self, method: str, path: str) -> Endpoint | None:
        found = self._hot.get((method, path))
        if found is not None:
            return found
        parent, _, last = path.rpartition("/")
        return self._hot.get((method, parent + "/{}")) if _PLAIN.fullmatch(last) else None

    def _is_immediate(self, endpoint: Endpoint) -> bool:
        # Public keys and liveness must not queue behind a database that hangs.
        return (self._rt.settings.is_embedded and not endpoint.writes) or endpoint.is_open

    async def _answer(self, scope: Scope, endpoint: Endpoint, body: bytes | None) -> Answer:
        # A connection may have begun already what turned out to write: it must not be counted again.
        exchange: Exchange | None = scope.get("identity.begun")
        if exchange is None or exchange.endpoint is not endpoint:
            exchange = self.begin(endpoint, _request(scope, body))
            answer = self.answer_at_once(exchange) if self._is_immediate(endpoint) else None
            if answer is not None:
                return answer
        return await self._on_thread(exchange.run)

    async def _pass_on(self, scope: Scope, body: bytes | None, send: Send) -> None:
        status, headers, content = await self._on_thread(lambda: _run_wsgi(self._flask, scope, body))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises Refused(UNAVAILABLE) when no thread can take it, or it waits for a part that hangs."""
        if self._under_way >= self._capacity:
            raise Refused(UNAVAILABLE, detail="every thread is busy", retry_after_seconds=1)
        self._under_way += 1
        under_way = asyncio.get_running_loop().run_in_executor(self._pool, work)
        under_way.add_done_callback(self._count_down)
        # A server that takes our bytes and never answers trips no timeout of its driver. The thread is its hostage, the client is not.
        await asyncio.wait({under_way}, timeout=_LONGEST_SECONDS)
        if not under_way.done():
            raise Refused(UNAVAILABLE, detail="no answer in time", retry_after_seconds=1)
        return under_way.result()

    def _count_down(self, finished: asyncio.Future[Any]) -> None:
        self._under_way -= 1
        if not finished.cancelled():
            finished.exception()  # Looked at, in case nobody waits for it any more.

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes | None:
        """The whole body, or None where it is over the limit. Raises TimeoutError for a client that does not finish in time."""
        length, chunked = None, False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                chunked = True
        if (length is None or length == b"0") and not chunked:
            return b""
        if length is not None and length.isdigit() and int(length) > limit:
            return None
        async with asyncio.timeout(self._rt.settings.request_timeout_seconds):
            body = b""
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError("the client left")
                chunk: bytes = message.get("body", b"")
                body += chunk
                if len(body) > limit:
                    return None
                if not message.get("more_body", False):
                    return body


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The header fields of a request as text, repeated ones joined by commas (RFC 9110 section 5.3). Names come in lower case."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _request(scope: Scope, body: bytes | None) -> Request:
    client = scope.get("client")
    raw_path = scope.get("raw_path") or scope["path"].encode()
    return Request(
        method=scope["method"],
        target=raw_path.decode("latin-1"),
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=headers_of(scope["headers"]),
        body=body,
        peer=client[0] if client else "",
        version=scope.get("http_version", "1.1"),
    )


async def _send_answer(answer: Answer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if answer.status != 304:
        headers.append((b"Content-Length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _run_wsgi(
    app: Callable[..., Iterable[bytes]], scope: Scope, body: bytes | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Run one request through a WSGI application whose answers are small and whole."""
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Callable[[bytes], object]:
        started[:] = [int(status[:3]), [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]]
        return lambda _data: None

    result = app(_environ(scope, body), start_response)
    try:
        content = b"".join(result)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    return started[0], started[1], content


def _environ(scope: Scope, body: bytes | None) -> dict[str, Any]:
    read = _request(scope, body)
    server = scope.get("server") or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": read.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(read.target.partition("?")[0]).decode("latin-1"),
        "QUERY_STRING": read.query,
        "RAW_URI": read.target,
        "SERVER_NAME": server[0] or "localhost",
        "SERVER_PORT": str(server[1] or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": read.peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body or b""),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        # A body that was over the limit shows as one: Flask's mount refuses it by its length.
        "CONTENT_LENGTH": str(len(body)) if body is not None else str(MAX_BODY + 1),
    }
    for name, value in read.headers.items():
        if name == "content-type":
            environ["CONTENT_TYPE"] = value
        elif name not in ("content-length", "transfer-encoding"):
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ
