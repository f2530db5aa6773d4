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
from identity.core.clients.applications import find
from identity.core.clients.secrets import Authenticated, name_of, refuse
from identity.core.keeping import Keeping, delete_batch
from identity.core.proofs import machines
from identity.errors import Refused
from identity.instruments.jws import unverified_claims, verify_assertion
from identity.instruments.keyring import SKEW_SECONDS
from identity.runtime import Runtime
from identity.storage import Base, Instant, Unit, from_micros

ASSERTION_SECONDS: Final = 300


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

    It names the application as `iss` and `sub` and one of `audiences` alone as `aud`, ends at most five minutes ahead, and has a `jti`.
    That `jti` is written down: this is the one authentication of a machine that writes on success. `admit` is called before, and may
    refuse what is right. Raises as `authenticate` does.
    """
    client_id = str(unverified_claims(assertion).get("sub", ""))
    machines.check(rt, origin, name_of(client_id))
    app = find(rt, client_id)
    if app is None or not app.is_usable or app.jwks is None:
        refuse(rt, origin, client_id, detail="unknown, disabled or without keys", is_known=app is not None)
    # Only a signature that holds makes the reasons below worth telling to an operator.
    try:
        claims = verify_assertion(assertion, app.jwks)
    except Refused as refused:
        refuse(rt, origin, client_id, detail=refused.detail)
    fault = _assertion_fault(claims, app.id, audiences, int(rt.clock.now().timestamp()))
    if fault:
        refuse(rt, origin, client_id, detail=fault, evidence={"aud": claims.get("aud"), "exp": claims.get("exp")})
    admit()
    fingerprint = hashlib.sha256(f"{app.id} {claims['jti']}".encode("utf-8", "surrogatepass")).digest()
    try:
        with rt.unit(origin) as unit:
            # Remembered a little beyond its end: a janitor on a host with a fast clock must not forget it too soon.
            kept_until = from_micros((claims["exp"] + SKEW_SECONDS) * 1_000_000)
            unit.add(SpentAssertion(fingerprint=fingerprint, expires_at=kept_until))
    except IntegrityError:
        refuse(rt, origin, client_id, detail="assertion: this jti has been used")
    return Authenticated(app, key_proof(app.key_set_id))


def _assertion_fault(claims: Mapping[str, Any], client_id: str, audiences: Sequence[str], now: int) -> str:
    """What is wrong with the claims of a genuine assertion, or nothing."""
    audience = claims.get("aud")
    alone = audience[0] if isinstance(audience, list) and len(audience) == 1 else audience
    times = {name: claims.get(name, now) for name in ("iat", "nbf")} | {"exp": claims.get("exp")}
    token_id = claims.get("jti")
    checks = (
        (claims.get("iss") == client_id and claims.get("sub") == client_id, "iss and sub must be the client id"),
        (isinstance(alone, str) and alone in audiences, "aud must be this server alone"),
        (all(type(value) is int for value in times.values()), "times must be whole seconds"),
        (isinstance(token_id, str) and 1 <= len(token_id) <= 256, "jti is missing or is no text"),
    )
    fault = next((words for holds, words in checks if not holds), "")
    if not fault and not now < times["exp"] <= now + ASSERTION_SECONDS:
        fault = f"exp must be within the next {ASSERTION_SECONDS} seconds"
    if not fault and max(times["iat"], times["nbf"]) > now + SKEW_SECONDS:
        fault = "iat or nbf lies ahead"
    return f"assertion: {fault}" if fault else ""


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget spent assertions that have expired: nobody can send one again."""
    return delete_batch(unit, SpentAssertion, SpentAssertion.expires_at < unit.now)


KEEPING: Final = Keeping((SpentAssertion,), purge=purge)
