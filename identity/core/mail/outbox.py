"""Mail that is as sure as the deed it tells of: queued in the same transaction, delivered after it by the background loop.

A mail is a row until it has left: pending, then sent, or dead when it was tried long enough or came to be worth nothing. Its
body is sealed at rest and erased once sent. Sending happens outside any transaction, under a claim: when a process dies
between sending and noting it, the claim runs out and the mail goes once more, with the same Message-ID; it is never lost. What
a letter says is `letters`'s matter, how it travels `transports`'. Callers: the concepts, with `queue`; the background loop, the
janitor and the command line with the rest.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Index,
    LargeBinary,
    Select,
    String,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Mapped, mapped_column

from identity import logs, paging
from identity.ambient import Origin, later
from identity.columns import Instant
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail import letters, totals
from identity.core.mail.letters import Template
from identity.errors import NOT_FOUND, Refused
from identity.instruments.vault import Unsealable
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Database, Prepared, Unit

POLL_SECONDS: Final = 0.5
CLAIM_SECONDS: Final = 120
FIRST_RETRY_SECONDS: Final = 5
LAST_RETRY_SECONDS: Final = 3_600
MIN_ATTEMPTS: Final = 10
GIVE_UP_SECONDS: Final = 86_400
_FINAL: Final = 500
_OURS_TO_MEND: Final = (530, 534, 535, 538)
"""Refused for want of a login: a setting to mend, and then the mail may go."""
KEEP_SENT_SECONDS: Final = 7 * 86_400
KEEP_DEAD_SECONDS: Final = 30 * 86_400

# Seven bits, so that every relay may pass the mail on unchanged.
_POLICY: Final = SMTP.clone(cte_type="7bit")
# Dot-atoms on both sides (RFC 5321 section 4.1.2, without its quoted strings and literals): nothing that a header could trip over.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS: Final = re.compile(rf"(?=.{{3,254}}\Z){_ATOM}(\.{_ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", re.ASCII)
_log = logging.getLogger("identity.outbox")


class State(StrEnum):
    """Where a mail is. A void one goes nowhere: it stands for a mail to an address that nobody has."""

    PENDING = "pending"
    SENT = "sent"
    DEAD = "dead"
    VOID = "void"


# Spelled out, not bound: a partial index serves only a query that shows its condition.
_IS_PENDING: Final = "state = 'pending'"


class Mail(Base):
    """One mail. `sealed` is the rendered letter as JSON; empty once it has been sent or can never be."""

    __tablename__ = "mail"
    __table_args__ = (
        Index("ix_mail_due", "next_at", sqlite_where=text(_IS_PENDING), postgresql_where=text(_IS_PENDING)),
        Index("ix_mail_recipient", "recipient"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Instant)
    recipient: Mapped[str] = mapped_column(String(254))
    template: Mapped[str] = mapped_column(String(32))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(String(8))
    attempts: Mapped[int] = mapped_column(BigInteger, default=0)
    next_at: Mapped[datetime] = mapped_column(Instant)
    give_up_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    claimed_until: Mapped[datetime | None] = mapped_column(Instant)
    last_error: Mapped[str] = mapped_column(String(64), default="")
    sent_at: Mapped[datetime | None] = mapped_column(Instant)


class _StandingRow(NamedTuple):
    waiting: int
    oldest: datetime | None
    given_up: int


_STANDING: Final = Prepared(
    select(
        select(func.count()).select_from(Mail).where(text(_IS_PENDING)).scalar_subquery().label("waiting"),
        select(func.min(Mail.created_at)).where(text(_IS_PENDING)).scalar_subquery().label("oldest"),
        select(func.count()).select_from(Mail).where(Mail.state == State.DEAD).scalar_subquery().label("given_up"),
    ),
    into=_StandingRow,
)


@dataclass(frozen=True, slots=True)
class MailInfo:
    """What administrators see of a mail: never what it says."""

    id: str
    created_at: datetime
    recipient: str
    template: str
    state: str
    attempts: int
    next_at: datetime
    last_error: str
    sent_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A mail that is ours to send until `claimed_until`."""

    id: str
    created_at: datetime
    recipient: str
    sealed: bytes
    attempts: int
    give_up_at: datetime
    expires_at: datetime | None
    claimed_until: datetime


def queue(
    rt: Runtime,
    unit: Unit,
    template: Template,
    *,
    to: str,
    values: Mapping[str, str | datetime],
    expires_at: datetime | None = None,
) -> str:
    """Have a letter delivered once the transaction of `unit` is committed; a rollback takes it back. Returns the mail's id.

    `to` is a stored, normalised address; anything else is a ValueError, as are `values` that do not fit the template (see
    `letters.render`). From where and when is taken from `unit`. After `expires_at` the mail is worth nothing and is not sent.
    """
    if not _ADDRESS.fullmatch(to):
        raise ValueError("the recipient of a mail must be a normalised address")
    return _insert(rt, unit, template, recipient=to, values=values, expires_at=expires_at, state=State.PENDING)


def queue_void(
    rt: Runtime,
    unit: Unit,
    template: Template,
    *,
    values: Mapping[str, str | datetime],
    expires_at: datetime | None = None,
) -> str:
    """Do all the work of `queue`, for nobody: what an unknown address costs must not differ from what a known one does."""
    return _insert(rt, unit, template, recipient="", values=values, expires_at=expires_at, state=State.VOID)


def deliver_due(rt: Runtime, *, limit: int = 20) -> int:
    """Send what is due, oldest first, one mail at a time; returns how many were tried.

    Any number of processes may do this at once. A mail that fails is tried again, later each time; it is given up after 24
    hours and 10 attempts, or when it expires. Raises Refused(UNAVAILABLE) or Contention when the database does.
    """
    tried = 0
    while tried < limit:
        # Read first: claiming takes the write lock, and mostly there is nothing to claim.
        if rt.database.row(_DUE, now=rt.clock.now()) is None:
            break
        mail = _claim(rt)
        if mail is None:
            break
        _deliver(rt, mail)
        tried += 1
    return tried


def deliver_until(rt: Runtime, stop: threading.Event) -> None:
    """Deliver mail as it comes, within `POLL_SECONDS` of its commit, until `stop` is set. Needs a thread of its own: a mail
    server may take its time. Survives a database that comes and goes.
    """
    while not stop.is_set():
        try:
            tried = deliver_due(rt, limit=1)
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the next mail may fare better; the loop must outlive it
            if not rt.database.outage.explains(exc):
                reason = str(exc) if isinstance(exc, Refused) else _reason(exc)
                logs.event(_log, logging.WARNING, "mail loop interrupted", reason=reason)
            tried = 0
        if not tried:
            stop.wait(POLL_SECONDS)


def listing(
    rt: Runtime, part: Part, *, state: State | None = None, recipients: Sequence[str] | None = None
) -> Listed[MailInfo]:
    """Mails, newest first: those in `state`, or all but void ones; only those to `recipients`, where given."""
    wanted = [Mail.state != State.VOID if state is None else Mail.state == state]
    if recipients is not None:
        wanted.append(Mail.recipient.in_(recipients))
    columns = (
        Mail.id,
        Mail.created_at,
        Mail.recipient,
        Mail.template,
        Mail.state,
        Mail.attempts,
        Mail.next_at,
        Mail.last_error,
        Mail.sent_at,
    )
    with rt.database.reading() as session:
        return paging.read(
            session, select(*columns).where(*wanted), Mail.id, part=part, make=MailInfo, newest_first=True
        )


def list_mails(rt: Runtime, state: State | None = None, *, limit: int = 50) -> Sequence[MailInfo]:
    """The newest mails, or the newest in `state`; void ones only when asked for."""
    return listing(rt, Part(limit=limit), state=state).items


def retry(unit: Unit, mail_id: str | None = None) -> int:
    """Try one mail, or all, again now: those that wait and those that were given up. Returns how many.

    A mail whose body is erased (sent, or expired) cannot be sent again. Raises Refused(NOT_FOUND) for a `mail_id` without such
    a mail.
    """
    again = (
        update(Mail)
        .where(Mail.state.in_((State.PENDING, State.DEAD)), Mail.sealed != b"")
        .values(
            state=State.PENDING,
            attempts=0,
            next_at=unit.now,
            give_up_at=later(unit.now, GIVE_UP_SECONDS),
            last_error="",
        )
    )
    if mail_id is not None:
        again = again.where(Mail.id == mail_id)
    count = unit.changed(again.execution_options(synchronize_session=False))
    if mail_id is not None and not count:
        raise Refused(NOT_FOUND, detail="no mail that could be sent again has this id")
    return count


@dataclass(frozen=True, slots=True)
class Standing:
    """How mail stands: what waits, since when the oldest, and how much was given up in the time that it is kept."""

    waiting: int
    oldest_seconds: float
    given_up: int


def standing_of(database: Database, now: datetime) -> Standing:
    """How mail stands now; for health and metrics."""
    row = database.row(_STANDING)
    waiting, oldest, given_up = (row.waiting, row.oldest, row.given_up) if row else (0, None, 0)
    return Standing(waiting, max(0.0, (now - oldest).total_seconds()) if oldest else 0.0, given_up)


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget mails that are long done. What is pending always stays."""
    kept = {State.SENT: KEEP_SENT_SECONDS, State.DEAD: KEEP_DEAD_SECONDS, State.VOID: KEEP_SENT_SECONDS}
    done = [(Mail.state == state) & (Mail.created_at < later(unit.now, -seconds)) for state, seconds in kept.items()]
    return delete_batch(unit, Mail, or_(*done))


def forget(unit: Unit, address: str) -> int:
    """Delete every mail to `address`, sent or not; for the erasure of a user. Returns how many."""
    return unit.changed(delete(Mail).where(Mail.recipient == address).execution_options(synchronize_session=False))


def reseal(rt: Runtime, unit: Unit) -> int:
    """Seal every kept body under the newest master key; tell how many rows changed."""
    vault, changed = rt.ring.vault, 0
    for row in unit.execute(select(Mail).where(Mail.sealed != b"").with_for_update()).scalars():
        if not vault.is_current(row.sealed):
            row.sealed = vault.seal(vault.open(row.sealed, context=f"mail:{row.id}"), context=f"mail:{row.id}")
            changed += 1
    return changed


def _insert(
    rt: Runtime,
    unit: Unit,
    template: Template,
    *,
    recipient: str,
    values: Mapping[str, str | datetime],
    expires_at: datetime | None,
    state: State,
) -> str:
    mail_id = rt.new_id()
    letter = letters.render(
        template,
        values,
        issuer=rt.settings.issuer,
        service=rt.settings.name,
        asked_at=unit.now,
        asked_from=unit.origin.address,
        user_agent=unit.origin.user_agent,
        logo=rt.settings.logo_url,
    )
    body = json.dumps({"subject": letter.subject, "text": letter.text, "html": letter.html}).encode()
    unit.add(
        Mail(
            id=mail_id,
            created_at=unit.now,
            recipient=recipient,
            template=template,
            sealed=rt.ring.vault.seal(body, context=f"mail:{mail_id}"),
            state=state,
            next_at=unit.now,
            give_up_at=later(unit.now, GIVE_UP_SECONDS),
            expires_at=expires_at,
        )
    )
    return mail_id


def _due(now: Any) -> Select[str]:
    """The mail to send next: due, and in nobody's hands."""
    return (
        select(Mail.id)
        .where(
            Mail.state == literal_column("'pending'"),
            Mail.next_at <= now,
            or_(Mail.claimed_until.is_(None), Mail.claimed_until <= now),
        )
        .order_by(Mail.next_at, Mail.id)
        .limit(1)
    )


_DUE: Final = Prepared(_due(bindparam("now", type_=Instant)))


def _claim(rt: Runtime) -> _Claimed | None:
    """Take the next due mail for ourselves; of any number that try at once, one gets it. Counts as an attempt, so that a mail
    which kills its process is not tried for ever.
    """
    with rt.unit(Origin.background()) as unit:
        # SQLite knows no row locks and needs none: its writers come one after the other.
        due = _due(unit.now).with_for_update(skip_locked=True).scalar_subquery()
        taken = (
            update(Mail)
            .where(Mail.id == due)
            .values(claimed_until=later(unit.now, CLAIM_SECONDS), attempts=Mail.attempts + 1)
            .returning(
                Mail.id,
                Mail.created_at,
                Mail.recipient,
                Mail.sealed,
                Mail.attempts,
                Mail.give_up_at,
                Mail.expires_at,
                Mail.claimed_until,
            )
            .execution_options(synchronize_session=False)
        )
        row = unit.execute(taken).one_or_none()
    return None if row is None else _Claimed(*row)


def _deliver(rt: Runtime, mail: _Claimed) -> None:
    if mail.expires_at is not None and mail.expires_at <= rt.clock.now():
        _bury(rt, mail, "expired", erase=True)
        return
    try:
        rt.mailer.send(_message(rt, mail))
    except Unsealable:
        # Kept: the right master key, given back, makes it readable again.
        _bury(rt, mail, "unsealable", erase=False)
    except Exception as exc:  # noqa: BLE001 -- one mail that cannot be sent, for whatever reason, must not stop the others
        if _is_final(exc):
            _bury(rt, mail, _reason(exc), erase=False)
        else:
            _postpone(rt, mail, _reason(exc))
    else:
        _note_sent(rt, mail)


def _message(rt: Runtime, mail: _Claimed) -> EmailMessage:
    letter = json.loads(rt.ring.vault.open(mail.sealed, context=f"mail:{mail.id}"))
    message = EmailMessage(policy=_POLICY)
    message["From"] = rt.settings.mail_from
    message["To"] = Address(addr_spec=mail.recipient)
    message["Subject"] = letter["subject"]
    message["Date"] = mail.created_at
    # The same for every delivery of this mail, so that a duplicate can be known as one.
    message["Message-ID"] = f"<{mail.id}@{message['From'].addresses[0].domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies to a machine
    message.set_content(letter["text"])
    message.add_alternative(letter["html"], subtype="html")
    return message


def _note_sent(rt: Runtime, mail: _Claimed) -> None:
    with rt.unit(Origin.background()) as unit:
        # Not tied to our claim: it has left, so whoever else may hold the mail by now should find it sent.
        unit.changed(
            update(Mail)
            .where(Mail.id == mail.id, Mail.state == State.PENDING)
            .values(state=State.SENT, sealed=b"", sent_at=unit.now, claimed_until=None, last_error="")
            .execution_options(synchronize_session=False)
        )


def _postpone(rt: Runtime, mail: _Claimed, reason: str) -> None:
    """Try again later; or never, when it was tried for long enough. Both bounds must be passed: ten quick failures are an
    outage of minutes, and a day in which nothing ran is no attempt.
    """
    if mail.attempts >= MIN_ATTEMPTS and mail.give_up_at <= rt.clock.now():
        _bury(rt, mail, reason, erase=False)
        return
    pause = min(FIRST_RETRY_SECONDS * 2 ** min(mail.attempts - 1, 20), LAST_RETRY_SECONDS)
    # Jitter, so that mails which failed together do not knock together again.
    jitter = int.from_bytes(rt.entropy.bytes(2)) / 65_536 * pause / 5
    with rt.unit(Origin.background()) as unit:
        next_at = later(unit.now, min(pause + jitter, LAST_RETRY_SECONDS))
        unit.changed(_ours(mail).values(next_at=next_at, claimed_until=None, last_error=reason))
    logs.event(_log, logging.WARNING, "mail postponed", mail=mail.id, attempts=mail.attempts, reason=reason)


def _bury(rt: Runtime, mail: _Claimed, reason: str, *, erase: bool) -> None:
    changes: dict[str, Any] = {"state": State.DEAD, "claimed_until": None, "last_error": reason}
    if erase:
        changes["sealed"] = b""
    with rt.unit(Origin.background()) as unit:
        if unit.changed(_ours(mail).values(**changes)):
            totals.count_up(unit, totals.GIVEN_UP)
    logs.event(_log, logging.ERROR, "mail given up", mail=mail.id, attempts=mail.attempts, reason=reason)


def _is_final(exc: Exception) -> bool:
    """Whether the server will not take this mail, ever (RFC 5321 section 4.2.1: 5yz), unlike one that will not take us yet."""
    refused = getattr(exc, "recipients", None)
    codes = [answer[0] for answer in refused.values()] if isinstance(refused, dict) else []
    if type(exc).__name__ in ("SMTPDataError", "SMTPSenderRefused"):
        codes.append(getattr(exc, "smtp_code", 0))
    return bool(codes) and all(code >= _FINAL and code not in _OURS_TO_MEND for code in codes)


def _ours(mail: _Claimed) -> Any:
    """The row, unless our claim ran out and somebody else holds it now."""
    return (
        update(Mail)
        .where(Mail.id == mail.id, Mail.state == State.PENDING, Mail.claimed_until == mail.claimed_until)
        .execution_options(synchronize_session=False)
    )


def _reason(exc: Exception) -> str:
    """The error's class and SMTP code, never its text: servers quote addresses and contents in it."""
    code = getattr(exc, "smtp_code", None)
    refused = getattr(exc, "recipients", None)
    if code is None and isinstance(refused, dict):
        code = next((answer[0] for answer in refused.values()), None)
    return f"{type(exc).__name__} {code if isinstance(code, int) else ''}".strip()[:64]


def end(_rt: Runtime, unit: Unit) -> int:
    """Forget what waits to be sent: it has been sent since the backup, or holds a code that is dead; tell how many."""
    return unit.changed(delete(Mail).where(Mail.state == State.PENDING))


# A mail knows no user, only an address: `admin.erasure` forgets those that were a user's alone.
KEEPING: Final = Keeping((Mail,), purge=purge, reseal=reseal, end=end)
