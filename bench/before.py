"""`python -m bench.before REV`: what a request costs here and in an earlier commit, side by side on the same data.

The earlier commit is checked out into a folder of its own for the time of the run. It makes one installation with all that is asked for;
each tree then serves a copy of that, migrated by its own code, with one worker on one core, while the load comes from another. A round
asks each path of each tree in turn. What is told is the CPU time of all threads of the worker for each request, and the median ratio of
the rounds.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

from bench import crowd, machine, service
from bench.cases import Case, Route, prepare
from bench.loads import Load, Request
from bench.machine import Cores, Refused
from bench.postgres import Tree
from bench.rounds import go_round
from bench.service import Credentials
from bench.table import ratio

BEFORE = "before"
HERE = "here"


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: told to stop"))  # what we started has to end as well
    try:
        print(_report(options))
    except Refused as refused:
        sys.exit(f"bench: {refused}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.before", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rev", metavar="REV", help="the earlier commit, as git names it")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL and Valkey instead of SQLite")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="only the paths with one of these in their name"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of load per path and round; default 2")
    parser.add_argument("--connections", type=int, default=16, metavar="N", help="default 16")
    return parser.parse_args()


def _report(options: argparse.Namespace) -> str:
    for tool in ("wrk", "taskset", "git"):
        machine.require(tool)
    cores = Cores.choose()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-before-")))
        stores = stack.enter_context(_servers()) if options.postgres else None
        code = stack.enter_context(_checked_out(options.rev, scratch / "code"))
        seed = _tree(scratch / "seed", code, stores)
        stack.callback(seed.stop)
        cases = prepare("", ROUTES, lambda: (Credentials(seed.start(cores.server)), seed.cpu_us))
        seed.stop()
        cases = [case for case in cases if any(text in case.name for text in options.only)]
        pairs: list[list[Case]] = [[] for _ in cases]
        for name, its_code in ((BEFORE, code), (HERE, _only_identity(machine.ROOT, scratch))):
            shutil.copytree(seed.folder, scratch / name)
            tree = _tree(scratch / name, its_code, stores, seed)
            stack.callback(tree.stop)
            tree.command("migrate")
            tree.start(cores.server)
            # By our code on both sides: it writes one column that every version has.
            environ = {**tree.environ, "PYTHONPATH": str(machine.ROOT)}
            stack.callback(crowd.commits(environ, tree.folder, cores.load).stop)
            for pair, case in zip(pairs, cases, strict=True):
                pair.append(moved(case, seed.url, tree.url, tree.cpu_of_workers_us))
        load = Load(cores.load, options.connections, options.seconds)
        in_turn = [case for pair in pairs for case in pair]
        go_round(in_turn, replace(load, seconds=1))
        for case in in_turn:
            case.samples.clear()  # that round was for warmth
        for number in range(1, options.rounds + 1):
            print(f"round {number} of {options.rounds}", file=sys.stderr)
            go_round(in_turn, load)
    return f"{render(options.rev, pairs)}\n\n{_conditions(options)}"


def _or(many: Callable[[Credentials], list[Request]], one: Callable[[Credentials], Request]) -> Route[Credentials]:
    """The requests of many subjects, or of one where the version that makes them cannot make so many."""

    def make(of: Credentials) -> list[Request]:
        try:
            return many(of)
        except Refused:
            return [one(of)]

    path = next(route.path for route in service.ROUTES if route.make is many)
    return Route(path, make)


ROUTES = [
    *(
        _or(many, one)
        for many, one in (
            (service.crowd_verify, service.verify),
            (service.crowd_session, service.session),
            (service.crowd_key_pair, service.key_pair),
        )
    ),
    *(route for route in service.ROUTES if not route.path.startswith(("GET /verify", "GET /session", "GET /keypair"))),
]


def moved(case: Case, old: str, new: str, cpu: Callable[[], float]) -> Case:
    """The same requests to a server at another address, with the same refusal if there is one."""
    requests = [replace(one, url=one.url.replace(old, new, 1)) for one in case.requests]
    return Case(case.name.strip(), requests=requests, cpu=cpu, refusal=case.refusal)


def render(rev: str, pairs: Sequence[Sequence[Case]]) -> str:
    """One row for each path: the case before, and the one here."""
    lines = [f"| path | {rev}, us | here, us | ratio | requests/s |", "|---|---:|---:|---:|---|"]
    for before, here in pairs:
        if not (before.samples and here.samples):
            reason = (before.refusal or here.refusal).replace("|", "/")
            lines.append(f"| {here.name} | not measured: {reason} | | | |")
            continue
        errors = sum(sample.errors for case in (before, here) for sample in case.samples)
        cells = (
            here.name + (f" **({errors:,} errors)**" if errors else ""),
            f"{median(before.cpus):,.0f}",
            f"{median(here.cpus):,.0f}",
            f"{ratio(before.cpus, here.cpus):.2f} x",
            f"{median(before.rates):,.0f} to {median(here.rates):,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _conditions(options: argparse.Namespace) -> str:
    store = "PostgreSQL and Valkey" if options.postgres else "SQLite"
    return (
        f"{machine.processor()}; {store}; one worker on a core, {options.connections} connections, medians of {options.rounds}"
        f" rounds of {options.seconds} s, interleaved; checks and introspection for {crowd.SUBJECTS} subjects"
        " (checks for one where the earlier version cannot make so many),"
        f" {crowd.COMMITS_PER_SECOND} commits a second beside; CPU of all threads of the worker; load average {os.getloadavg()[0]:.1f}."
    )


@dataclass(frozen=True, slots=True)
class _Stores:
    """The servers that hold the databases of all trees; `places` counts those of Valkey."""

    create: Callable[[str, str | None], str]
    valkey: str
    places: Iterator[int]


@contextmanager
def _servers() -> Iterator[_Stores]:
    from tests.servers import ServerUnavailable, start_postgres, start_valkey

    with ExitStack() as stack:
        try:
            postgres, valkey = stack.enter_context(start_postgres()), stack.enter_context(start_valkey())
        except ServerUnavailable as exc:
            raise Refused(str(exc)) from exc
        yield _Stores(postgres.create_database, valkey.url, count())


@contextmanager
def _checked_out(rev: str, folder: Path) -> Iterator[Path]:
    """The code of a commit, of which only our own package is seen."""
    machine.run(["git", "worktree", "add", "--detach", "--quiet", str(folder), rev], cwd=machine.ROOT)
    try:
        yield _only_identity(folder, folder.parent)
    finally:
        machine.run(["git", "worktree", "remove", "--force", str(folder)], cwd=machine.ROOT)


def _only_identity(code: Path, scratch: Path) -> Path:
    """A folder from which Python imports the service of one tree and the bench of this one."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / "identity").symlink_to(code / "identity")
    (folder / "bench").symlink_to(machine.ROOT / "bench")
    return folder


def _tree(folder: Path, code: Path, stores: _Stores | None, seed: Tree | None = None) -> Tree:
    """An installation in `folder`, on a copy of the databases of `seed` if there is one."""
    folder.mkdir(exist_ok=True)
    database = redis = ""
    if stores is not None:
        database = stores.create(folder.name, seed and "seed")
        redis = f"{stores.valkey}?db={next(stores.places)}"
    return Tree(folder, machine.free_port(), 1, database, redis, code=code, issuer=seed.url if seed else "")


if __name__ == "__main__":
    main()
