"""PostgreSQL as it is run in earnest: two servers that Patroni keeps, with etcd to agree by. Debian: patroni, etcd-server.

Nothing is shared with a system's own: every file is in a folder of ours, every address is a port of the loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import psycopg
import requests

from tests import servers
from tests.faults.rig import children_of, until
from tests.world import free_port

TTL_SECONDS = 20
"""How long a leader that is gone is waited for; Patroni takes no less."""
_START_SECONDS = 90


def program(name: str, package: str) -> str:
    """Where a program of a system's packages is."""
    found = shutil.which(name, path="/usr/bin:/usr/local/bin:/usr/sbin:/opt/homebrew/bin")
    assert found, f"this test needs the program {name} (Debian: apt-get install {package})"
    return found


class Node:
    """One server and the Patroni that keeps it."""

    def __init__(self, name: str, folder: Path, etcd: int) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.port, self.control = free_port(), free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/identity"
        self._identity = servers._postgres_identity()
        self._identity.adopt(self.folder)
        self._configuration = self.folder / "patroni.json"  # YAML is a superset of JSON.
        self._configuration.write_text(json.dumps(self._configured(etcd)))
        self._process: subprocess.Popen[bytes] | None = None

    def _configured(self, etcd: int) -> dict[str, Any]:
        return {
            "scope": "identity",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.control}", "connect_address": f"127.0.0.1:{self.control}"},
            "etcd3": {"hosts": f"127.0.0.1:{etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_SECONDS,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "primary_start_timeout": 0,
                    # What was acknowledged is on both.
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 100}},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.folder / "data"),
                "bin_dir": str(servers._postgres_binaries()),
                "pgpass": str(self.folder / "pgpass"),
                "pg_hba": [
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                    "local all all trust",
                ],
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
                "parameters": {
                    "unix_socket_directories": str(self.folder),
                    "shared_buffers": "32MB",
                    "dynamic_shared_memory_type": "mmap",
                },
            },
        }

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._identity.prefix, program("patroni", "patroni"), str(self._configuration)],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                **self._identity.popen_arguments(),
            )

    def says(self, path: str) -> int:
        """What its Patroni answers, as a load balancer asks; 0 for nothing."""
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{self.control}{path}", timeout=2).status_code
        return 0

    @property
    def is_leader(self) -> bool:
        """Whether it writes; Patroni calls it the primary from the moment that it is told to become it."""
        with contextlib.suppress(psycopg.Error):
            url = self.url.replace("/identity", "/postgres")
            with psycopg.connect(url, connect_timeout=2, target_session_attrs="read-write"):
                return True
        return False

    def signal(self, which: signal.Signals) -> None:
        """Tell it to all of the node, from Patroni to the last backend."""
        assert self._process is not None
        postmaster = (self.folder / "data" / "postmaster.pid").read_text().split()[0]
        # Patroni first: it would start anew what is killed.
        for pid in (self._process.pid, *children_of(self._process.pid), int(postmaster), *children_of(int(postmaster))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, which)
        if which == signal.SIGKILL:
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()  # It stops its server as well.
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)

    def last_words(self) -> str:
        return (self.folder / "log").read_text()[-3000:]


class Cluster:
    """Two nodes and etcd."""

    def __init__(self) -> None:
        # Not the test's own folder: a unix socket's path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="idpt-", dir="/tmp"))
        identity = servers._postgres_identity()
        identity.adopt(self.folder)
        client, peer = free_port(), free_port()
        with (self.folder / "etcd.log").open("wb") as log:
            self._etcd = subprocess.Popen(
                [
                    program("etcd", "etcd-server"),
                    *("--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync"),
                    *("--listen-client-urls", f"http://127.0.0.1:{client}"),
                    *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
                    *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
                    *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
                    *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes = [Node(name, self.folder, client) for name in ("one", "two")]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
                until(lambda: self.leader is not None, seconds=_START_SECONDS)
            self.wait_until_whole()
        except BaseException:
            print("\n".join(node.last_words() for node in self.nodes))
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def leader(self) -> Node | None:
        return next((node for node in self.nodes if node.is_leader), None)

    @property
    def url(self) -> str:
        """An address that leads to whoever writes, as libpq finds it."""
        hosts = "&".join(f"host=127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@/identity?{hosts}"

    def wait_until_whole(self) -> None:
        """Until there are a leader and a standby that has all that it has."""
        until(
            lambda: (
                sorted((node.says("/primary"), node.says("/sync")) for node in self.nodes) == [(200, 503), (503, 200)]
            ),
            seconds=_START_SECONDS,
        )

    def switch_over(self) -> None:
        """Ask for it, as an administrator does; returns when it was accepted and done."""
        leader = self.leader
        assert leader is not None
        answer = requests.post(
            f"http://127.0.0.1:{leader.control}/switchover", json={"leader": leader.name}, timeout=60
        )
        assert answer.status_code == 200, answer.text

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        self._etcd.kill()
        self._etcd.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Watcher(threading.Thread):
    """Notes when somebody else than `before` became the leader."""

    def __init__(self, cluster: Cluster, before: Node) -> None:
        super().__init__(daemon=True)
        self._others = [node for node in cluster.nodes if node is not before]
        self.at: float | None = None

    def run(self) -> None:
        while self.at is None:
            if any(node.is_leader for node in self._others):
                self.at = time.monotonic()
            time.sleep(0.1)
