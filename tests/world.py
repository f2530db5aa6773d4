"""What tests arrange a service with: a clock and a mailbox of ours, an in-process client, a real server process."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from pathlib import Path
from typing import Any

import requests
from flask import Flask
from sqlalchemy import select
from werkzeug.test import TestResponse

from identity.ambient import Origin
from identity.app import create_runtime
from identity.core.mail import outbox
from identity.core.proofs.attempts import Meter
from identity.runtime import Runtime
from identity.settings import Settings
from tests import recorded

MASTER_KEY = "aWRlbnRpdHkgdGVzdCBtYXN0ZXIga2V5ISAzMmJ5dGU="  # 32 bytes; opens the template databases of every test
ORIGIN = Origin(
    address="192.0.2.1", user_agent="pytest", request_id="test", error_id="00000000-0000-4000-8000-000000000000"
)
_PORTS = 200
CODE = re.compile(r"(?<![0-9])([0-9]{6})(?![0-9])")


class FakeClock:
    """Stands still until `tick`; starts at the real present, because signed tokens are read by other people's libraries too."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)

    def now(self) -> datetime:
        return self._now

    def tick(self, seconds: float = 1) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass
class Mailbox:
    """A Mailer that keeps what it was given."""

    mails: list[EmailMessage] = field(default_factory=list)

    def send(self, message: EmailMessage) -> None:
        self.mails.append(message)


def code_in(message: EmailMessage) -> str:
    """The six digits in a mail."""
    body = message.get_body(("plain",))
    assert body is not None
    found = CODE.search(body.get_content())
    assert found, "no code in the mail"
    return found[1]


def fast_settings(**changes: Any) -> Settings:
    """Settings for tests: cheap hashes, limits off, one fixed master key."""
    off = {f"limit_{policy}": "off" for policy in ("auth", "application", "standard", "ai_assisted", "bulk_upload")}
    defaults: dict[str, Any] = {
        "argon2_memory_kib": 8,
        "argon2_time_cost": 1,
        "master_keys": (MASTER_KEY,),
        "threads": 4,
        **off,
    }
    return Settings(**{**defaults, **changes})


def open_guesses(rt: Runtime) -> list[str]:
    """The reservations of guesses that did not end: of each counter that has any, in the words of its row."""
    with rt.database.reading() as session:
        return list(session.scalars(select(Meter.pending).where(Meter.pending != "{}")))


@functools.cache
def migrated_sqlite(home: Path) -> Path:
    """A migrated SQLite database with keys in it, to copy."""
    path = home / "template.db"
    runtime = create_runtime(fast_settings(database_url=f"sqlite:///{path}"))
    with runtime.database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    runtime.database.close()
    return path


class Web:
    """The Flask application, as a client sees it, with time and mail at hand."""

    def __init__(self, app: Flask, rt: Runtime, mailbox: Mailbox, clock: FakeClock) -> None:
        self.app = app
        self.rt = rt
        self.mailbox = mailbox
        self.clock = clock

    def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        bearer: str = "",
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        sent = {"Host": "auth.example"} | dict(headers or {})
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"
        if json is not None:
            options["json"] = json
        answer = self.app.test_client(use_cookies=False).open(path, method=method, headers=sent, **options)
        recorded.hear(self.app, method, path, answer)
        return answer

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.call("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("POST", path, json, **options)

    def put(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("PUT", path, json, **options)

    def patch(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("PATCH", path, json, **options)

    def delete(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("DELETE", path, json, **options)

    def mails(self) -> list[EmailMessage]:
        """Everything sent so far; what is due is sent first."""
        outbox.deliver_due(self.rt)
        return self.mailbox.mails

    def last_code(self) -> str:
        """The code in the newest mail."""
        return code_in(self.mails()[-1])


@dataclass
class Live:
    """A running server process, and a Runtime over the same database to arrange and inspect with."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    rt: Runtime
    log: Path
    environment: dict[str, str]

    def call(
        self, method: str, path: str, *, bearer: str = "", headers: Mapping[str, str] | None = None, **options: Any
    ) -> requests.Response:
        sent = dict(headers or {})
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"
        return requests.request(method, self.url + path, headers=sent, timeout=30, allow_redirects=False, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.call("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> requests.Response:
        return self.call("POST", path, json=json, **options)

    def raw(self, data: bytes, *, timeout: float = 10) -> bytes:
        """What the server answers to these bytes, until it closes or falls silent."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while chunk := connection.recv(65536):
                    received += chunk
            return received

    def crash(self) -> None:
        """Kill every process of the server as it stands (SIGKILL), and start it again on what is left."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = launch(self.folder, self.environment, self.log)
        wait_until_ready(self.url, self.process, self.log)

    def mails(self) -> list[EmailMessage]:
        """Every mail that was sent, oldest first."""
        paths = sorted((self.folder / "mail").glob("*.eml"))
        parser = BytesParser(EmailMessage, policy=SMTP)
        return [parser.parsebytes(path.read_bytes()) for path in paths]

    def wait_for_mail(self, address: str, *, count: int = 1, seconds: float = 10) -> EmailMessage:
        """The newest mail to `address`, once there are `count` of them."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [mail for mail in self.mails() if address in str(mail["To"])]
            if len(found) >= count:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(f"no mail to {address} within {seconds} s")


def free_port() -> int:
    """A port of the loopback that nobody listens on now, below those that the system gives to outgoing connections.

    One that the system picked may be an outgoing connection's before the server has bound it. Nor does another test process of this machine
    take it: a service of its would answer in the place of ours until ours is up, and refuse what ours would grant.
    """
    for port in _own_ports():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("ports have no end")


@functools.cache
def _own_ports() -> Iterator[int]:
    """Ports that are this process's as long as it lives, round and round: whoever has the lock on a file has the block that it names."""
    folder = Path("/tmp") / f"identity-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    blocks = [*range(10_000, 32_000, _PORTS)]
    random.SystemRandom().shuffle(blocks)
    for first in blocks:
        lock = os.open(folder / str(first), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return itertools.cycle(range(first, first + _PORTS))  # The lock goes with the process.
    raise AssertionError(f"every block of ports is taken: see {folder}")


def environment_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the environment variables that say them."""

    def spelled(value: Any) -> str:
        if isinstance(value, bool):
            return str(int(value))
        return ",".join(value) if isinstance(value, tuple) else str(value)

    return {f"IDENTITY_{name.upper()}": spelled(value) for name, value in settings.items()}


@contextlib.contextmanager
def start_live(
    folder: Path, database: Mapping[str, str], overrides: Mapping[str, str] | None = None, *, workers: int = 1
) -> Iterator[Live]:
    """Start `identity serve` in `folder` and wait until it is ready; stop it, and remove the folder, in the end."""
    port = free_port()
    chosen = {
        **database,
        "bind": f"127.0.0.1:{port}",
        "issuer": f"http://127.0.0.1:{port}",
        "mail_url": f"file:{folder}/mail",
        "keys_dir": folder / "keys",
        "workers": workers,
        "argon2_memory_kib": 8,
        "argon2_time_cost": 1,
        "master_keys": (MASTER_KEY,),
        **{f"limit_{policy}": "off" for policy in ("auth", "application", "standard", "ai_assisted", "bulk_upload")},
        **(overrides or {}),
    }
    spelled = environment_of(chosen)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")} | spelled
    log = folder / "log"
    process = launch(folder, environment, log)
    service = None
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        rt = create_runtime(Settings.from_env(spelled), migrate=False)
        service = Live(url, folder, process, rt, log, environment)
        yield service
    finally:
        if service is not None:
            service.rt.close()
        stop(service.process if service is not None else process)
        shutil.rmtree(folder, ignore_errors=True)


def launch(
    folder: Path, environment: Mapping[str, str], log: Path, *, descriptors: int = 0, code: Path | None = None
) -> subprocess.Popen[bytes]:
    """`identity serve`, in a process group of its own; of another checkout, where `code` names one."""
    held = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"] if descriptors else []
    with log.open("ab") as output:
        return subprocess.Popen(
            [*held, sys.executable, "-m", "identity", "serve"],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(code or Path(__file__).parent.parent)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, *, seconds: float = 30) -> None:
    """Return once `/health/ready` answers 200."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {log.read_text()[-3000:]}")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready in {seconds} s: {log.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and everything that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
