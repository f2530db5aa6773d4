"""`python -m bench.postgres`: what a request costs the worker on PostgreSQL and Valkey, here and in other checkouts, side by side.

Each tree serves with one worker and a database of its own on the same two servers. A round asks each path of each tree in turn over the
same number of kept connections; what is told is the CPU time of all threads of the worker for each request, the median of the rounds.
"""

import argparse
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from bench import loads, machine, service
from bench.loads import Request
from bench.machine import Refused
from bench.service import Credentials, Installation

DISTINCT = 50
WARM_REQUESTS = 400


@dataclass(slots=True)
class Tree(Installation):
    """An installation that runs the code of one checkout, under an issuer that may be another's of which it is a copy."""

    code: Path = machine.ROOT
    issuer: str = ""

    def cpu_of_workers_us(self) -> float:
        """The processor time of its workers so far."""
        return sum(map(machine.cpu_us, self.worker_pids))

    def command(self, *arguments: str, stdin: str = "") -> str:
        """As the others', of a release that may know fewer options."""
        try:
            return super(Tree, self).command(*arguments, stdin=stdin)
        except Refused:
            return super(Tree, self).command(*arguments, "--new-role", stdin=stdin)

    def _environ(self) -> dict[str, str]:
        environ = {**super(Tree, self)._environ(), "PYTHONPATH": str(self.code)}
        environ.pop("IDENTITY_SIGNING_ALG", None)  # RS256 everywhere, also where nothing else is known.
        return {**environ, "IDENTITY_ISSUER": self.issuer or self.url}


@dataclass(slots=True)
class Asked:
    """One path of one tree, as bytes to be sent in turn, and what each round showed: microseconds of CPU, and requests a second."""

    requests: Sequence[bytes]
    cpu: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def main() -> None:
    options = _options()
    try:
        print(_report(options))
    except Refused as refused:
        sys.exit(f"bench: {refused}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.postgres", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], metavar="TREE", help="other checkouts; ratios are to the first"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--seconds", type=float, default=2, metavar="N", help="per path and round; default 2")
    parser.add_argument("--connections", type=int, default=16, metavar="N", help="default 16")
    return parser.parse_args()


def _report(options: argparse.Namespace) -> str:
    from tests.servers import ServerUnavailable, start_postgres, start_valkey

    with ExitStack() as stack:
        try:
            postgres, valkey = stack.enter_context(start_postgres()), stack.enter_context(start_valkey())
        except ServerUnavailable as exc:
            raise Refused(str(exc)) from exc
        trees: dict[str, Tree] = {}
        measured: dict[str, dict[str, Asked]] = {}
        for number, code in enumerate([*options.beside, machine.ROOT]):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            database = postgres.create_database(f"bench{number}")
            tree = Tree(folder, machine.free_port(), 1, database, f"{valkey.url}?db={number}", code=code.resolve())
            stack.callback(tree.stop)
            tree.start(*sorted(os.sched_getaffinity(0)))
            trees[code.name] = tree
            measured[code.name] = _paths(Credentials(tree))
        for round_ in range(options.rounds + 1):
            for path in next(iter(measured.values())):
                for name, tree in trees.items():
                    _ask(tree, measured[name][path], options, warm=round_ == 0)
    return _table(measured, options)


def _paths(of: Credentials) -> dict[str, Asked]:
    """What is asked; the credentials that cost little are many, as they are in life."""
    users = (
        [loads.text_of(loads.ask(service.user_token(of)), "data", "accessToken") for _ in range(DISTINCT)]
        if of.password
        else []
    )
    tokens = [loads.text_of(loads.ask(service.application_token(of)), "data", "accessToken") for _ in range(DISTINCT)]
    verify = service.verify(of)
    asked = {
        "GET /verify": [
            Request(verify.url, headers={**verify.headers, "Authorization": f"Bearer {user}"}) for user in users
        ],
        "GET /session": [service.session(of)],
        "GET /keypair": [service.key_pair(of)],
        "POST /oauth/introspect": [
            loads.form(f"{of.url}/oauth/introspect", of.application, {"token": token}, proof="") for token in tokens
        ],
        "POST /application/token": [service.application_token(of)],
    }
    return {name: Asked([_as_bytes(request) for request in requests]) for name, requests in asked.items()}


def _as_bytes(request: Request) -> bytes:
    target = urlsplit(request.url)
    headers: Mapping[str, str] = {"Host": target.netloc, **request.headers}
    if request.body:
        headers = {**headers, "Content-Length": str(len(request.body))}
    lines = [f"{request.method} {target.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n" + request.body).encode()


def _ask(tree: Tree, path: Asked, options: argparse.Namespace, *, warm: bool) -> None:
    requests = cycle(path.requests)
    _load(tree.port, requests, options.connections, count=WARM_REQUESTS)
    if warm:
        return
    (worker,) = tree.worker_pids
    before, began = _cpu_nanoseconds(worker), time.perf_counter()
    answered = _load(tree.port, requests, options.connections, seconds=options.seconds)
    path.cpu.append((_cpu_nanoseconds(worker) - before) / 1000 / answered)
    path.rates.append(answered / (time.perf_counter() - began))


def _load(
    port: int, requests: Iterator[bytes], connections: int, *, seconds: float = 60, count: int = sys.maxsize
) -> int:
    """Keep one request under way on each connection until the time or the count is over; tell how many were answered with 200."""
    deadline, answered = time.monotonic() + seconds, 0
    with ExitStack() as stack, select.epoll() as polled:
        sockets = {}
        for _ in range(connections):
            one = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=30)))
            sockets[one.fileno()] = one
            polled.register(one, select.EPOLLIN)
            one.sendall(next(requests))
        while sockets:
            for descriptor, _ in polled.poll(30):
                one = sockets[descriptor]
                _read_answer(one)
                answered += 1
                if answered + len(sockets) <= count and time.monotonic() < deadline:
                    one.sendall(next(requests))
                else:
                    polled.unregister(one)
                    del sockets[descriptor]
    return answered


def _read_answer(one: socket.socket) -> None:
    data = one.recv(65536)
    while b"\r\n\r\n" not in data:
        data += one.recv(65536) or _lost()
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise Refused(data.decode(errors="replace").replace("\r\n", " | ")[:300])
    left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(body)
    while left > 0:
        left -= len(one.recv(65536) or _lost())


def _lost() -> bytes:
    raise Refused("a kept connection was closed")


def _cpu_nanoseconds(pid: int) -> int:
    """What all threads of a process have had of processors; those that ended in between are missed, and ours do not end."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _table(measured: Mapping[str, Mapping[str, Asked]], options: argparse.Namespace) -> str:
    first, *_ = names = list(measured)
    lines = ["| path | " + " | ".join(f"{name}, us" for name in names) + f" | {first} / {names[-1]} | requests/s |"]
    lines.append("|---|" + "---|" * (len(names) + 2))
    for path in measured[first]:
        costs = [median(measured[name][path].cpu) for name in names]
        rates = " to ".join(f"{median(measured[name][path].rates):,.0f}" for name in (first, names[-1]))
        lines.append(
            f"| {path} | "
            + " | ".join(f"{cost:,.0f}" for cost in costs)
            + f" | {costs[0] / costs[-1]:.2f} x | {rates} |"
        )
    conditions = (
        f"{machine.processor()}; one worker, {options.connections} connections, medians of {options.rounds} rounds of"
        f" {options.seconds:g} s, interleaved; CPU of all threads of the worker; load average {os.getloadavg()[0]:.1f}."
    )
    return "\n".join([*lines, "", conditions])


if __name__ == "__main__":
    main()
