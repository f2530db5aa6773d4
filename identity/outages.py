"""A database that is not well: its errors in our words, and its name followed to another server. Only `storage` and `engines` know it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from identity.engines import Address, postgresql_options
from identity.errors import UNAVAILABLE, Refused

PROBE_SECONDS: Final = 3
_UNIQUE: Final = "23505"
READ_ONLY: Final = "25006"
"""A standby that was not promoted yet, or a primary that was made read-only."""

_IDENTITY: Final = (
    b"SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,"
    b" pg_postmaster_start_time()::text || coalesce(inet_server_addr()::text, '') || coalesce(inet_server_port(), 0)"
)


class Contention(Exception):
    """The database chose this transaction as the victim of a conflict; run the whole entry point again."""


def translate(exc: BaseException | None, *, connecting: bool = False) -> None:
    """Raise what callers know instead of a lost or contended database; return for every other error."""
    if not isinstance(exc, DBAPIError):
        return
    state = getattr(exc.orig, "sqlstate", None)
    if state in ("40001", "40P01"):
        raise Contention(state) from exc
    lost = exc.connection_invalidated or state == READ_ONLY or isinstance(exc, OperationalError | InterfaceError)
    if lost and state != "22P05":
        raise Refused(
            UNAVAILABLE, detail=reason_of(exc, connecting=connecting), retry_after_seconds=1, cause=exc
        ) from exc


def is_race(exc: BaseException) -> bool:
    """Whether the transaction lost a race and may do better when it runs again, whole: a conflict, or a row that somebody else made
    between its look and its insert.
    """
    return isinstance(exc, Contention) or getattr(getattr(exc, "orig", None), "sqlstate", None) == _UNIQUE


def reason_of(exc: BaseException, *, connecting: bool = False) -> str:
    """The driver's error class and code, never its text: that may quote parameters. What refuses a connection has no parameters yet."""
    origin = getattr(exc, "orig", None) or exc
    code = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", "") or ""
    said = " ".join(str(origin).split())[:200] if connecting and not code else ""
    return f"{type(origin).__name__} {code}{said}".strip()


class Outage:
    """Since when the database takes no writes, as far as this process has tried, and why."""

    __slots__ = ("reason", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        """On the monotonic clock; None while it serves."""
        self.reason = ""

    def began(self, reason: str) -> None:
        """It did not serve; said again, the first time counts."""
        if self.since is None:
            self.reason = reason
            self.since = time.monotonic()

    def ended(self) -> None:
        """It has taken a write."""
        self.since = None

    def explains(self, exc: BaseException) -> bool:
        """Whether `exc` is no more than this outage, so that whoever met it need not say so as well."""
        return self.since is not None and isinstance(exc, Refused) and exc.problem.code == UNAVAILABLE.code


class Server(NamedTuple):
    """Who answers under the database's name now."""

    identity: str
    writes: bool
    address: Address


def find_server(engine: Engine, url: URL, *, pooled: bool) -> Server | None:
    """Ask over a connection of its own, for at most a few seconds; None when nobody answers.

    Whether it writes is asked, not demanded, where the URL names one host: a primary that was demoted must be recognised.
    """
    driver: Any = engine.dialect.loaded_dbapi
    arguments, options = engine.dialect.create_connect_args(url)
    options = {**options, **postgresql_options(url, pooled=pooled)}
    if "," not in str(options.get("host", "")):
        options["target_session_attrs"] = "any"
    try:
        with contextlib.closing(driver.connect(*arguments, **options)) as connection:
            return _asked(connection.pgconn)
    except (driver.Error, OSError, TimeoutError):
        return None


def _asked(connection: Any) -> Server | None:
    """The answer to `_IDENTITY`. By hand: a server that was paused would hold an ordinary query for ever."""
    connection.send_query(_IDENTITY)
    deadline = time.monotonic() + PROBE_SECONDS
    while connection.is_busy():
        if not select.select([connection.socket], [], [], max(0, deadline - time.monotonic()))[0]:
            return None
        connection.consume_input()
    result = connection.get_result()
    if result is None or result.ntuples != 1:
        return None
    address = connection.host.decode(), connection.port.decode()
    return Server(result.get_value(0, 1).decode(), result.get_value(0, 0) == b"f", address)


def cut(connection: Any) -> None:
    """End a connection of PostgreSQL's whoever uses it: a thread that waits in it wakes with an error."""
    with contextlib.suppress(Exception):  # Closed already, by whoever had it.
        shared = socket.socket(fileno=os.dup(connection.pgconn.socket))
        with contextlib.closing(shared):
            shared.shutdown(socket.SHUT_RDWR)
