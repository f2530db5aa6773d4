"""Two processes on two cores against one process on one core, with PostgreSQL and Valkey shared by all.

The load and the databases take the cores that are left. On two cores none is left, and the second process shares its
core with them: the ratio is then lower than what two free cores would show, and the report says so.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import loads, machine, service, table
from bench.loads import Load
from bench.machine import Refused
from bench.service import Credentials, Installation

PROCESSES = (1, 2)
PATHS = {
    "POST /application/token": service.application_token,
    "GET /verify": service.verify,
    "GET /session": service.session,
}


def report(rounds: int, connections: int, seconds: int) -> str:
    """The rates of one and of two processes on the hot paths, and their ratio."""
    from tests.servers import ServerUnavailable, start_postgres, start_valkey  # needs what `make test` installs

    cores = sorted(os.sched_getaffinity(0))
    rest = cores[2:] or cores[-1:]
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
        rates = _rates(ours, cores, Load(rest[-1], connections, seconds), rounds)
    shared = "" if len(cores) > 2 else " The load and both databases share the second core."
    return f"{_render(rates)}\n\nPostgreSQL and Valkey; {len(cores)} cores.{shared}"


def _rates(
    installation: Installation, cores: Sequence[int], load: Load, rounds: int
) -> dict[str, dict[int, list[float]]]:
    """By path and number of processes, the rate of every round."""
    rates: dict[str, dict[int, list[float]]] = {path: {count: [] for count in PROCESSES} for path in PATHS}
    credentials = Credentials(installation)
    for _ in range(rounds):
        for count in PROCESSES:
            running = replace(installation, workers=count).start(*cores[:count])
            try:
                for path, make in PATHS.items():
                    request = make(credentials)
                    loads.ask(request)
                    rates[path][count].append(load.put_on(request).rate)
            finally:
                running.stop()
    return rates


def _render(rates: dict[str, dict[int, list[float]]]) -> str:
    rows = [
        f"| {path} | {median(by[1]):,.0f} | {median(by[2]):,.0f} | {table.ratio(by[2], by[1]):.2f} |"
        for path, by in rates.items()
    ]
    return "\n".join(["| path | one process, req/s | two processes, req/s | ratio |", "|---|---:|---:|---:|", *rows])
