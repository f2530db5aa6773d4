"""`python -m bench.statuslists`: what a status list costs where 10,000 of a million sessions have ended, and what naming one costs a token.

All of it in this process, on a database of its own: no socket, no other work. Times are told by the clock and by the processor.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

from sqlalchemy import insert

from identity.core.tokens import claims
from identity.instruments.statuslists import INVALID, StatusEntry, StatusList, StatusLists
from identity.opening import create_runtime
from identity.runtime import Runtime
from tests.world import ORIGIN, FakeClock, Mailbox, fast_settings

SESSIONS = 1_000_000
ENDED = 10_000
MOST_BYTES = 300_000
MOST_MS = 300.0
MOST_RATIO = 1.03
_ROUNDS = 7
_PAIRS = 400
_TOKENS = 10


def main() -> None:
    """Print each figure beside its bound."""
    with tempfile.TemporaryDirectory() as folder:
        settings = fast_settings(keys_dir=Path(folder) / "keys", database_url=f"sqlite:///{folder}/identity.db")
        clock = FakeClock()
        with closing(create_runtime(settings, clock=clock, mailer=Mailbox())) as rt:
            _fill(rt)
            for line in (*_building(rt), *_issuing(rt)):
                print(line, flush=True)


def _fill(rt: Runtime) -> None:
    with rt.unit(ORIGIN) as unit:
        until = unit.now.replace(year=unit.now.year + 1)
        unit.execute(insert(StatusList).values(id=0, used=SESSIONS, named_until=until))
        rows = [
            {"place": place, "value": INVALID, "token_id": "", "entered_at": unit.now, "expires_at": until}
            for place in random.Random(1).sample(range(SESSIONS), ENDED)
        ]
        unit.session.execute(insert(StatusEntry), rows)


def _building(rt: Runtime) -> Iterator[str]:
    """From nothing, as at a start; then after one more session has ended, as once in a `ttl`."""
    published = rt.status_lists.find(0)
    assert published is not None, "the list was filled above"
    yield f"size: {len(published.body):,} bytes (at most {MOST_BYTES:,}); gzipped {len(published.gzipped):,}"

    def anew() -> None:
        fresh = StatusLists(rt.settings, rt.clock, rt.database, rt.ring)
        fresh.find(0)

    def after_one_more() -> None:
        with rt.unit(ORIGIN) as unit:
            place = random.SystemRandom().randrange(SESSIONS)
            row = {
                "value": INVALID,
                "token_id": "",
                "entered_at": unit.now,
                "expires_at": unit.now.replace(year=unit.now.year + 1),
            }
            unit.execute(insert(StatusEntry).prefix_with("OR IGNORE").values(place=place, **row))
        rt.status_lists.refresh()

    for name, what in (("read and built from nothing", anew), ("one more ended", after_one_more)):
        times = [_timed(what) for _ in range(_ROUNDS)]
        wall, busy = median(one for one, _ in times), median(one for _, one in times)
        yield f"{name}: {wall:.0f} ms by the clock (at most {MOST_MS:.0f}), {busy:.0f} ms of processor"


def _issuing(rt: Runtime) -> Iterator[str]:
    """A token that names a place beside one that does not, in turn: the median of the ratios, and the ratio of the medians."""
    times: dict[bool, list[float]] = {True: [], False: []}

    def some(place: int | None) -> Callable[[], None]:
        def issue() -> None:
            for _ in range(_TOKENS):
                claims.issue_application_token(
                    rt,
                    client_id="c" * 36,
                    secret_id="s" * 12,
                    place=place,
                    roles=("analyst",),
                    tenant=None,
                    scope=("read",),
                    audience=("https://api.example.com",),
                    seconds=3_600,
                    now=rt.clock.now(),
                )

        return issue

    for number in range(_PAIRS):
        for named in (number % 2 == 0, number % 2 == 1):  # Each goes first as often as the other.
            times[named].append(_timed(some(4711 if named else None))[1])
    ratio = median(times[True]) / median(times[False])
    pairs = median(one / other for one, other in zip(times[True], times[False], strict=True))
    cost = (median(times[True]) - median(times[False])) * 1_000 / _TOKENS
    yield f"a token that names its place: {ratio:.3f} x by medians, {pairs:.3f} x by pairs (at most {MOST_RATIO}); {cost:.1f} us more"


def _timed(what: Callable[[], None]) -> tuple[float, float]:
    started, used = time.perf_counter(), time.process_time()
    what()
    return (time.perf_counter() - started) * 1_000, (time.process_time() - used) * 1_000


if __name__ == "__main__":
    main()
