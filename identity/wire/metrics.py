"""What Prometheus reads: counts and times of requests by route, and the state of credentials and mail.

Labels are declared routes and statuses, never anything that a client chose.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Histogram

_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_requests = Counter("identity_requests", "Requests answered", ["route", "status"])
_seconds = Histogram("identity_request_seconds", "Time to answer, in seconds", ["route"], buckets=_BUCKETS)
_by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}


def observe(route: str, status: int, seconds: float) -> None:
    """Count one answered request."""
    known = _by_route.get((route, status))
    if known is None:
        known = _by_route[route, status] = (_requests.labels(route, str(status)), _seconds.labels(route))
    known[0].inc()
    known[1].observe(seconds)
