"""Two processes against one, with PostgreSQL and Valkey shared by all.

With cores to spare, each process has one of its own and the load and the databases take the rest. Where there are three cores or fewer,
each process gets a quarter of the first core instead, by a control group, and the load and the databases take the others: what is shown
is the same, that a second process adds what the first one has, whatever they share.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import loads, machine, service, table
from bench.loads import Load, Request
from bench.machine import Quota, Refused
from bench.service import Credentials, Installation

PROCESSES = (1, 2)
ENOUGH_CORES = 3
SHARE = 0.25
PATHS = {
    "POST /application/token": service.application_token,
    "GET /verify": service.verify,
    "GET /session": service.session,
}


def report(rounds: int, connections: int, seconds: int) -> str:
    """The rates of one and of two processes on the hot paths, and their ratio."""
    from tests.servers import ServerUnavailable, start_postgres, start_valkey

    cores = sorted(os.sched_getaffinity(0))
    roomy = len(cores) > ENOUGH_CORES
    rest = cores[2:] if roomy else cores[1:] or cores
    with ExitStack() as stack:
        try:
            postgres, valkey = stack.enter_context(start_postgres()), stack.enter_context(start_valkey())
        except ServerUnavailable as exc:
            raise Refused(str(exc)) from exc
        for pid in filter(None, (postgres.pid, valkey.pid)):
            os.sched_setaffinity(pid, rest)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database_url = postgres.create_database("bench")
        ours = Installation(folder, machine.free_port(), database_url=database_url, redis_url=valkey.url)
        rates = _rates(ours, cores if roomy else None, cores[0], Load(rest[-1], connections, seconds), rounds)
    each = "a core for each process" if roomy else f"{SHARE:.0%} of the first core for each process (control groups)"
    return f"{_render(rates)}\n\nPostgreSQL and Valkey; {len(cores)} cores; {each}, the load and both databases on the rest."


def _rates(
    installation: Installation, cores: Sequence[int] | None, first: int, load: Load, rounds: int
) -> dict[str, dict[int, list[float]]]:
    """By path and number of processes, the rate of every round; without `cores`, all share the first one by quotas."""
    rates: dict[str, dict[int, list[float]]] = {path: {count: [] for count in PROCESSES} for path in PATHS}
    credentials = Credentials(installation)
    for _ in range(rounds):
        for count in PROCESSES:
            running = replace(installation, workers=count).start(*(cores[:count] if cores else [first]))
            loads.ask(Request(f"{running.url}/health/ready"))  # answered by a worker: they are there
            quotas = [] if cores else [_held(pid) for pid in running.worker_pids]
            try:
                for path, make in PATHS.items():
                    request = make(credentials)
                    loads.ask(request)
                    rates[path][count].append(load.put_on(request).rate)
            finally:
                running.stop()
                for quota in quotas:
                    quota.release()
    return rates


def _held(pid: int) -> Quota:
    quota = Quota(SHARE)
    quota.hold(pid)
    return quota


def _render(rates: dict[str, dict[int, list[float]]]) -> str:
    rows = [
        f"| {path} | {median(by[1]):,.0f} | {median(by[2]):,.0f} | {table.ratio(by[2], by[1]):.2f} |"
        for path, by in rates.items()
    ]
    return "\n".join(["| path | one process, req/s | two processes, req/s | ratio |", "|---|---:|---:|---:|", *rows])
