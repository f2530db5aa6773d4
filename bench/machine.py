"""The machine: its cores, its tools, processes pinned to a core, and the memory that they hold.

Nothing here knows what is measured.
"""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(__file__).resolve().parent / ".cache"

# OpenSSL signs RSA-2048 two to four times faster where the processor has AVX512-IFMA (EBX bit 21 of CPUID leaf 7).
# Without it, ADX (19), BMI2 (8) and AVX2 (5) a core does about what one of the cloud's smaller machines does. node
# and `cryptography` each carry an OpenSSL of their own; both read this variable when they start.
PLAIN_RSA = {"OPENSSL_ia32cap": ":~0x280120"}

PACKAGES = {"wrk": "wrk", "node": "nodejs", "npm": "npm", "taskset": "util-linux", "git": "git"}


class Refused(Exception):
    """Something could not be started, prepared or asked; the message is one line for the table."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core serves and which one makes the load."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> Self:
        """The first two cores that this process may use; one core has to play both parts."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(server=usable[0], load=usable[1] if len(usable) > 1 else usable[0])


def require(*tools: str) -> None:
    """Refuse, with the Debian package that brings it, the first of these tools that is absent."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise Refused(f"{tool} is not installed (Debian package: {PACKAGES[tool]})")


def pinned(cores: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command, confined to these cores together with everything that it starts."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]


def python() -> str:
    """Which build of Python this is: a distribution's is a quarter faster or slower than another's."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = [name for name in ("enable-optimizations", "with-lto") if name in options]
    return (
        f"Python {platform.python_version()} ({platform.python_compiler()}; {', '.join(optimised) or 'not optimised'})"
    )


def processor() -> str:
    """What the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "An unnamed processor"


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """What the command prints; a failure is refused with its first line on standard error."""
    done = subprocess.run(command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(first_line(done.stderr) or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def first_line(text: str) -> str:
    """The first line that says something; npm and Python put theirs after lines that say nothing."""
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("npm warn", "Traceback", "File "))]
    return telling[0] if telling else ""


class Server:
    """A running server and everything that it started; `stop` ends them by their own process group."""

    def __init__(
        self, command: Sequence[str], *, port: int, cores: Sequence[int], cwd: Path, env: Mapping[str, str]
    ) -> None:
        self.port = port
        self._log = cwd / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                pinned(cores, command), cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, *, seconds: float = 30) -> Self:
        """Return once the port is open; refuse with the end of the log when the server ends or stays shut."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.005)
            else:
                return self
        self.stop()
        said = self._log.read_text(errors="replace").strip().splitlines()
        raise Refused(f"did not start: {said[-1] if said else 'it said nothing'}")

    def stop(self) -> None:
        """End the server gracefully, or after ten seconds at once. Twice is harmless."""
        if self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def cpu_us(self) -> float:
        """The processor time that all threads of all its processes have used so far."""
        return sum(map(cpu_us, tree(self._process.pid)))

    @property
    def workers(self) -> list[int]:
        """Its worker processes."""
        return children(self._process.pid)

    def worker_megabytes(self) -> float:
        """The proportional share (PSS) of memory of the largest worker, or of the server itself if it has none."""
        workers = self.workers or [self._process.pid]
        return max(proportional_megabytes(pid) for pid in workers)


class Background:
    """A process that does something meanwhile; `stop` ends it."""

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def stop(self) -> None:
        """End it; refuse if it had ended by itself, so that nothing was measured beside it."""
        ended = self._process.poll()
        self._process.terminate()
        _, said = self._process.communicate()
        if ended is not None:
            raise Refused(f"what ran in the background ended: {said.decode(errors='replace').strip()[-200:]}")


class Quota:
    """A control group (version 1 or 2) whose processes together get `share` of a core; refused where we may make none."""

    _PERIOD_US = 10_000

    def __init__(self, share: float) -> None:
        quota = int(share * self._PERIOD_US)
        name = f"bench-{os.getpid()}-{id(self):x}"
        old = Path("/sys/fs/cgroup/cpu")
        files = (
            {"cpu.cfs_period_us": str(self._PERIOD_US), "cpu.cfs_quota_us": str(quota)}
            if old.is_dir()
            else {"cpu.max": f"{quota} {self._PERIOD_US}"}
        )
        self._group = (old if old.is_dir() else old.parent) / name
        try:
            self._group.mkdir()
            for file, text in files.items():
                (self._group / file).write_text(text)
        except OSError as exc:
            raise Refused("no control group can be made here (root is needed)") from exc

    def hold(self, pid: int) -> None:
        """Put a process and all its threads under the quota."""
        (self._group / "cgroup.procs").write_text(str(pid))

    def release(self) -> None:
        """Remove the group; its processes must have ended."""
        self._group.rmdir()


def children(pid: int) -> list[int]:
    """The processes that this one started, from /proc."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def tree(pid: int) -> list[int]:
    """A process with all that it and they have started."""
    return [pid, *(below for child in children(pid) for below in tree(child))]


def cpu_us(pid: int) -> float:
    """The processor time of all threads of a process that live; of one that has just ended, none."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            spent += int(task.read_text().split()[0])
    return spent / 1000


def proportional_megabytes(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
