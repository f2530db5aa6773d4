"""What Prometheus reads: counts and times of requests by route, and how soon credentials expire.

Labels are declared routes, statuses and kinds, never anything that a client chose. Nothing of prometheus_client is imported with this
module: whether its values are shared between processes it decides once, when it is imported first, by a variable that `serve` sets.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import platform
import shutil
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from identity import logs, migrations
from identity.ambient import SystemClock
from identity.core import upkeep
from identity.core.admin import backups, keys
from identity.core.clients import expiry
from identity.core.mail import outbox, totals
from identity.errors import Problem
from identity.instruments.counts import CACHE_HITS, LOCKOUTS, LOGINS, REFUSALS, TOKENS
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Database

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Histogram

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_FOLDER_PREFIX: Final = "identity-metrics-"
_log: Final = logging.getLogger("identity.metrics")
_making: Final = threading.Lock()
# 401, 403, 429 and 503 are said in words that are the same for everybody; of the others some hold a name.
_SAID_IN_CONSTANT_WORDS: Final = frozenset({401, 403, 429, 503})
_MOST_CHECKS: Final = 200
_checks: set[str] = set()
_counting: Final = threading.Lock()
_has_failed: Final = threading.Event()


class _Counts:
    """The requests of one route and status that were answered since the last `flush`: how many in each bucket, and their seconds."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0


_counted: dict[tuple[str, int], _Counts] = {}


def observe(route: str, status: int, seconds: float) -> None:
    """Count one answered request; Prometheus sees it from the next `flush` on."""
    with _counting:
        counts = _counted.get((route, status))
        if counts is None:
            counts = _counted[route, status] = _Counts()
        counts.buckets[bisect_left(_BUCKETS, seconds)] += 1
        counts.seconds += seconds


def flush() -> None:
    """Hand on what was counted; called every second or so, since the library takes longer for a count than many an answer does.

    A count that cannot be kept is lost, and fails nobody.
    """
    with _counting:
        counted = dict(_counted)
        _counted.clear()
    for (route, status), counts in counted.items():
        try:
            _hand_on(route, status, counts)
        except Exception as exc:  # noqa: BLE001 -- see above; what fails is a file of another library
            _log_loss(type(exc).__name__)


def _log_loss(reason: str) -> None:
    """Once for each process, and not for each request: what fails first says what is wrong, the rest follows from it."""
    if not _has_failed.is_set():
        _has_failed.set()
        logs.event(_log, logging.ERROR, "metrics cannot be written", reason=reason)


def _hand_on(route: str, status: int, counts: _Counts) -> None:
    # The registry refuses an instrument that is made twice.
    with _making:
        requests, times = _instruments()
    requests.labels(route, str(status)).inc(sum(counts.buckets))
    # What `observe` does for one value, for many at once: the library has no public way.
    histogram = times.labels(route)
    histogram._sum.inc(counts.seconds)  # noqa: SLF001 -- see above
    for bucket, count in zip(histogram._buckets, counts.buckets, strict=True):  # noqa: SLF001 -- see above
        if count:
            bucket.inc(count)


def publish(rt: Runtime) -> None:
    """Add what this process has counted since the last call: logins, refusals, lockouts, and what its memories have spared it."""
    try:
        counters = _counters()
        for cache, memory in (("passes", rt.memory), ("tokens", rt.issued)):
            rt.counts.add(CACHE_HITS, cache, by=memory.take_hits())
        rt.counts.add(CACHE_HITS, "answers", by=rt.given_again)
        rt.given_again = 0
        for (name, *labels), count in rt.counts.take().items():
            (counters[name].labels(*labels) if labels else counters[name]).inc(count)
    except Exception as exc:  # noqa: BLE001 -- see `flush`
        _log_loss(type(exc).__name__)


def check_of(problem: Problem) -> str:
    """The words of a refusal, which name the check; nothing for those whose words hold a name or a number."""
    check = problem.message if problem.status in _SAID_IN_CONSTANT_WORDS else ""
    if check not in _checks and len(_checks) >= _MOST_CHECKS:
        return ""
    _checks.add(check)
    return check


def make_shared_folder() -> Path:
    """The folder in which the processes that are forked from this one count together; it goes when this process ends.

    It is locked for as long as any of them lives, so that those whose processes were all killed can be told from the others: they are
    removed here.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        _sweep(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
        # Held open, and so locked, until this process and all its children are gone; closed by nobody.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(descriptor)  # Another start took it for a leftover, between the two lines.
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    # What is registered is inherited by every worker, whose end is not the end of the folder.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Somebody else's, in use, or swept by another at this moment.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def collect_all(settings: Settings) -> CollectorRegistry:
    """What `/metrics` shows: the sums of all worker processes, and the state that is read from the database when asked."""
    from prometheus_client import CollectorRegistry  # noqa: PLC0415 -- see the module
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 -- see the module

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # it has no types
    registry.register(_Build())
    registry.register(_Expiry(settings))
    registry.register(_Standing(settings))
    return registry


class _Build:
    """Which program this is."""

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 -- see the module

        labels = {"version": version("identity"), "schema": migrations.HEAD, "python": platform.python_version()}
        gauge = GaugeMetricFamily("identity_build_info", "Which program this is", labels=list(labels))
        gauge.add_metric(list(labels.values()), 1)
        yield gauge


class _Expiry:
    """The seconds until the next credential of each kind stops working, if one does within 30 days."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 -- see the module

        gauge = GaugeMetricFamily(
            "identity_credential_expiry_seconds", "Seconds until the next one stops working", labels=["kind"]
        )
        # Opened for this scrape only: a connection that is kept here would be inherited by workers that are forked later.
        database = Database(self._settings.database_url, pool_size=1, creates=False, is_pooled=self._settings.is_pooled)
        try:
            for kind, seconds in expiry.soonest(database, SystemClock().now()).items():
                gauge.add_metric([kind], seconds)
        finally:
            database.close()
        yield gauge


class _Standing:
    """How mail and the janitor stand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 -- see the module

        # Opened for this scrape only, see `_Expiry`.
        database = Database(self._settings.database_url, pool_size=1, creates=False, is_pooled=self._settings.is_pooled)
        now = SystemClock().now()
        try:
            mail, overdue = outbox.standing_of(database, now), upkeep.backlog(database, self._settings, now)
            backup_age = backups.seconds_since_last(database, now)
            given_up = totals.value_of(database, totals.GIVEN_UP)
            key_age = keys.active_age_seconds(database, now)
        finally:
            database.close()
        yield GaugeMetricFamily("identity_mail_waiting", "Mails that wait to be sent", mail.waiting)
        yield GaugeMetricFamily("identity_mail_oldest_seconds", "How long the oldest has waited", mail.oldest_seconds)
        yield CounterMetricFamily("identity_mail_given_up", "Mails given up, ever, by all processes", given_up)
        yield GaugeMetricFamily("identity_signing_key_age_seconds", "How long the active key has signed", key_age)
        gauge = GaugeMetricFamily("identity_janitor_backlog", "Rows that are over and still there", labels=["kind"])
        for kind, count in overdue.items():
            gauge.add_metric([kind], count)
        yield gauge
        yield GaugeMetricFamily(
            "identity_backup_age_seconds", "How old the newest `identity backup` is; +Inf: there is none", backup_age
        )


@cache
def _counters() -> dict[str, Counter]:
    from prometheus_client import Counter  # noqa: PLC0415 -- see the module

    return {
        LOGINS: Counter("identity_logins", "Logins, by the methods that proved them or failed to", ["way", "result"]),
        REFUSALS: Counter("identity_refusals", "Requests refused, by error and check", ["error", "check"]),
        LOCKOUTS: Counter("identity_lockouts", "Lockouts that failures have begun"),
        TOKENS: Counter("identity_application_tokens", "Tokens that applications asked for", ["result"]),
        CACHE_HITS: Counter("identity_cache_hits", "What was known without a second look", ["cache"]),
    }


@cache
def _instruments() -> tuple[Counter, Histogram]:
    from prometheus_client import Counter, Histogram  # noqa: PLC0415 -- see the module

    return (
        Counter("identity_requests", "Requests answered", ["route", "status"]),
        Histogram("identity_request_seconds", "Time to answer, in seconds", ["route"], buckets=_BUCKETS),
    )
