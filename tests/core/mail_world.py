"""A runtime with just what codes and mail need: a real database, a clock and a mailer that tests hold in their hands."""

import base64
import contextlib
import dataclasses
import itertools
import pathlib
import smtplib
import threading
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

from identity.ambient import Mailer, Origin, SystemEntropy
from identity.core.mail import outbox
from identity.core.proofs import codes
from identity.instruments.keyring import Keyring
from identity.instruments.vault import Vault
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Base, Database

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
MASTER_KEY = bytes(range(32))
ORIGIN = Origin(address="203.0.113.9", user_agent="Browser/1.0", request_id="r1")
_numbers = itertools.count()


class HandClock:
    """Stands still until `tick`."""

    def __init__(self, at: datetime = START) -> None:
        self._now = at

    def now(self) -> datetime:
        return self._now

    def tick(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


class Mailbox:
    """Keeps what it is given; `fail` may raise instead."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.fail: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def send(self, message: EmailMessage) -> None:
        self.fail()
        with self._lock:
            self.mails.append(message)

    def refuse(self) -> None:
        def fail() -> None:
            raise smtplib.SMTPRecipientsRefused({"ada@example.com": (451, b"ada@example.com is away")})

        self.fail = fail

    def accept(self) -> None:
        self.fail = lambda: None


class World(typing.NamedTuple):
    """An opened service, as far as mail goes."""

    rt: Runtime
    clock: HandClock
    mailbox: Mailbox

    def rows(self) -> list[outbox.MailInfo]:
        return [*outbox.list_mails(self.rt, limit=1000), *outbox.list_mails(self.rt, outbox.State.VOID, limit=1000)]


def runtime(url: str, clock: HandClock, mailer: Mailer, **changes: typing.Any) -> Runtime:
    settings = Settings(
        database_url=url,
        issuer="https://id.example.com",
        mail_from="Identity <identity@example.com>",
        master_keys=(base64.b64encode(MASTER_KEY).decode(),),
        **changes,
    )
    database, entropy = Database(url, pool_size=20), SystemEntropy()
    vault = Vault((MASTER_KEY,), entropy)
    Base.metadata.create_all(database.engine, tables=[t for t in Base.metadata.sorted_tables if t.name in _TABLES])
    vault.load_root(database, Origin.background(), clock.now())
    known = {
        "settings": settings,
        "clock": clock,
        "entropy": entropy,
        "database": database,
        "mailer": mailer,
        "ring": Keyring(settings, clock, database, vault),
    }
    # What mail does not need is not there: reaching for it would fail loudly.
    return Runtime(**{field.name: known.get(field.name) for field in dataclasses.fields(Runtime)})


_TABLES = {codes.Code.__tablename__, outbox.Mail.__tablename__, "server_secret", "audit_event", "lasting_total"}


@contextlib.contextmanager
def opened(url: str) -> Iterator[World]:
    clock, mailbox = HandClock(), Mailbox()
    rt = runtime(url, clock, mailbox)
    try:
        yield World(rt, clock, mailbox)
    finally:
        rt.database.close()


def fresh_url(kind: str, folder: pathlib.Path, postgres: typing.Any) -> str:
    """The address of an empty database of `kind`."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/identity.db"
    return postgres().create_database(f"mail{next(_numbers)}")
