"""The rounds: the raw loops and every case in turn, again and again, so that all see the same weather."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bench import machine, raw
from bench.cases import Case
from bench.loads import Load
from bench.machine import Refused
from bench.raw import Argon2

RAW_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rounds showed beside the samples that each case keeps: one entry per round."""

    rsa: list[float] = field(default_factory=list)
    argon2: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def measure(
    cases: Sequence[Case], load: Load, *, rounds: int, core: int, argon2: Argon2, megabytes: Callable[[], float]
) -> Measured:
    """Go round the raw loops on this core and the cases; `megabytes` is asked at the end of each round."""
    measured = Measured()
    go_round(cases, replace(load, seconds=1))
    for case in cases:
        case.samples.clear()  # that round was for warmth
    for count in range(1, rounds + 1):
        print(f"round {count} of {rounds}", file=sys.stderr)
        measured.rsa.append(raw.rsa_per_second(core, RAW_SECONDS))
        measured.argon2.append(raw.argon2_per_second(core, RAW_SECONDS, argon2))
        go_round(cases, load)
        measured.megabytes.append(megabytes())
    return measured


def go_round(cases: Sequence[Case], load: Load) -> None:
    """Put the load on each case in turn; one that cannot be asked is refused."""
    for case in cases:
        if not case.requests:
            continue
        try:
            machine.require("wrk")
            sample = load.put_on(*case.requests, cpu=case.cpu)
        except Refused as refused:
            case.refuse(str(refused))
        else:
            case.samples.append(sample)
