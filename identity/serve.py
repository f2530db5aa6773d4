"""Running the service: gunicorn's configuration, and the ASGI application that its workers serve.

The `asgi` worker was chosen by measurement: see docs/decisions/0003-asgi-worker.md.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from identity import logs
from identity.app import create_app, endpoints
from identity.core import upkeep
from identity.errors import Refused
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Contention
from identity.wire import metrics
from identity.wire.mounts.fastlane import FastLane

_ALLOCATIONS_BEFORE_COLLECTING: Final = 20_000
_MAX_HEADER_BYTES: Final = 16_384


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
            "worker_class": "identity.wire.mounts.connections.Worker",
            "worker_connections": 1000,
            "timeout": 30,
            "graceful_timeout": settings.graceful_stop_seconds,
            "keepalive": settings.request_timeout_seconds,
            "limit_request_line": 8190,
            "limit_request_fields": 64,
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
                flush(self._rt.database, self._rt.clock.now())
        logs.flush()


def run(settings: Settings, *, announce: Callable[[Runtime], None]) -> None:
    """Prepare the database and the keys, announce what is ready, then serve until told to stop. Raises BadSettings."""
    logs.configure(settings)
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


def _start_upkeep(worker: Any) -> None:
    _keep_for_good()
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
