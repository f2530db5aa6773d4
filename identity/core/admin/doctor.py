"""What an operator looks at first: each part that a working service needs, how it is, and what to do where it is not good.

It opens what is there and makes nothing: no database, no key, no folder, no mail. A part that cannot be looked at because another is broken
says so. Callers: the command line.
"""

from __future__ import annotations

import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from identity import migrations
from identity.ambient import Clock, Origin, SystemEntropy
from identity.core.clients import expiry
from identity.core.mail import outbox
from identity.errors import Refused
from identity.instruments.issuers import NotFetched, fetch_keys
from identity.instruments.keyring import Keyring
from identity.instruments.limits import embedded_folder
from identity.instruments.transports import mail_directory, mailer_for
from identity.instruments.vault import has_root, key_file, open_vault
from identity.settings import BadSettings, Settings
from identity.storage import Contention, Database, translated

CLOCK_SECONDS: Final = (5, 60)
"""How far the database's clock may be from ours before it is a warning, and before nothing works: hosts must agree within a minute."""
DISK_BYTES: Final = (1 << 30, 100 << 20)
DESCRIPTORS: Final = (4_096, 1_024)
LATE_MAIL_SECONDS: Final = (300, 3_600)
SOON_DAYS: Final = 7
_DAY: Final = 86_400
_ROTATION_SLACK_DAYS: Final = 2
_OLDEST_KEY_DAYS: Final = 366
_FAILURES: Final = (Refused, Contention, BadSettings, NotFetched, SQLAlchemyError, OSError)


class State(StrEnum):
    """How a part is. Unknown: another one that it needs is broken."""

    GOOD = "good"
    WARNING = "warning"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one part is, and what to do if that is not good."""

    name: str
    state: State
    found: str
    to_do: str = ""


class _Seen(NamedTuple):
    state: State
    found: str
    to_do: str = ""


@dataclass(slots=True)
class _Case:
    """What is known so far."""

    settings: Settings
    clock: Clock
    opened: Database | None = None
    ring: Keyring | None = None

    @property
    def database(self) -> Database:
        assert self.opened is not None, "a check that needs it comes after the one that opens it"
        return self.opened


def examine(settings: Settings, clock: Clock) -> list[Finding]:
    """Every part, in the order in which to mend them. Takes some seconds where something does not answer."""
    case = _Case(settings, clock)
    try:
        findings: dict[str, Finding] = {}
        for name, needed, check, to_do in _CHECKS:
            findings[name] = _examine(case, name, findings.get(needed), check, to_do)
        return list(findings.values())
    finally:
        if case.opened is not None:
            case.opened.close()


def bad_settings(exc: BadSettings) -> list[Finding]:
    """What there is to say where not even the settings can be read."""
    return [
        Finding(
            "settings", State.BROKEN, str(exc), "set it right, or unset it: `identity settings` lists what there is"
        )
    ]


def verdict(findings: list[Finding]) -> int:
    """0: all is good; 1: there are warnings; 2: something is broken."""
    states = {one.state for one in findings}
    return 2 if State.BROKEN in states else int(State.WARNING in states)


def _examine(case: _Case, name: str, needed: Finding | None, check: Callable[[_Case], _Seen], to_do: str) -> Finding:
    if needed is not None and needed.state in (State.BROKEN, State.UNKNOWN):
        return Finding(
            name, State.UNKNOWN, f"was not looked at: {needed.name} is {needed.state}", f"mend {needed.name} first"
        )
    try:
        seen = check(case)
    except _FAILURES as exc:
        return Finding(name, State.BROKEN, _reason(exc), to_do)
    return Finding(name, seen.state, seen.found, "" if seen.state is State.GOOD else seen.to_do or to_do)


def _reason(exc: Exception) -> str:
    match exc:
        case Refused(problem=problem, detail=detail):
            return detail or problem.message
        case BadSettings() | NotFetched() | OSError() if str(exc):
            return " ".join(str(exc).split())
        case _:
            # The class only: the text of a database's error may quote what was stored.
            return type(exc).__name__


def _graded(value: float, limits: tuple[float, float], *, low_is_bad: bool = False) -> State:
    """The state of a value that is bad beyond the second limit and doubtful beyond the first."""
    beyond = [value < limit if low_is_bad else value > limit for limit in limits]
    return State.BROKEN if beyond[1] else State.WARNING if beyond[0] else State.GOOD


# What is kept.


def _database(case: _Case) -> _Seen:
    case.opened = Database(case.settings.database_url, pool_size=2, creates=False, is_pooled=case.settings.is_pooled)
    case.opened.ping()
    # An empty transaction that may write: it takes the lock of SQLite, and PostgreSQL's driver insists on a server that writes.
    with translated(), case.opened.engine.begin():
        pass
    return _Seen(State.GOOD, f"{case.opened.shown} answers and can be written")


def _migrations(case: _Case) -> _Seen:
    migrations.require(case.database)
    found = migrations.current(case.database) or ""
    newer = "" if found == migrations.HEAD else f", newer than this program's {migrations.HEAD}, which works"
    return _Seen(State.GOOD, f"the schema is at {found}{newer}")


def _master_key(case: _Case) -> _Seen:
    if not has_root(case.database):
        return _Seen(
            State.BROKEN,
            "this database was never served: it has no secrets yet",
            "run `identity serve` or `identity migrate`",
        )
    vault = open_vault(case.settings, SystemEntropy(), makes_key=False)
    vault.load_root(case.database, Origin.background(), case.clock.now())
    case.ring = Keyring(case.settings, case.clock, case.database, vault)
    case.ring.load()
    path = key_file(case.settings)
    if not case.settings.master_keys and path.stat().st_mode & 0o077:
        mode = f"{stat.S_IMODE(path.stat().st_mode):04o}"
        return _Seen(State.WARNING, f"others may read {path} ({mode})", f"chmod 600 {path}")
    where = "IDENTITY_MASTER_KEYS" if case.settings.master_keys else str(path)
    return _Seen(State.GOOD, f"{where} opens the server's secrets and its signing keys")


def _clock(case: _Case) -> _Seen:
    if case.database.is_sqlite:
        return _Seen(State.GOOD, "the database is on this host, so there is one clock")
    with case.database.reading() as session:
        session.execute(text("SELECT 1"))  # The time that connecting takes is not the clock's.
        before = case.clock.now()
        theirs = float(session.execute(text("SELECT extract(epoch from clock_timestamp())")).scalar_one())
        after = case.clock.now()
    apart = theirs - (before.timestamp() + after.timestamp()) / 2
    return _Seen(_graded(abs(apart), CLOCK_SECONDS), f"the database's clock is {apart:+.1f} s from ours")


# What others see of us, and we of them.


def _issuer(case: _Case) -> _Seen:
    issuer = case.settings.issuer
    # It checks that the metadata name this issuer, to the letter, and follows them to the keys.
    served = {key.kid for key in fetch_keys(issuer)[0]}
    if case.ring is not None:
        active = case.ring.active_kid(case.clock.now())
        if active not in served:
            return _Seen(
                State.BROKEN,
                f"{issuer} serves other keys than this database has (not {active})",
                "IDENTITY_ISSUER, or DNS, or the proxy leads to another deployment; or a cache in between holds old keys",
            )
    return _Seen(State.GOOD, f"{issuer} answers, its metadata name it, and its keys are ours")


def _proxies(case: _Case) -> _Seen:
    settings = case.settings
    if settings.trusted_proxies:
        return _Seen(State.GOOD, f"X-Forwarded-For is believed from {', '.join(settings.trusted_proxies)}")
    if urlsplit(settings.issuer).scheme == "https":
        return _Seen(
            State.WARNING,
            "the issuer is https, so a proxy ends TLS, and none is trusted: all clients share its address",
        )
    return _Seen(State.GOOD, "no proxy is in front, and none is believed")


def _mail(case: _Case) -> _Seen:
    settings = case.settings
    mailer_for(settings).handshake()
    folder = mail_directory(settings)
    if folder is not None:
        state = State.WARNING if urlsplit(settings.issuer).scheme == "https" else State.GOOD
        return _Seen(
            state,
            f"mail is written to {folder.absolute()} and reaches nobody",
            "set IDENTITY_MAIL_URL to a mail server",
        )
    if settings.mail_from.rstrip(">").endswith("@localhost"):
        return _Seen(
            State.WARNING, f"mail would come from {settings.mail_from}", "set IDENTITY_MAIL_FROM to an address of yours"
        )
    return _Seen(State.GOOD, "the mail server takes our connection, and our login where there is one")


# The host.


def _disk(case: _Case) -> _Seen:
    free = {folder: _free_bytes(folder) for folder in _folders(case)}
    folder, least = min(free.items(), key=lambda item: item[1])
    return _Seen(_graded(least, DISK_BYTES, low_is_bad=True), f"{least // (1 << 20)} MiB are free at {folder}")


def _folders(case: _Case) -> Iterator[Path]:
    """Where this host is written to, or would be: the nearest folder that is there."""
    mail = mail_directory(case.settings)
    wanted = [Path(tempfile.gettempdir())]
    if case.opened is not None and case.opened.file is not None:
        wanted.append(case.opened.file.parent)
    if not case.settings.redis_url:
        wanted.append(embedded_folder(case.settings))
    if mail is not None:
        wanted.append(mail)
    for path in wanted:
        yield next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _descriptors(_case: _Case) -> _Seen:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return _Seen(State.GOOD, "as many files as wanted may be open")
    return _Seen(
        _graded(hard, DESCRIPTORS, low_is_bad=True), f"{hard} files may be open at once, here where the doctor runs"
    )


# What changes with time.


def _signing_key(case: _Case) -> _Seen:
    assert case.ring is not None, "the master key was looked at before"
    now, days = case.clock.now(), case.settings.key_rotation_days
    active = case.ring.active_kid(now)
    since = next(one.signs_from for one in case.ring.list() if one.kid == active)
    age = _days_between(since or now, now)
    found = f"{active} has signed for {age:.0f} days"
    if not days:
        old = age > _OLDEST_KEY_DAYS
        return _Seen(
            State.WARNING if old else State.GOOD, f"{found}; rotation is by hand", "run `identity keys rotate`"
        )
    late = age > days + _ROTATION_SLACK_DAYS
    return _Seen(State.WARNING if late else State.GOOD, f"{found} of {days}")


def _secrets(case: _Case) -> _Seen:
    ends = expiry.soonest(case.database, case.clock.now())
    if not ends:
        return _Seen(State.GOOD, f"no secret, key pair or trust ends within {max(expiry.WARNING_DAYS)} days")
    kind, seconds = min(ends.items(), key=lambda item: item[1])
    state = State.WARNING if seconds < SOON_DAYS * _DAY else State.GOOD
    return _Seen(state, f"the next to end is a {kind.replace('_', ' ')}, in {seconds / _DAY:.1f} days")


def _backlog(case: _Case) -> _Seen:
    mail = outbox.standing_of(case.database, case.clock.now())
    state = _graded(mail.oldest_seconds, LATE_MAIL_SECONDS)
    found = f"{mail.waiting} mails wait, the oldest for {mail.oldest_seconds:.0f} s"
    if mail.given_up:
        state = State.WARNING if state is State.GOOD else state
        found += f"; {mail.given_up} were given up"
    return _Seen(state, found)


def _days_between(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() / _DAY


# In the order of mending: a name, the check that must not be broken before it, the check, and what to do where that says nothing better.
_CHECKS: Final[tuple[tuple[str, str, Callable[[_Case], _Seen], str], ...]] = (
    ("database", "", _database, "see that it runs, and that IDENTITY_DATABASE_URL names it; `identity serve` makes a new one"),
    ("migrations", "database", _migrations, "run `identity migrate`"),
    ("masterKey", "migrations", _master_key, "restore the master key: IDENTITY_MASTER_KEYS, or master.key in IDENTITY_KEYS_DIR"),
    ("clock", "database", _clock, "synchronise both clocks (chrony, systemd-timesyncd)"),
    ("issuer", "", _issuer, "start the service; IDENTITY_ISSUER must be its address to the letter; see DNS, proxy, certificate"),
    ("proxies", "", _proxies, "set IDENTITY_TRUSTED_PROXIES to the networks of your proxy"),
    ("mail", "", _mail, "see IDENTITY_MAIL_URL, the mail server and its certificate; then `identity mail retry`"),
    ("disk", "", _disk, "make room, or move it to a larger disk"),
    ("descriptors", "", _descriptors, "raise the hard limit: LimitNOFILE in systemd, ulimits in containers, `ulimit -Hn` in a shell"),
    ("signingKey", "masterKey", _signing_key, "see that the service or `identity worker` runs; by hand `identity keys rotate`"),
    ("secrets", "migrations", _secrets, "see `identity expiring`, and replace what is about to end"),
    ("backlog", "migrations", _backlog, "see `identity mail list`, and why the mail server refuses; then `identity mail retry`"),
)  # fmt: skip
assert {needed for _, needed, _, _ in _CHECKS} - {""} <= {name for name, _, _, _ in _CHECKS}


def described(findings: list[Finding]) -> dict[str, Any]:
    """The document of the command line."""
    words = ("good", "warnings", "broken")
    return {
        "status": words[verdict(findings)],
        "checks": [
            {"name": one.name, "state": str(one.state), "found": one.found, "toDo": one.to_do} for one in findings
        ],
    }
