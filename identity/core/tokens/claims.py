"""What an access token says: its claims, its life, and what is checked when it comes back.

The claims are those of contract section 2 (RFC 9068). Who is behind a token, and whether they still may use it, is asked of the
live rows by `callers`; here only the token itself speaks.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from identity.errors import FORBIDDEN, INVALID_TOKEN, TOKEN_EXPIRED, VALIDATION, Refused
from identity.instruments.keyring import SKEW_SECONDS
from identity.runtime import Runtime

_ORIGIN: Final = re.compile(
    r"https?://(?:[a-z0-9](?:[a-z0-9.-]{0,253})|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE
)


class AccessToken(NamedTuple):
    """A signed token and the seconds it has to live."""

    text: str
    expires_in: int
    scope: tuple[str, ...] = ()
    token_type: str = "Bearer"


@dataclass(frozen=True, slots=True)
class Subject:
    """A user as a token shows them."""

    user_id: str
    client_id: str
    session_id: str
    auth_time: datetime
    amr: tuple[str, ...]
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    tenants: Mapping[str, tuple[str, ...]]
    email: str = ""
    full_name: str = ""


class Claims(NamedTuple):
    """A token of ours whose signature and times hold."""

    subject: str
    client_id: str
    audience: tuple[str, ...]
    token_id: str
    issued_at: int
    expires_at: int
    session_id: str
    scope: tuple[str, ...]
    auth_time: int
    amr: tuple[str, ...]
    raw: Mapping[str, Any]

    @property
    def is_user(self) -> bool:
        """Whether a session stands behind it; an application's token has none."""
        return bool(self.session_id)


def resource_of(origin: str | None, *, allowed: Sequence[str], required: bool, fallback: str) -> str:
    """The audience that a request's `Origin` names (RFC 6454), or `fallback`.

    Raises Refused(VALIDATION) for a malformed or missing one, Refused(FORBIDDEN) for one that is not `allowed` (when any are listed).
    """
    if origin is None:
        if required:
            raise Refused(VALIDATION.saying("Missing Origin header"), field="Origin")
        return fallback
    if not _ORIGIN.fullmatch(origin):
        raise Refused(VALIDATION.saying("The Origin header must be scheme://host[:port]"), field="Origin")
    resource = origin.lower()
    if allowed and resource not in allowed:
        raise Refused(FORBIDDEN.saying("Tokens are not issued for that origin"), detail="origin not allowed")
    return resource


def issue_user_token(rt: Runtime, subject: Subject, *, resource: str, seconds: int, now: datetime) -> AccessToken:
    """A token for a user with a session."""
    issuer = rt.settings.issuer
    issued = int(now.timestamp())
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": subject.user_id,
        "client_id": subject.client_id,
        "aud": [resource, issuer] if resource != issuer else [issuer],
        "iat": issued,
        "nbf": issued,
        "exp": issued + seconds,
        "jti": _token_id(rt),
        "auth_time": int(subject.auth_time.timestamp()),
        "amr": list(subject.amr),
        "sid": subject.session_id,
        "roles": sorted(subject.roles),
        "groups": sorted(subject.groups),
        "tenants": {tenant: sorted(roles) for tenant, roles in sorted(subject.tenants.items())},
    }
    personal = {"email": subject.email, "name": subject.full_name}
    claims |= {name: personal[name] for name in rt.settings.user_claims}
    return AccessToken(rt.ring.sign(claims, now=now), seconds)


def issue_application_token(
    rt: Runtime,
    *,
    client_id: str,
    secret_id: str,
    roles: Sequence[str],
    tenant: str | None,
    scope: Sequence[str],
    audience: Sequence[str],
    seconds: int,
    now: datetime,
) -> AccessToken:
    """A token for a machine. Its `jti` ends in the id of the secret that earned it, so that ending the secret ends it."""
    issued = int(now.timestamp())
    claims: dict[str, Any] = {
        "iss": rt.settings.issuer,
        "sub": client_id,
        "client_id": client_id,
        "aud": list(audience) if len(audience) > 1 else audience[0],
        "iat": issued,
        "nbf": issued,
        "exp": issued + seconds,
        "jti": f"{_token_id(rt)}.{secret_id}",
        "roles": sorted(roles),
        "groups": [],
        "tenants": {tenant: sorted(roles)} if tenant else {},
        "scope": " ".join(sorted(scope)),
    }
    return AccessToken(rt.ring.sign(claims, now=now), seconds, tuple(sorted(scope)))


def read(rt: Runtime, token: str) -> Claims:
    """The claims of a token of ours that is good now.

    Raises Refused(INVALID_TOKEN), or Refused(TOKEN_EXPIRED) only once the signature has held: nobody learns about time by forging.
    """
    raw = rt.ring.verify(token)
    now = int(rt.clock.now().timestamp())
    if raw["iss"] != rt.settings.issuer:
        evidence: dict[str, Any] = {"expected": {"iss": rt.settings.issuer}, "seen": {"iss": raw["iss"]}}
        raise Refused(INVALID_TOKEN, detail="another issuer: IDENTITY_ISSUER was changed", evidence=evidence)
    if raw["nbf"] > now + SKEW_SECONDS:
        evidence = {"expected": {"nbf": f"up to {now + SKEW_SECONDS}"}, "seen": {"nbf": raw["nbf"]}}
        evidence["skew_seconds"] = now - raw["nbf"]
        raise Refused(INVALID_TOKEN, detail="signed in the future: two hosts' clocks differ", evidence=evidence)
    if raw["exp"] <= now:
        late = now - raw["exp"]
        evidence = {"expected": {"exp": f"after {now}"}, "seen": {"exp": raw["exp"]}, "skew_seconds": late}
        if late <= SKEW_SECONDS:
            evidence["near_miss"] = (
                "a clock that is a minute slow would have passed it; renew tokens before they expire"
            )
        raise Refused(TOKEN_EXPIRED, detail="expired", evidence=evidence)
    audience = raw["aud"]
    return Claims(
        subject=raw["sub"],
        client_id=raw["client_id"],
        audience=(audience,) if isinstance(audience, str) else tuple(audience),
        token_id=raw["jti"],
        issued_at=raw["iat"],
        expires_at=raw["exp"],
        session_id=raw.get("sid", ""),
        scope=tuple(raw.get("scope", "").split()),
        auth_time=raw.get("auth_time", 0),
        amr=tuple(raw.get("amr", ())),
        raw=raw,
    )


def secret_of(token_id: str) -> str:
    """The id of the client secret that earned an application token."""
    return token_id.partition(".")[2]


def _token_id(rt: Runtime) -> str:
    return base64.urlsafe_b64encode(rt.entropy.bytes(15)).decode()
