"""Running the service: gunicorn's configuration, and the ASGI application that its workers serve.

The `asgi` worker was chosen by measurement: see docs/decisions/0003-asgi-worker.md.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.asgi.parser import PythonProtocol
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.glogging import Logger
from gunicorn.workers import gasgi

from identity import logs
from identity.app import create_app, endpoints
from identity.core import upkeep
from identity.errors import Refused
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Contention
from identity.wire import metrics
from identity.wire.fastlane import FastLane

_ALLOCATIONS_BEFORE_COLLECTING: Final = 20_000
_DRAIN_SECONDS: Final = 1.0
_MAX_HEADER_BYTES: Final = 16_384
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*(?=\r\n|$)")


class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn, configured by our Settings and by nothing else: no file, no command line, no environment of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options: dict[str, Any] = {
            "bind": settings.bind,
            "workers": settings.worker_count,
            "worker_class": "identity.serve.Worker",
            "worker_connections": 1000,
            "timeout": 30,
            "graceful_timeout": settings.graceful_stop_seconds,
            "keepalive": settings.request_timeout_seconds,
            "limit_request_line": 8190,
            "limit_request_fields": 64,
            "limit_request_field_size": _MAX_HEADER_BYTES,
            "forwarded_allow_ips": "",
            "header_map": "drop",
            "control_socket_disable": True,
            "asgi_lifespan": "off",
            "http_parser": "fast",
            "proc_name": "identity",
            "loglevel": settings.log_level,
            "logger_class": Log,
            "post_worker_init": _start_upkeep,
            "worker_exit": _stop_upkeep,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> FastLane:
        """The application of one worker; called after the fork, so that no connection crosses it."""
        try:
            rt = create_runtime(self._settings, migrate=False)
        except Refused as exc:
            # Any other way out of here would end the master too; by this one it tries another worker, until the database is back.
            time.sleep(1)
            raise SystemExit(1) from exc
        return FastLane(rt, endpoints(), create_app(runtime=rt))


class Log(Logger):  # type: ignore[misc]  # see above
    """gunicorn's messages, by the handler that `logs` has given its logger already."""

    def _set_handler(self, *_args: Any, **_options: Any) -> None:
        return


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # see above
    """gunicorn's asgi worker, speaking `Connection`."""

    is_draining = False

    def init_process(self) -> None:
        # Asked of the base class, which then knows gunicorn_h1c: asked of a subclass, it would settle for the parser in Python.
        ASGIProtocol._check_h1c_protocol_available()  # noqa: SLF001 -- it has no public way
        gasgi.ASGIProtocol = Connection  # The worker offers no other way to name its protocol.
        super().init_process()

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

    _callback_parser: Any
    _is_lenient: bool
    _body_left: int

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # gunicorn times every request head of a connection but the first: a slow client could hold that one for ever.
        self._arm_keepalive_timer()

    def data_received(self, data: bytes) -> None:
        """Read plain requests with the parser in C and everything else with the strict one in Python.

        The C parser takes bare line feeds, folded headers and odd chunk extensions for what they might mean, where a proxy in front may
        read another request than we do. So it gets to see only what has no two readings: a whole head with clean line ends, no
        transfer coding, and a body of the announced length. The first other thing puts the connection in strict hands for good.
        """
        if self._is_lenient and not self._is_plain(data):
            if self._current_request is not None:
                self._close_transport()  # Behind a request under way no other parser can take over, nor any answer be told apart.
                return
            self._read_strictly()
        super().data_received(data)

    def _is_plain(self, data: bytes) -> bool:
        if self._body_left:
            self._body_left -= len(data)
            return self._body_left >= 0
        body_left = _body_left_of(data)
        self._body_left = body_left or 0
        return body_left is not None

    def _setup_callback_parser(self) -> None:
        super()._setup_callback_parser()
        self._is_lenient = not isinstance(self._callback_parser, PythonProtocol)
        self._body_left = 0

    def _read_strictly(self) -> None:
        """Between two requests: let the parser in Python read from here on."""
        self._is_lenient = False
        cfg = self.cfg
        self._callback_parser = PythonProtocol(
            on_headers_complete=self._on_headers_complete,
            on_body=self._on_body,
            on_message_complete=self._on_message_complete,
            limit_request_line=cfg.limit_request_line,
            limit_request_fields=cfg.limit_request_fields,
            limit_request_field_size=cfg.limit_request_field_size,
        )

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        return bool(self.worker.is_draining or super()._will_close(request, response_requires_close))

    def _is_websocket_upgrade(self, _request: Any) -> bool:
        return False  # We speak none: such a request is an ordinary one (RFC 9110 section 7.8).

    def _send_error_response(self, status: int, message: str, extra_headers: Any = ()) -> None:
        # `message` may quote the request: it goes nowhere.
        if self._closed:
            return
        peer = self.transport.get_extra_info("peername")
        answer = self.app.refuse_unread(status, peer[0] if isinstance(peer, tuple) else "")
        fixed = (("Connection", "close"), ("Content-Length", str(len(answer.body))))
        lines = [f"{name}: {value}\r\n" for name, value in (*answer.headers, *extra_headers, *fixed)]
        head = f"HTTP/1.1 {status} {self._get_reason_phrase(status)}\r\n{''.join(lines)}\r\n"
        self._safe_write(head.encode("latin-1") + answer.body)


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


class Upkeep:
    """The background threads of one worker."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._stop = threading.Event()
        upkeep.start(rt, self._stop)
        threading.Thread(target=self._flush_logs, name="logs", daemon=True).start()

    def _flush_logs(self) -> None:
        while not self._stop.wait(logs.FLUSH_SECONDS):
            logs.flush()

    def end(self) -> None:
        """Stop, and write down what was only noted."""
        self._stop.set()
        for flush in (self._rt.usage.flush, self._rt.explanations.flush):
            with contextlib.suppress(Refused, Contention):
                flush(self._rt)
        logs.flush()


def run(settings: Settings, *, announce: Callable[[Runtime], None]) -> None:
    """Prepare the database and the keys, announce what is ready, then serve until told to stop. Raises BadSettings."""
    logs.configure(settings)
    rt = create_runtime(settings)
    announce(rt)
    rt.database.close()
    if settings.metrics_bind:
        _serve_metrics(settings)
    Service(settings).run()


def _start_upkeep(worker: Any) -> None:
    # What was made so far stays for good: no collection needs to walk it again, and few requests need any collection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_BEFORE_COLLECTING)
    worker.identity_upkeep = Upkeep(worker.asgi.runtime)


def _stop_upkeep(_arbiter: Any, worker: Any) -> None:
    loop = getattr(worker, "identity_upkeep", None)
    if loop is not None:
        loop.end()


def _serve_metrics(settings: Settings) -> None:
    """Serve the metrics of all workers from the master process, where no request can reach them by the public port."""
    folder = tempfile.mkdtemp(prefix="identity-metrics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    from prometheus_client import start_http_server  # noqa: PLC0415 -- it reads the variable when imported

    host, _, port = settings.metrics_bind.rpartition(":")
    start_http_server(int(port), host.strip("[]"), metrics.collect_all(settings))
