"""What breaks and is watched: a service that can be killed and started again, clients that keep a journal of what they were told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from identity.app import create_runtime
from identity.runtime import Runtime
from identity.settings import Settings
from tests.world import MASTER_KEY, code_in, environment_of, free_port, launch, stop, wait_until_ready

T = TypeVar("T")
ROUNDS = int(os.environ.get("IDENTITY_FAULT_ROUNDS", "0"))
"""How often to repeat what is left to chance; 0: the short form, which every run of the suite includes."""
SEED = int(os.environ.get("IDENTITY_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
"""Where chance starts from; printed with every failure, and given back to replay it."""


BACKENDS_OF_THE_SHORT_FORM = ("sqlite", "postgresql") if ROUNDS else ("postgresql",)
"""For what costs many seconds and depends little on the database: both only in the long form."""


def rounds(short: int, *, share: float = 1) -> int:
    """How many rounds: `short`, or `share` of what was asked for."""
    return max(short, int(ROUNDS * share))


def chance(name: str) -> random.Random:
    """A generator of this test's own, printed so that a failing run can be replayed."""
    print(f"replay with IDENTITY_FAULT_SEED={SEED} ({name})")
    return random.Random(f"{SEED} {name}")


@dataclass(frozen=True)
class Heard:
    """One answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Client:
    """One keep-alive connection. What cannot be said or heard is None: the deed may be done or not."""

    def __init__(self, port: int, *, source: str = "127.0.0.1", timeout: float = 30) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0))
        self.error: str = ""

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        bearer: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Heard | None:
        sent = dict(headers or {})
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"
        if body is not None and not isinstance(body, str | bytes):
            body = json.dumps(body)
            sent["Content-Type"] = "application/json"
        elif isinstance(body, str):
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            self._connection.request(method, path, body, sent)
            answer = self._connection.getresponse()
            return Heard(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        except (OSError, http.client.HTTPException) as exc:
            self.error = f"{type(exc).__name__} {exc}"
            self._connection.close()
            return None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Service:
    """`identity serve` over one database: it dies by our hand and starts again on what it left behind, at the same address."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, port: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "bind": f"127.0.0.1:{self.port}",
            "issuer": self.url,
            "mail_url": f"file:{folder}/mail",
            "keys_dir": folder / "keys",
            "workers": 2,
            "argon2_memory_kib": 8,
            "argon2_time_cost": 1,
            "master_keys": (MASTER_KEY,),
            "second_factor": "enrolled",
            "hash_wait_seconds": 1,
            **{
                f"limit_{policy}": "off" for policy in ("auth", "application", "standard", "ai_assisted", "bulk_upload")
            },
            **settings,
        }
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")
        } | environment_of(self.settings)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes]

    def runtime(self, **changes: Any) -> Runtime:
        """A Runtime over the same database, to arrange and inspect with."""
        return create_runtime(Settings.from_env(environment_of(self.settings | changes)), migrate=False)

    def start(self, *, descriptors: int = 0) -> None:
        """Start it and wait until it is ready; `descriptors` is its `ulimit -n`, soft and hard."""
        self.launch(descriptors=descriptors)
        wait_until_ready(self.url, self.process, self.log)

    def launch(self, *, descriptors: int = 0) -> None:
        """Start it, whatever becomes of it."""
        self.process = launch(self.folder, self.environment, self.log, descriptors=descriptors)

    def stop(self) -> None:
        stop(self.process)

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return children_of(self.process.pid)

    def kill_all(self) -> None:
        """SIGKILL for master and workers at once, as when the power of the container goes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_master(self) -> None:
        """SIGKILL for the master alone. Its workers must notice and end by themselves, or the address stays taken."""
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 10
        while any(is_alive(pid) for pid in workers):
            assert time.monotonic() < deadline, "workers outlived their master"
            time.sleep(0.02)

    def kill_worker(self, pick: random.Random) -> None:
        """SIGKILL for one worker; the master replaces it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pick.choice(self.workers()), signal.SIGKILL)

    def client(self, **options: Any) -> Client:
        return Client(self.port, **options)

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> Heard:
        """One exchange on a connection of its own, which must succeed in being one."""
        with self.client() as http:
            heard = http.call(method, path, body, **options)
        assert heard is not None, f"{method} {path}: {http.error}"
        return heard

    def logged(self) -> list[dict[str, Any]]:
        """Every line of the log that is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def faults(self) -> list[dict[str, Any]]:
        """What the service logged as faults of its own: there must be none, whatever broke around it."""
        return [line for line in self.logged() if line["level"] == "error" and line["logger"] != "gunicorn.error"]

    def code_for(self, verification_id: str, *, seconds: float = 10) -> str:
        """The digits that were mailed for this verification id."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for path in sorted((self.folder / "mail").glob("*.eml")):
                mail = BytesParser(EmailMessage, policy=SMTP).parsebytes(path.read_bytes())
                body = mail.get_body(("plain",))
                if body is not None and verification_id in body.get_content():
                    return code_in(mail)
            time.sleep(0.05)
        raise AssertionError("the mail did not come")


@contextlib.contextmanager
def serving(folder: Path, settings: Mapping[str, Any], **options: Any) -> Iterator[Service]:
    """A started service, which is ended and removed in the end."""
    service = Service(folder, settings, **options)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def children_of(pid: int) -> list[int]:
    """The process ids of a process' living children."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than a name."""
    stat = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(stat.strip()) and not stat.startswith("Z")


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """What `count` threads get that do `work` at the same moment."""
    barrier = threading.Barrier(count)

    def one(number: int) -> T:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def until(condition: Callable[[], bool], *, seconds: float) -> float:
    """Wait until `condition` holds; tell how long it took. Fails after `seconds`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
