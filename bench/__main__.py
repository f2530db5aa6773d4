"""`python -m bench`: measure, and print the tables."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench import crowd, machine, peers, scale, service, table
from bench.cases import Case, prepare
from bench.loads import Load
from bench.machine import Cores, Refused
from bench.raw import Argon2
from bench.rounds import Measured, measure
from bench.service import Credentials, Installation

COLD_STARTS = 5
USUAL_ARGON2 = (19456, 2, 1)  # the usual minimum, where the service has stored no hash to read them off


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: told to stop"))  # what we started has to end as well
    try:
        machine.require("taskset")
        for measure_one in [_scale] if options.scale else _signings(options):
            heading, text = measure_one(options)
            print(text, flush=True)
            if options.write:
                table.write(options.write, heading, text)
    except Refused as refused:
        sys.exit(f"bench: {refused}")


def _signings(options: argparse.Namespace) -> Iterator[Callable[[argparse.Namespace], tuple[str, str]]]:
    """The comparison as the processor can, and with the newer vector units hidden from every OpenSSL, unless one of them is chosen."""
    if not options.plain_rsa:
        yield _compare
    if not options.as_it_can:
        os.environ.update(machine.PLAIN_RSA)
        options.plain_rsa = True
        yield _compare


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the service beside its peers.")
    parser.add_argument("--peers", action="store_true", help="only the peers and the raw loops")
    parser.add_argument(
        "--scale", action="store_true", help="instead: two processes against one, PostgreSQL and Valkey"
    )
    parser.add_argument(
        "--plain-rsa", action="store_true", help="only with the newer vector units hidden from every OpenSSL"
    )
    parser.add_argument("--as-it-can", action="store_true", help="only as the processor can")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="only the paths with one of these in their name"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5")
    parser.add_argument("--seconds", type=int, default=4, metavar="N", help="of load per path and round; default 4")
    parser.add_argument("--connections", type=int, default=16, metavar="N", help="default 16")
    parser.add_argument("--hash-threads", type=int, default=1, metavar="N", help="of the raw Argon2id loop; default 1")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="also put the result under its heading of this page")
    return parser.parse_args()


def _scale(options: argparse.Namespace) -> tuple[str, str]:
    """The heading and the text of the two-process run."""
    machine.require("wrk")
    return "Two processes", scale.report(options.rounds, options.connections, options.seconds)


def _compare(options: argparse.Namespace) -> tuple[str, str]:
    """The heading and the text of the comparison with the peers."""
    cores = Cores.choose()
    load = Load(cores.load, options.connections, options.seconds)
    cases: list[Case] = []
    with ExitStack() as stack:
        ours = Installation(Path(stack.enter_context(tempfile.TemporaryDirectory())), machine.free_port())
        stack.callback(ours.stop)
        if not options.peers:
            cases += prepare("identity", service.ROUTES, lambda: (Credentials(ours.start(cores.server)), ours.cpu_us))
            elliptic = Installation(
                Path(stack.enter_context(tempfile.TemporaryDirectory())), machine.free_port(), signing_alg="ES256"
            )
            stack.callback(elliptic.stop)
            cases += prepare(
                "identity ES256",
                service.ROUTES_ES256,
                lambda: (Credentials(elliptic.start(cores.server)), elliptic.cpu_us),
            )
            if ours.runs:
                stack.callback(crowd.commits(ours.environ, ours.folder, cores.load).stop)
        cases += peers.start(stack, cores.server)
        cases = [case for case in cases if any(text in case.name for text in options.only)]
        argon2 = ours.argon2(options.hash_threads) or Argon2(*USUAL_ARGON2, options.hash_threads)
        measured = measure(
            cases, load, rounds=options.rounds, core=cores.server, argon2=argon2, megabytes=ours.worker_megabytes
        )
        paragraphs = [
            _conditions(options, cores),
            _raw_loops(measured, argon2),
            table.render(cases, rsa=measured.rsa, argon2=measured.argon2),
        ]
        if ours.runs:
            paragraphs += [_memory(cases, measured), _starts(ours, cores)]
    return ("With plain RSA" if options.plain_rsa else "As the processor can"), "\n\n".join(paragraphs)


def _conditions(options: argparse.Namespace, cores: Cores) -> str:
    """Under what the numbers were taken; a load average well above 1 says that something else was running."""
    facts = [
        machine.processor(),
        f"servers on core {cores.server}, wrk on core {cores.load}",
        f"{options.connections} connections",
        f"medians of {options.rounds} rounds of {options.seconds} s",
        f"load average {os.getloadavg()[0]:.1f}",
        machine.python(),
        f"cryptography {version('cryptography')}",
    ]
    if options.plain_rsa:
        facts += [f"{name}={text}" for name, text in machine.PLAIN_RSA.items()]
    return "; ".join(facts) + "."


def _raw_loops(measured: Measured, argon2: Argon2) -> str:
    rsa, hashes = median(measured.rsa), median(measured.argon2)
    signing = f"R = {rsa:,.0f} RSA-2048 signatures/s, {1e6 / rsa:,.0f} us each"
    return f"{signing}; Argon2id ({argon2}): {hashes:,.1f} hashes/s."


def _memory(cases: list[Case], measured: Measured) -> str:
    """The growth of a worker between the end of the first round and the end of the last."""
    asked = sum(sample.requests for case in cases if case.name.startswith("identity") for sample in case.samples)
    first, last = measured.megabytes[0], measured.megabytes[-1]
    return f"Memory of the worker (PSS): {last:.1f} MB after {asked:,} requests; {first:.1f} MB after the first round."


def _starts(ours: Installation, cores: Cores) -> str:
    ours.stop()
    seconds = median(ours.ready_after(cores.server) for _ in range(COLD_STARTS))
    return f"Cold start to the first 200 of /health/ready: {seconds:.2f} s (median of {COLD_STARTS}, database and keys in place)."


if __name__ == "__main__":
    main()
