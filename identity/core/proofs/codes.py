"""Codes that travel by mail: six digits, ten minutes, five tries, one success. One mechanism for every purpose.

A code is bound to its verification id, its purpose and its subject (the session, address, key pair or user that it is for).
At most one lives for each purpose and subject; the schema says so. Stored is a keyed hash. What a right code brings about is
decided by the concept that asked for it.
"""

from __future__ import annotations

import hmac
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Index, LargeBinary, String, Update, bindparam, delete, func, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Entropy, later
from identity.columns import Instant
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail import links, outbox
from identity.core.mail.letters import Template
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import INVALID_CODE, MAIL_LIMITED, Refused
from identity.instruments import limits, opaque
from identity.instruments.opaque import Kind, Secret
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

LIFE_SECONDS: Final = 600
MAX_ATTEMPTS: Final = 5
# How many times what one client may send goes to an address over all clients: whoever wants to shut its owner out needs as many.
CLIENTS_AT_ONCE: Final = 4
KEEP_SECONDS: Final = 86_400
_LINK_BYTES: Final = 19
_MOST: Final = 999_999

_DIGITS: Final = re.compile(r"[0-9]{6}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class Purpose(StrEnum):
    """What a code is for. A code for one purpose is no code for another."""

    SESSION = "session"
    EMAIL = "email"
    KEYPAIR = "keypair"
    LOGIN = "login"
    RESET = "reset"


_LETTER: Final[Mapping[Purpose, Template]] = {
    Purpose.SESSION: Template.SESSION_CODE,
    Purpose.EMAIL: Template.EMAIL_CODE,
    Purpose.KEYPAIR: Template.KEYPAIR_CODE,
    Purpose.LOGIN: Template.LOGIN_CODE,
    Purpose.RESET: Template.RESET_CODE,
}
# Two budgets for each address: what strangers ask for in its name must not use up what its owner, signed in or past the
# password, needs.
_PROVEN: Final = (Purpose.KEYPAIR, Purpose.LOGIN)
_UNPROVEN: Final = (Purpose.SESSION, Purpose.EMAIL, Purpose.RESET)


class State(StrEnum):
    """What became of a code. Expiry and exhausted tries are no states: both are checked at use."""

    LIVE = "live"
    SPENT = "spent"
    DEAD = "dead"


class Code(Base):
    """A code, without its digits. `address_key` is a keyed hash: for an unknown address nothing else is kept of it."""

    __tablename__ = "code"
    __table_args__ = (
        Index(
            "uq_code_live",
            "purpose",
            "subject",
            unique=True,
            sqlite_where=text("state = 'live'"),
            postgresql_where=text("state = 'live'"),
        ),
        Index("ix_code_address", "address_key", "created_at"),
        Index("ix_code_user_id", "user_id"),
        Index("ix_code_created_at", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    purpose: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str | None] = mapped_column(String(36))
    address: Mapped[str] = mapped_column(String(254))
    address_key: Mapped[bytes] = mapped_column(LargeBinary)
    client_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    attempts: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant)


class _AccountRow(NamedTuple):
    user_id: str | None
    address_key: bytes


_ACCOUNT: Final = Prepared(
    select(Code.user_id, Code.address_key).where(
        Code.id == bindparam("id"),
        Code.purpose == bindparam("purpose"),
        Code.state == State.LIVE,
        Code.attempts < MAX_ATTEMPTS,
        Code.expires_at > bindparam("now", type_=Instant),
    ),
    into=_AccountRow,
)


@dataclass(frozen=True, slots=True)
class Consumed:
    """What a right code was for."""

    subject: str
    user_id: str | None
    address: str


class WrongCode(Refused):
    """A guess that was evaluated and wrong: the only kind that counts against an account."""

    def __init__(self, attempts: int) -> None:
        super().__init__(INVALID_CODE, detail=f"attempt {attempts} of {MAX_ATTEMPTS}", evidence={"attempts": attempts})


def issue(
    rt: Runtime,
    unit: Unit,
    purpose: Purpose,
    *,
    subject: str,
    user_id: str | None,
    address: str,
    values: Mapping[str, str | datetime] | None = None,
    template: Template | None = None,
) -> str:
    """Mail a new code to `address`, a stored one, and return its verification id; the digits go nowhere else.

    The previous code for this purpose and subject is dead from then on. `values` are the letter's, but for `code`,
    `verification_id` and `until`, which come from here; `template` replaces the purpose's own letter. Raises
    Refused(MAIL_LIMITED) with `retry_after_seconds` beyond `IDENTITY_LIMIT_MAIL`, counted by address and client, and beyond four
    times as many to the address over all clients; one budget is for what anybody may ask for, another for what needs a password or a
    session.
    """
    return _issue(
        rt,
        unit,
        purpose,
        subject=subject,
        user_id=user_id,
        address=address,
        values=values,
        template=template,
        is_real=True,
    )


def issue_nothing(
    rt: Runtime,
    unit: Unit,
    purpose: Purpose,
    *,
    subject: str,
    address: str,
    values: Mapping[str, str | datetime] | None = None,
    template: Template | None = None,
    instead: Template | None = None,
) -> str:
    """What `issue` does, for an address that nobody has: no mail, and a verification id that no code will ever verify.

    `instead` is a letter without a code that goes to the address, a stored one, in place of the code. The call leaves a row all the
    same, whose digest is no digest of anything, and a void mail. So it costs the same time, here and when somebody tries codes on the
    id, and counts for the throttle alike. Choose `subject` as for a known address: one that is the same for each call about this
    address where a known one's would be.
    """
    return _issue(
        rt,
        unit,
        purpose,
        subject=subject,
        user_id=None,
        address=address,
        values=values,
        template=template,
        is_real=False,
        instead=instead,
    )


def consume(rt: Runtime, unit: Unit, purpose: Purpose, verification_id: str, code: str) -> Consumed:
    """Spend a code: of any number of right submissions exactly one succeeds, and five are evaluated in all.

    Raises Refused(INVALID_CODE), in the same words for wrong, spent, expired, unknown and malformed; the attempt counts even
    so, because that refusal keeps the unit's writes. After success let nothing in `unit` be refused that should not
    give the code back: a rollback undoes the spending as well.
    """
    consumed = attempt(rt, unit, purpose, verification_id, code)
    spend(unit, verification_id)
    return consumed


def attempt(rt: Runtime, unit: Unit, purpose: Purpose, verification_id: str, code: str) -> Consumed:
    """`consume` without the spending, for a code that is one of two things to be proven: `spend` it when both are, in this unit.

    A wrong guess is the WrongCode kind of Refused(INVALID_CODE).
    """
    # 1. Shape, in ASCII: other digits would be other spellings of one code.
    if not _UUID.fullmatch(verification_id) or not _DIGITS.fullmatch(code):
        raise Refused(INVALID_CODE, detail="not the shape of a code or a verification id")
    # 2. Take one of the tries, before looking: what is counted first cannot be evaluated twice.
    row = unit.execute(
        update(Code)
        .where(
            Code.id == verification_id,
            Code.purpose == purpose,
            Code.state == State.LIVE,
            Code.attempts < MAX_ATTEMPTS,
            Code.expires_at > unit.now,
        )
        .values(attempts=Code.attempts + 1)
        .returning(Code.digest, Code.attempts, Code.subject, Code.user_id, Code.address)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise Refused(
            INVALID_CODE, detail="no live code has this id", evidence=_why_not(unit, purpose, verification_id)
        )
    # 3. Compare.
    if not hmac.compare_digest(row.digest, _digest(_key(rt), verification_id, code)):
        audit.record(
            rt, unit, Action.CODE_REFUSED, actor=row.user_id or "", target=verification_id, purpose=purpose.value
        )
        raise WrongCode(row.attempts)
    return Consumed(row.subject, row.user_id, row.address)


def spend(unit: Unit, verification_id: str) -> None:
    """End a code that `attempt` found right in this unit. Raises Refused(INVALID_CODE) when somebody else has."""
    if not unit.changed(_ended(State.SPENT).where(Code.id == verification_id)):
        raise Refused(INVALID_CODE, detail="somebody else spent it first")


def find_account(rt: Runtime, purpose: Purpose, verification_id: str) -> str | None:
    """Whose guesses at this code count, while it can be tried: a user id, or `nobody` of the address; None when it cannot."""
    row = rt.database.row(_ACCOUNT, id=verification_id, purpose=purpose.value, now=rt.clock.now())
    return (row.user_id or row.address_key.hex()) if row else None


def nobody(rt: Runtime, address: str) -> str:
    """What stands for the user id of an address, or alias, that nobody has; like a code for it, it does not tell the address."""
    return _address_key(_key(rt), address).hex()


def cancel(unit: Unit, purpose: Purpose, subject: str) -> None:
    """End the live code for this subject, if there is one: the session, address or key pair is gone, or proven otherwise."""
    unit.changed(_ended(State.DEAD).where(Code.purpose == purpose, Code.subject == subject))


def cancel_mailed(unit: Unit, user_id: str, address: str) -> None:
    """End every live code that was mailed to this address of a user, whatever it is for: the address is theirs no more."""
    unit.changed(_ended(State.DEAD).where(Code.user_id == user_id, Code.address == address))


def forget(unit: Unit, user_id: str) -> int:
    """Delete every code of a user; for erasure. Returns how many."""
    return unit.changed(delete(Code).where(Code.user_id == user_id).execution_options(synchronize_session=False))


def purge(_rt: Runtime, unit: Unit) -> int:
    """Delete codes that are long over. Never one that lives or that the throttle still counts."""
    old = later(unit.now, -KEEP_SECONDS)
    return delete_batch(unit, Code, Code.created_at < old)


def end(_rt: Runtime, unit: Unit) -> int:
    """End every living code, whatever it is for; tell how many."""
    return unit.changed(_ended(State.DEAD))


def _issue(
    rt: Runtime,
    unit: Unit,
    purpose: Purpose,
    *,
    subject: str,
    user_id: str | None,
    address: str,
    values: Mapping[str, str | datetime] | None,
    template: Template | None,
    is_real: bool,
    instead: Template | None = None,
) -> str:
    key = _key(rt)
    address_key = _address_key(key, address)
    subject_key = hmac.digest(key, f"subject:{purpose}:{subject}".encode(), "sha256")
    # 1. Wait for whoever issues to the same address or subject: the throttle counts, then inserts. SQLite's writers wait anyway.
    if not rt.database.is_sqlite:
        unit.execute(select(*(func.pg_advisory_xact_lock(_lock_number(k)) for k in (address_key, subject_key))))
    # 2. Throttle, in a window that slides.
    client_key = hmac.digest(key, f"client:{limits.address_key(unit.origin.address)}".encode(), "sha256")
    _check_budget(rt, unit, purpose, address_key, client_key)
    # 3. The old code dies before the new one lives; the schema allows only one.
    cancel(unit, purpose, subject)
    code_id, code = rt.new_id(), _six_digits(rt.entropy)
    expires_at = later(unit.now, LIFE_SECONDS)
    digest = _digest(key, code_id, code)
    unit.add(
        Code(
            id=code_id,
            purpose=purpose,
            subject=subject,
            user_id=user_id,
            address=address if is_real else "",
            address_key=address_key,
            client_key=client_key,
            digest=digest if is_real else rt.entropy.bytes(len(digest)),
            state=State.LIVE,
            created_at=unit.now,
            expires_at=expires_at,
        )
    )
    # 4. The mail, in the same transaction.
    filled = {**(values or {}), "code": code, "verification_id": code_id, "until": expires_at}
    letter = template or _LETTER[purpose]
    if purpose is Purpose.RESET:
        filled["url"] = links.link(rt, "password-reset", _token_of(code_id, code))
    if is_real:
        outbox.queue(rt, unit, letter, to=address, values=filled, expires_at=expires_at)
    elif instead is not None:
        outbox.queue(rt, unit, instead, to=address, values=values or {}, expires_at=expires_at)
    else:
        outbox.queue_void(rt, unit, letter, values=filled, expires_at=expires_at)
    return code_id


def in_link(token: str) -> tuple[str, str] | None:
    """The verification id and the code in the token of a mailed link; None for what is no such token."""
    payload = opaque.decode(Kind.RESET, token, _LINK_BYTES)
    if payload is None or int.from_bytes(payload[16:]) > _MOST:
        return None
    return str(uuid.UUID(bytes=payload[:16])), f"{int.from_bytes(payload[16:]):06d}"


def _token_of(code_id: str, code: str) -> Secret:
    return opaque.encode(Kind.RESET, uuid.UUID(code_id).bytes + int(code).to_bytes(_LINK_BYTES - 16))


def _check_budget(rt: Runtime, unit: Unit, purpose: Purpose, address_key: bytes, client_key: bytes) -> None:
    """Raise Refused(MAIL_LIMITED) where this client, or all of them together, have sent the address what they may in the window."""
    budget = limits.budget_of(rt.settings.limit_mail)
    if budget is None:
        return
    amount, seconds = budget
    recent = (
        select(Code.created_at, Code.client_key)
        .where(
            Code.address_key == address_key,
            Code.created_at > later(unit.now, -seconds),
            Code.purpose.in_(_PROVEN if purpose in _PROVEN else _UNPROVEN),
        )
        .order_by(Code.created_at.desc())
        .limit(amount * CLIENTS_AT_ONCE)
    )
    sent = unit.execute(recent).all()
    own = [at for at, key in sent if key == client_key]
    if len(own) >= amount:
        frees, whose = own[amount - 1], "from one client"
    elif len(sent) >= amount * CLIENTS_AT_ONCE:
        frees, whose = sent[-1][0], "from all clients"
    else:
        return
    wait = (later(frees, seconds) - unit.now).total_seconds()
    evidence = {
        "expected": f"{rt.settings.limit_mail}, {CLIENTS_AT_ONCE} times that over all",
        "seen": {"own": len(own), "all": len(sent)},
    }
    raise Refused(
        MAIL_LIMITED,
        detail=f"too many codes to one address, {whose}",
        evidence=evidence,
        retry_after_seconds=max(1, math.ceil(wait)),
    )


def _why_not(unit: Unit, purpose: Purpose, verification_id: str) -> dict[str, object]:
    """What the log and `explain` may know of a code that could not be tried."""
    row = unit.session.get(Code, verification_id)
    if row is None:
        return {"code": "unknown"}
    return {
        "purpose": f"{row.purpose}, asked as {purpose}",
        "state": row.state,
        "attempts": row.attempts,
        "expired": row.expires_at <= unit.now,
    }


def _ended(state: State) -> Update:
    return update(Code).where(Code.state == State.LIVE).values(state=state).execution_options(synchronize_session=False)


def _key(rt: Runtime) -> bytes:
    return rt.ring.vault.derive("codes")


def _address_key(key: bytes, address: str) -> bytes:
    return hmac.digest(key, f"address:{address}".encode(), "sha256")


def _digest(key: bytes, code_id: str, code: str) -> bytes:
    """The keyed hash under which digits are stored, bound to their id: one code's row tells nothing about another's."""
    return hmac.digest(key, f"code:{code_id}:{code}".encode(), "sha256")


def _six_digits(entropy: Entropy) -> str:
    """A number from 000000 to 999999, each as likely as any other."""
    while True:
        number = int.from_bytes(entropy.bytes(3))
        # 2**24 is no multiple of a million: the rest above the sixteenth would favour small numbers.
        if number < 16_000_000:
            return f"{number % 1_000_000:06d}"


def _lock_number(key: bytes) -> int:
    return int.from_bytes(key[:8], signed=True)


KEEPING: Final = Keeping((Code,), purge=purge, forget=forget, end=end)
