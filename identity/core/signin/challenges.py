"""Logins that wait for their second step: one row each, good for one success and five tries.

A dialect spells the challenge as a compact JWT of a type of its own, signed (HS256) with a secret that is no key of the ring: nothing
that reads access tokens reads it, and nothing in the JWKS verifies it. What it is good for stands in the row, not in the token.
A guess at it counts towards the account's lockouts like every other; what a right one opens is decided by `by_password`.
"""

from __future__ import annotations

import base64
import hmac
import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, assert_never

from sqlalchemy import BigInteger, ForeignKey, String, bindparam, delete, select, update
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import later
from identity.columns import Instant
from identity.core.clients import applications
from identity.core.keeping import Keeping, delete_batch
from identity.core.people import accounts
from identity.core.people.accounts import UserInfo
from identity.core.proofs import codes
from identity.core.proofs.codes import Purpose
from identity.core.proofs.guesses import Guess
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import factors
from identity.core.signin.factors import Factor
from identity.errors import INVALID_CODE, Refused
from identity.instruments import opaque
from identity.instruments.opaque import Kind, Secret
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

MAX_ATTEMPTS: Final = 5
TYPE: Final = "mfa-challenge+jwt"
_KEEP_SECONDS: Final = 86_400
_LINK: Final = "LINK"
_LINK_MAC_BYTES: Final = 16
_LINK_BYTES: Final = 16 + _LINK_MAC_BYTES


class State(StrEnum):
    """What became of a challenge. Expiry and exhausted tries are no states: both are checked at use."""

    PENDING = "pending"
    SPENT = "spent"


class Challenge(Base):
    """A right password that waits for its second factor, and what it will open. `version` is the user's when it was made."""

    __tablename__ = "challenge"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), index=True)
    version: Mapped[int] = mapped_column(BigInteger)
    factor: Mapped[str] = mapped_column(String(8))
    allows_fixed: Mapped[bool]
    verification_id: Mapped[str] = mapped_column(String(36), default="")
    handout: Mapped[str] = mapped_column(String(16))
    client_id: Mapped[str] = mapped_column(String(36))
    resource: Mapped[str] = mapped_column(String(300))
    attempts: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


@dataclass(frozen=True, slots=True)
class Issued:
    """A challenge on its way to whoever gave the right password."""

    token: Secret
    factor: Factor
    expires_in: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A challenge that may still be answered."""

    id: str
    user_id: str
    version: int
    factor: Factor
    allows_fixed: bool
    verification_id: str
    client_id: str
    resource: str


@dataclass(frozen=True, slots=True)
class Linked:
    """A link that may still be followed, and whose login it stands for."""

    id: str
    user_id: str
    version: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Answered:
    """A challenge that was met: who signs in, and how they proved it."""

    user: UserInfo
    amr: tuple[str, ...]
    client_id: str
    resource: str


class _ChallengeRow(NamedTuple):
    user_id: str
    version: int
    factor: str
    allows_fixed: bool
    verification_id: str
    client_id: str
    resource: str
    handout: str
    state: str
    attempts: int
    expires_at: datetime


_BY_ID = Prepared(
    select(
        Challenge.user_id,
        Challenge.version,
        Challenge.factor,
        Challenge.allows_fixed,
        Challenge.verification_id,
        Challenge.client_id,
        Challenge.resource,
        Challenge.handout,
        Challenge.state,
        Challenge.attempts,
        Challenge.expires_at,
    ).where(Challenge.id == bindparam("id")),
    into=_ChallengeRow,
)


def issue(
    rt: Runtime, unit: Unit, user: UserInfo, *, handout: str, client_id: str, resource: str, allows_fixed: bool = False
) -> Issued:
    """A challenge for a user whose password was right; where they have neither TOTP nor a fixed code, a code is mailed.

    `handout` says what its success opens, and only whoever asks for the same may answer it. Raises Refused(RATE_LIMITED) when too
    many codes went to the address.
    """
    factor = factors.factor_of(rt, unit, user.id, allows_fixed=allows_fixed)
    challenge_id = rt.new_id()
    verification_id = ""
    if factor is Factor.EMAIL:
        verification_id = codes.issue(
            rt,
            unit,
            Purpose.LOGIN,
            subject=challenge_id,
            user_id=user.id,
            address=user.email,
            values={"account": user.alias},
        )
    seconds = rt.settings.challenge_seconds
    expires_at = later(unit.now, seconds)
    unit.add(
        Challenge(
            id=challenge_id,
            user_id=user.id,
            version=user.version,
            factor=factor,
            allows_fixed=allows_fixed,
            verification_id=verification_id,
            handout=handout,
            client_id=client_id,
            resource=resource,
            state=State.PENDING,
            created_at=unit.now,
            expires_at=expires_at,
        )
    )
    audit.record(rt, unit, Action.LOGIN_CHALLENGED, actor=user.id, target=challenge_id, factor=factor)
    return Issued(_spell(rt, challenge_id, unit.now, expires_at), factor, seconds)


def issue_link(rt: Runtime, unit: Unit, user: UserInfo, *, handout: str, seconds: int, actor: str) -> Secret:
    """The token of a link that stands for the user's login, once, whoever follows it; for whoever holds the host.

    It is a challenge without a question: its handout is answered by `spend_link` alone.
    """
    challenge_id = rt.new_id()
    unit.add(
        Challenge(
            id=challenge_id,
            user_id=user.id,
            version=user.version,
            factor=_LINK,
            allows_fixed=False,
            handout=handout,
            client_id="",
            resource="",
            state=State.PENDING,
            created_at=unit.now,
            expires_at=later(unit.now, seconds),
        )
    )
    audit.record(rt, unit, Action.LOGIN_CHALLENGED, actor=actor, target=user.id, factor=_LINK)
    return opaque.encode(Kind.LINK, uuid.UUID(challenge_id).bytes + _link_mac(rt, handout, challenge_id))


def find_link(rt: Runtime, token: str, *, handout: str) -> Linked | None:
    """The login that a link's token stands for, if it is good now; or None. Only reads."""
    raw = opaque.decode(Kind.LINK, token, _LINK_BYTES)
    challenge_id = str(uuid.UUID(bytes=raw[:16])) if raw else ""
    if raw is None or not hmac.compare_digest(raw[16:], _link_mac(rt, handout, challenge_id)):
        return None
    row = rt.database.row(_BY_ID, id=challenge_id)
    if row is None or row.handout != handout or row.state != State.PENDING or row.expires_at <= rt.clock.now():
        return None
    return Linked(challenge_id, row.user_id, row.version, row.expires_at)


def spend_link(unit: Unit, linked: Linked) -> UserInfo:
    """Spend a link; of any number of followers one succeeds. Raises Refused(INVALID_CODE), also for a user who has changed since."""
    pending = (Challenge.id == linked.id, Challenge.state == State.PENDING, Challenge.expires_at > unit.now)
    if not unit.changed(update(Challenge).where(*pending).values(state=State.SPENT)):
        raise Refused(INVALID_CODE, detail="the link was followed already")
    user = accounts.recheck(unit, linked.user_id, instead=INVALID_CODE)
    if user.version != linked.version:
        raise Refused(INVALID_CODE, detail="password or rights changed meanwhile")
    return user


def get(rt: Runtime, token: str, *, handout: str) -> Pending:
    """The challenge behind a token, if it may still be answered for this handout.

    Raises Refused(INVALID_CODE) for forged, unknown, expired, spent, exhausted and another handout's alike.
    """
    challenge_id = _read(rt, token)
    row = rt.database.row(_BY_ID, id=challenge_id) if challenge_id else None
    if challenge_id is None or row is None:
        raise Refused(INVALID_CODE, detail="no such challenge")
    user_id, version, factor, allows_fixed, verification_id, client_id, resource, made_for, state, tries, end = row
    if made_for != handout or state != State.PENDING or tries >= MAX_ATTEMPTS or end <= rt.clock.now():
        seen = {"handout": made_for, "state": state, "attempts": tries, "expires_at": end.isoformat()}
        raise Refused(INVALID_CODE, detail="the challenge is over", evidence=seen)
    return Pending(challenge_id, user_id, version, Factor(factor), allows_fixed, verification_id, client_id, resource)


def answer(
    rt: Runtime, unit: Unit, pending: Pending, guess: Guess, *, code: str, factor: Factor | None = None
) -> Answered:
    """Spend a challenge with a right code: of any number of right answers exactly one succeeds, and five are looked at in all.

    `factor` is what the code claims to be; None: whatever the challenge asks for. `guess` is `guesses.at_code`'s; it
    ends here. The user is looked at again: one who was disabled, or whose password, rights or factors changed since, is refused
    like a wrong code (INVALID_CODE); that refusal keeps the unit.
    """
    # 1. Take one of the tries, before looking: what is counted first cannot be evaluated twice.
    taken = (
        update(Challenge)
        .where(
            Challenge.id == pending.id,
            Challenge.state == State.PENDING,
            Challenge.attempts < MAX_ATTEMPTS,
            Challenge.expires_at > unit.now,
        )
        .values(attempts=Challenge.attempts + 1)
    )
    if not unit.changed(taken):
        guess.give_back(unit)  # Nothing was looked at, so nothing was guessed.
        raise Refused(INVALID_CODE, detail="somebody else answered first, or the tries are used up")
    # 2. The code, as long as the user would still be asked for it.
    if factors.factor_of(rt, unit, pending.user_id, allows_fixed=pending.allows_fixed) is not pending.factor:
        guess.give_back(unit)
        raise Refused(INVALID_CODE, detail="the user's factors changed meanwhile")
    right = _is_right(rt, unit, pending, code, factor or pending.factor)
    totp = code if pending.factor is Factor.TOTP else None
    factors.settle(rt, unit, pending.user_id, guess, right=right, totp=totp)
    # 3. The user, last: their row is locked after the counters, as by every other login.
    user = accounts.recheck(unit, pending.user_id, instead=INVALID_CODE)
    if user.version != pending.version:
        raise Refused(INVALID_CODE, detail="password or rights changed meanwhile")
    applications.require_usable(unit, pending.client_id, instead=INVALID_CODE)
    # 4. Spend.
    spent = update(Challenge).where(Challenge.id == pending.id, Challenge.state == State.PENDING)
    if not unit.changed(spent.values(state=State.SPENT)):
        raise Refused(INVALID_CODE, detail="somebody else answered first")
    second = "email" if pending.factor is Factor.EMAIL else "otp"
    return Answered(user, ("pwd", second), pending.client_id, pending.resource)


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget challenges that are long over."""
    return delete_batch(unit, Challenge, Challenge.expires_at < later(unit.now, -_KEEP_SECONDS))


def end(_rt: Runtime, unit: Unit) -> int:
    """Forget every challenge, so that none can be answered; tell how many could have been."""
    return unit.changed(delete(Challenge).where(Challenge.state == State.PENDING, Challenge.expires_at > unit.now))


def _is_right(rt: Runtime, unit: Unit, pending: Pending, code: str, given: Factor) -> bool:
    if given is not pending.factor and not (given is Factor.RECOVERY and pending.factor is Factor.TOTP):
        return False
    match given:
        case Factor.TOTP:
            return factors.take_totp(rt, unit, pending.user_id, code)
        case Factor.RECOVERY:
            return factors.take_recovery_code(rt, unit, pending.user_id, code)
        case Factor.FIXED:
            return factors.is_fixed_otp(rt, unit, pending.user_id, code)
        case Factor.EMAIL:
            try:
                codes.consume(rt, unit, Purpose.LOGIN, pending.verification_id, code)
            except Refused as refused:
                if not refused.problem.keeps_writes:
                    raise  # Not the code is wrong, the database is.
                return False
            return True
        case _:
            assert_never(given)


# The spelling: a JWT (RFC 7519) in one canonical form. There is no parser for others to confuse: header and signature are
# compared as text, and only what we signed is ever decoded.

_HEADER: Final = base64.urlsafe_b64encode(
    json.dumps({"alg": "HS256", "typ": TYPE}, separators=(",", ":")).encode()
).rstrip(b"=")


def _spell(rt: Runtime, challenge_id: str, issued_at: datetime, expires_at: datetime) -> Secret:
    claims: dict[str, Any] = {
        "iss": rt.settings.issuer,
        "jti": challenge_id,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
    }
    signed = _HEADER + b"." + _b64(json.dumps(claims, separators=(",", ":")).encode())
    return Secret((signed + b"." + _signature(rt, signed)).decode())


def _read(rt: Runtime, token: str) -> str | None:
    """The id of the challenge that a token of ours names, or None."""
    raw = token.encode("utf-8", "surrogatepass")
    signed, _, signature = raw.rpartition(b".")
    if not hmac.compare_digest(signature, _signature(rt, signed)) or not signed.startswith(_HEADER + b"."):
        return None
    payload = signed[len(_HEADER) + 1 :]
    found: str = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))["jti"]
    return found


def _signature(rt: Runtime, signed: bytes) -> bytes:
    return _b64(hmac.digest(rt.ring.vault.derive("challenges"), signed, "sha256"))


def _link_mac(rt: Runtime, handout: str, challenge_id: str) -> bytes:
    key = rt.ring.vault.derive("links that sign in")
    return hmac.digest(key, f"{handout} {challenge_id}".encode(), "sha256")[:_LINK_MAC_BYTES]


def _b64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


KEEPING: Final = Keeping((Challenge,), purge=purge, end=end)
