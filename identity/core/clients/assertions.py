"""Proving an application by a JWT that it signed itself (RFC 7523 section 3), with one of its registered keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    LargeBinary,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Origin
from identity.columns import Instant, from_micros
from identity.core.clients.applications import find
from identity.core.clients.secrets import Authenticated, name_of, refuse
from identity.core.keeping import Keeping, delete_batch
from identity.core.proofs import machines
from identity.errors import CLIENT_MISMATCH, Refused
from identity.instruments.jws import unverified_claims, verify_assertion
from identity.instruments.keyring import SKEW_SECONDS
from identity.runtime import Runtime
from identity.storage import Base, Unit

ASSERTION_SECONDS: Final = 300
MISMATCH: Final = CLIENT_MISMATCH.saying("The client assertion does not prove this client")


class SpentAssertion(Base):
    """A signed assertion that has proven its client once, kept until it would expire: RFC 7523 section 3 (7)."""

    __tablename__ = "spent_assertion"

    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


def key_proof(key_set_id: str | None) -> str:
    """What stands for a secret in the `jti` of a token that a set of keys has earned; no secret has such an id."""
    return f"key-{key_set_id}" if key_set_id else "key"


def authenticate_assertion(
    rt: Runtime, origin: Origin, assertion: str, *, audiences: Sequence[str], admit: Callable[[], None] = lambda: None
) -> Authenticated:
    """The application that signed a JWT about itself (RFC 7523 section 3) with one of its registered keys. Each serves once.

    It names the application as `iss` and `sub`, as `aud` one of `audiences` or a list of some, ends at most five minutes ahead, and has a
    `jti`. That `jti` is written down: this is the one authentication of a machine that writes on success. `admit` is called before, and
    may refuse what is right. Raises as `authenticate` does, in words of its own.
    """
    client_id = str(unverified_claims(assertion).get("sub", ""))
    machines.check(rt, origin, name_of(client_id))
    app = find(rt, client_id)
    if app is None or not app.is_usable or app.jwks is None:
        why = "unknown" if app is None else "without keys" if app.jwks is None else "disabled, or its tenant is"
        evidence: dict[str, Any] = {
            "expected": "the id of an application with keys as iss and sub",
            "seen": client_id[:64],
        }
        refuse(
            rt,
            origin,
            client_id,
            detail=f"assertion: the client is {why}",
            evidence=evidence,
            is_known=app is not None,
            problem=MISMATCH,
            bait=app if app is not None and app.decoy else None,
        )
    # Only a signature that holds makes the reasons below worth telling to an operator.
    try:
        claims = verify_assertion(assertion, app.jwks)
    except Refused as refused:
        refuse(rt, origin, client_id, detail=refused.detail, evidence=refused.evidence, problem=MISMATCH)
    fault = _assertion_fault(claims, app.id, audiences, rt.clock.now().timestamp())
    if fault:
        words, evidence = fault
        refuse(rt, origin, client_id, detail=f"assertion: {words}", evidence=evidence, problem=MISMATCH)
    admit()
    fingerprint = hashlib.sha256(f"{app.id} {claims['jti']}".encode("utf-8", "surrogatepass")).digest()
    try:
        with rt.unit(origin) as unit:
            # Remembered a little beyond its end: a janitor on a host with a fast clock must not forget it too soon.
            kept_until = from_micros(int((claims["exp"] + SKEW_SECONDS) * 1_000_000))
            unit.add(SpentAssertion(fingerprint=fingerprint, expires_at=kept_until))
    except IntegrityError:
        evidence = {"expected": "a jti of its own for each assertion", "seen": {"jti": claims["jti"][:64]}}
        refuse(rt, origin, client_id, detail="assertion: this jti has been used", evidence=evidence, problem=MISMATCH)
    return Authenticated(app, key_proof(app.key_set_id), place=app.key_place)


def _assertion_fault(
    claims: Mapping[str, Any], client_id: str, audiences: Sequence[str], now: float
) -> tuple[str, dict[str, Any]] | None:
    """What is wrong with the claims of a genuine assertion, with what was expected and seen; or None."""
    said = {name: claims.get(name) for name in ("iss", "sub", "aud", "exp", "iat", "nbf", "jti")}
    audience, token_id = said["aud"], said["jti"]
    named = audience if isinstance(audience, list) else [audience]
    times = [claims.get(name, now) for name in ("iat", "nbf")]
    has_times = all(is_moment(value) for value in (*times, said["exp"]))
    checks: tuple[tuple[bool, str, Any, Any], ...] = (
        (
            said["iss"] == client_id and said["sub"] == client_id,
            "iss and sub must be the client id",
            {"iss": client_id, "sub": client_id},
            {"iss": said["iss"], "sub": said["sub"]},
        ),
        (
            bool(named) and all(isinstance(one, str) and one in audiences for one in named),
            "aud must be this server, and nobody else",
            {"aud": list(audiences)},
            {"aud": audience},
        ),
        (has_times, "exp, iat and nbf must be numbers", "seconds since 1970", said),
        (
            isinstance(token_id, str) and 1 <= len(token_id) <= 256,
            "jti is missing or is no text",
            {"jti": "1 to 256 characters"},
            {"jti": None if token_id is None else type(token_id).__name__},
        ),
        (
            has_times and now < claims["exp"] <= now + ASSERTION_SECONDS,
            f"exp must be within the next {ASSERTION_SECONDS} seconds",
            {"exp": f"after {int(now)}, up to {int(now) + ASSERTION_SECONDS}"},
            {"exp": said["exp"]},
        ),
        (
            has_times and max(times) <= now + SKEW_SECONDS,
            "iat or nbf lies ahead: two clocks differ",
            {"iat": f"up to {int(now) + SKEW_SECONDS}"},
            {"iat": said["iat"], "nbf": said["nbf"]},
        ),
    )
    return next(((words, {"expected": e, "seen": s}) for holds, words, e, s in checks if not holds), None)


def is_moment(value: Any) -> bool:
    """Whether `value` is a NumericDate (RFC 7519 section 2): seconds, with a fraction or without."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**37


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget spent assertions that have expired: nobody can send one again."""
    return delete_batch(unit, SpentAssertion, SpentAssertion.expires_at < unit.now)


KEEPING: Final = Keeping((SpentAssertion,), purge=purge)
