"""Running the service: gunicorn's configuration, and the ASGI application that its workers serve.

The `asgi` worker was chosen by measurement: see docs/decisions/0003-asgi-worker.md.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from identity import logs
from identity.app import create_app, endpoints
from identity.core import upkeep
from identity.errors import Refused
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.settings import BadSettings, Settings
from identity.storage import Contention
from identity.wire import metrics
from identity.wire.mounts.connections import die_when_told
from identity.wire.mounts.fastlane import FastLane

_ALLOCATIONS_BEFORE_COLLECTING: Final = 20_000
_MAX_HEADER_BYTES: Final = 16_384
_ADDRESS_PATIENCE_SECONDS: Final = 2
_ENOUGH_DESCRIPTORS: Final = 1_048_576
_log: Final = logging.getLogger("identity.serve")


class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn, configured by our Settings and by nothing else: no file, no command line, no environment of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options: dict[str, Any] = {
            "bind": settings.bind,
            # Of a unix socket, and of nothing else.
            "umask": 0o777 & ~int(settings.socket_mode, 8),
            "workers": settings.worker_count,
            "worker_class": "identity.wire.mounts.connections.Worker",
            "worker_connections": 1000,
            "timeout": 30,
            "graceful_timeout": settings.graceful_stop_seconds,
            "keepalive": settings.keepalive_seconds,
            "limit_request_line": 8190,
            "limit_request_fields": 100,
            "limit_request_field_size": _MAX_HEADER_BYTES,
            "forwarded_allow_ips": "",
            "header_map": "drop",
            "asgi_disconnect_grace_period": 0,  # Work that has begun ends on its thread anyway; a gone connection is not kept for it.
            "control_socket_disable": True,
            "asgi_lifespan": "off",
            "http_parser": "fast",
            "proc_name": "identity",
            "loglevel": settings.log_level,
            "logger_class": Log,
            "post_fork": _await_orders,
            "post_worker_init": _start_upkeep,
            "worker_exit": _stop_upkeep,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> FastLane:
        """The application of one worker; called after the fork, so that no connection crosses it."""
        try:
            rt = create_runtime(self._settings, migrate=False)
        except Exception as exc:
            # Any other way out of here would end the master and the workers that serve; by this one it tries another worker, until the
            # database, or the master key, is back.
            reason = (
                exc.detail
                if isinstance(exc, Refused)
                else str(exc)
                if isinstance(exc, BadSettings)
                else type(exc).__name__
            )
            logs.event(_log, logging.ERROR, "a worker cannot start", reason=reason)
            time.sleep(1)
            raise SystemExit(1) from exc
        return FastLane(rt, endpoints(), create_app(runtime=rt))


class Log(Logger):  # type: ignore[misc]  # see above
    """gunicorn's messages, by the handler that `logs` has given its logger already."""

    def _set_handler(self, *_args: Any, **_options: Any) -> None:
        return


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
            metrics.flush()
            metrics.publish(self._rt)

    def end(self) -> None:
        """Stop, and write down what was only noted."""
        self._stop.set()
        for write in (upkeep.write_notes, upkeep.write_tallies):
            with contextlib.suppress(Refused, Contention):
                write(self._rt)
        logs.flush()
        metrics.flush()
        metrics.publish(self._rt)


def run(settings: Settings, *, announce: Callable[[Runtime], None]) -> None:
    """Prepare the database and the keys, announce what is ready, then serve until told to stop. Raises BadSettings."""
    logs.configure(settings)
    _raise_descriptor_limit()
    _check_address("IDENTITY_BIND", settings.bind)
    if settings.metrics_bind:
        _check_address("IDENTITY_METRICS_BIND", settings.metrics_bind)
    rt = create_runtime(settings)
    announce(rt)
    rt.database.close()
    if settings.metrics_bind:
        _serve_metrics(settings)
    _keep_for_good()
    Service(settings).run()


def _keep_for_good() -> None:
    """What was made so far stays: no collection needs to walk it again, and few requests need any collection."""
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_BEFORE_COLLECTING)
    gc.enable()


def _await_orders(_arbiter: Any, _worker: Any) -> None:
    # The master's handlers, which a fork inherits, would put the master's orders into a queue that nobody here reads.
    die_when_told()


def _start_upkeep(worker: Any) -> None:
    _keep_for_good()
    worker.asgi.serve_aside(worker.loop)
    worker.identity_upkeep = Upkeep(worker.asgi.runtime)


def _stop_upkeep(_arbiter: Any, worker: Any) -> None:
    loop = getattr(worker, "identity_upkeep", None)
    if loop is not None:
        loop.end()


def _serve_metrics(settings: Settings) -> None:
    """Serve the metrics of all workers from the master process, where no request can reach them by the public port."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics.make_shared_folder())
    from prometheus_client import start_http_server  # noqa: PLC0415 -- it reads the variable when imported

    host, _, port = settings.metrics_bind.rpartition(":")
    start_http_server(int(port), host.strip("[]"), metrics.collect_all(settings))


def _raise_descriptor_limit() -> None:
    """Take all the open files that we may have: every connection and every window of a rate limit needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # Some systems state a limit that they do not grant.
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_address(variable: str, text: str) -> None:
    """Raise BadSettings, in words, if nobody can listen there: before anything is made, and before gunicorn waits for it."""
    deadline = time.monotonic() + _ADDRESS_PATIENCE_SECONDS
    while True:
        try:
            _try_to_listen(text)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise BadSettings(f"{variable}: cannot listen on {text}: {exc.strerror}") from exc
            # Whoever was stopped a moment ago may need one more.
            if time.monotonic() > deadline:
                raise BadSettings(
                    f"{variable}: {text} is in use by another program: stop that one, or set another address"
                ) from exc
            time.sleep(0.1)
        else:
            return


def _try_to_listen(text: str) -> None:
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
        if path.exists() and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "a file of that name is no socket")
        # A socket that nobody listens on any more is replaced; one in use would be taken away from its owner.
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(str(path))
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return
    host, _, port = text.rpartition(":")
    with socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host.strip("[]"), int(port)))
