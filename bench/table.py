"""Medians and ratios, as Markdown.

A ratio is taken round by round and then its median: what slows the machine for a while slows both of its sides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.cases import Case
from bench.raw import ARGON2

HEAD = """\
| path | req/s | CPU, us | peer's CPU to ours | to R | to its peer | over R, us | p50, ms | p99, ms |
|---|---:|---:|---:|---:|---:|---:|---:|---:|"""
FOOT = """\
The peer of a token route is oidc-provider's JWT, of introspection its opaque token, of `POST /user/token` the raw
Argon2id loop. "CPU" is the processor time of all threads of all processes of the server for each request, "over R" the time that a
request takes beside its one signature. Checks, introspection and their peers are asked for 500 subjects in turn; on ours
20 commits a second of somebody else go on beside."""


def render(cases: Sequence[Case], *, rsa: Sequence[float], argon2: Sequence[float]) -> str:
    """One row per case, in their order; `rsa` and `argon2` are the rates of the raw loops, round by round."""
    yardsticks = {ARGON2: argon2, **{case.name: case.rates for case in cases if case.samples}}
    spent = {case.name: case.cpus for case in cases if case.samples}
    return "\n".join([HEAD, *(_row(case, rsa, yardsticks, spent) for case in cases), "", FOOT])


def _row(
    case: Case, rsa: Sequence[float], yardsticks: Mapping[str, Sequence[float]], spent: Mapping[str, Sequence[float]]
) -> str:
    if not case.samples:
        return f"| {case.name} | not measured: {case.refusal.replace('|', '/')} | | | | | | | |"
    p50, p99 = median(sample.p50 for sample in case.samples), median(sample.p99 for sample in case.samples)
    errors = sum(sample.errors for sample in case.samples)
    cells = [
        case.name + (f" **({errors:,} errors)**" if errors else ""),
        f"{median(case.rates):,.0f}",
        f"{median(case.cpus):,.0f}",
        f"{ratio(spent[case.peer], case.cpus):.2f}" if case.peer in spent else "",
        f"{ratio(case.rates, rsa):.2f}",
        f"{ratio(case.rates, yardsticks[case.peer]):.2f}" if case.peer in yardsticks else "",
        f"{_over(case.rates, rsa):,.0f}" if case.signs else "",
        f"{p50:.2f}",
        f"{p99:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """The median, over the rounds, of one rate by the other."""
    return median(rate / other for rate, other in zip(rates, others, strict=True))


def _over(rates: Sequence[float], rsa: Sequence[float]) -> float:
    """Microseconds that a request takes beside its one signature."""
    return median(1e6 / rate - 1e6 / raw for rate, raw in zip(rates, rsa, strict=True))


def write(page: Path, heading: str, text: str) -> None:
    """Put the text under this heading of the page: in place of what stood there, else at the end."""
    sections = page.read_text().rstrip().split("\n## ") if page.exists() else ["# Benchmarks"]
    section = f"{heading}\n\n{text}"
    places = [place for place, old in enumerate(sections) if old.startswith(f"{heading}\n")]
    if places:
        sections[places[0]] = section
    else:
        sections.append(section)
    page.write_text("\n\n## ".join(each.rstrip() for each in sections) + "\n")
