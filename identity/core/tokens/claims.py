"""What an access token says: its claims, its life, and what is checked when it comes back.

The claims are those of docs/interfaces.md (RFC 9068). Who is behind a token, and whether they still may use it, is asked of the
live rows by `callers`; here only the token itself speaks.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from identity.canonical import canonical_id, canonical_origin
from identity.core.tokens import custom_claims, status
from identity.errors import FORBIDDEN, INVALID_TOKEN, TOKEN_EXPIRED, VALIDATION, Refused
from identity.instruments.jws import TOKEN_MAX_CHARACTERS
from identity.instruments.keyring import SKEW_SECONDS
from identity.runtime import Runtime

_LONGEST: Final = 6 * 1024
_TOKEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class AccessToken(NamedTuple):
    """A signed token and the seconds it has to live."""

    text: str
    expires_in: int
    scope: tuple[str, ...] = ()
    token_type: str = "Bearer"
    #: Whether it was issued before, and is given again.
    is_reused: bool = False


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
    place: int | None = None
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
    resource = canonical_origin(origin)
    if resource is None:
        raise Refused(VALIDATION.saying("The Origin header must be scheme://host[:port]"), field="Origin")
    if allowed and resource not in allowed:
        raise Refused(FORBIDDEN.saying("Tokens are not issued for that origin"), detail="origin not allowed")
    return resource


def audience_claim(*audiences: str) -> str | list[str]:
    """`aud` as tokens say it: text where there is one (RFC 7519 section 4.1.3), else a list, none of them twice."""
    distinct = list(dict.fromkeys(audiences))
    return distinct[0] if len(distinct) == 1 else distinct


def issue_user_token(
    rt: Runtime, subject: Subject, *, resource: str, seconds: int, now: datetime, ends: Sequence[datetime | None] = ()
) -> AccessToken:
    """A token for a user with a session, of exactly `seconds`; never beyond one of `ends`, as far as they are known.

    It says beside our own claims what applications add to tokens for `resource`.
    """
    issuer = rt.settings.issuer
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": subject.user_id,
        "client_id": subject.client_id,
        "aud": audience_claim(resource, issuer),
        **_times(now, seconds, ends),
        "jti": _token_id(rt),
        **status.claim(rt, subject.place),
        "auth_time": int(subject.auth_time.timestamp()),
        "amr": list(subject.amr),
        "sid": subject.session_id,
        **_unless_empty(
            roles=sorted(subject.roles),
            groups=sorted(subject.groups),
            tenants={tenant: sorted(roles) for tenant, roles in sorted(subject.tenants.items())},
        ),
    }
    personal = {"email": subject.email, "name": subject.full_name}
    claims |= {name: personal[name] for name in rt.settings.user_claims}
    claims |= custom_claims.of(rt, (resource,), user_id=subject.user_id)
    return AccessToken(_signed(rt, claims, now), claims["exp"] - claims["iat"])


def issue_application_token(
    rt: Runtime,
    *,
    client_id: str,
    secret_id: str,
    place: int | None,
    roles: Sequence[str],
    tenant: str | None,
    scope: Sequence[str],
    audience: Sequence[str],
    seconds: int,
    now: datetime,
    ends: Sequence[datetime | None] = (),
) -> AccessToken:
    """A token for a machine, of exactly `seconds`; never beyond one of `ends`, as far as they are known.

    Its `jti` ends in the id of what earned it, and `place` is that one's: ending it ends the token.
    """
    claims: dict[str, Any] = {
        "iss": rt.settings.issuer,
        "sub": client_id,
        "client_id": client_id,
        "aud": audience_claim(*audience),
        **_times(now, seconds, ends),
        "jti": f"{_token_id(rt)}.{secret_id}",
        **status.claim(rt, place),
        **_unless_empty(
            roles=sorted(roles),
            tenants={tenant: sorted(roles)} if tenant else {},
            scope=" ".join(sorted(scope)),
        ),
        **custom_claims.of(rt, audience, client_id=client_id),
    }
    return AccessToken(_signed(rt, claims, now), claims["exp"] - claims["iat"], tuple(sorted(scope)))


def read(rt: Runtime, token: str) -> Claims:
    """The claims of a token of ours that is good now.

    Raises Refused(INVALID_TOKEN), or Refused(TOKEN_EXPIRED) only once the signature has held: nobody learns about time by forging.
    """
    raw = _checked(rt.ring.verify(token))
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


def _checked(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The claims, once each of them is one that we could have written: nothing behind this line meets a missing or an odd one.

    A signature alone does not say so: a key that was imported may be another issuer's as well. Raises Refused(INVALID_TOKEN).
    """
    wanted = _REQUIRED if "sid" not in raw else _REQUIRED_OF_USERS
    fault = next((name for name in wanted if name not in raw), None)
    if fault is None:
        fault = next((name for name, fits in _FORMS.items() if name in raw and not fits(raw[name])), None)
    if fault is not None:
        evidence = {"expected": {fault: "as this service writes it"}, "seen": {"claims": sorted(raw)[:40]}}
        raise Refused(INVALID_TOKEN, detail=f"the claim {fault} is missing or odd", evidence=evidence)
    return raw


def secret_of(token_id: str) -> str:
    """The id of the client secret that earned an application token."""
    return token_id.partition(".")[2]


def _times(now: datetime, seconds: int, ends: Sequence[datetime | None]) -> dict[str, int]:
    issued = int(now.timestamp())
    expires = min([issued + seconds, *(int(end.timestamp()) for end in ends if end is not None)])
    # `nbf` lies back: a verifier whose clock is a second behind would refuse every fresh token.
    return {"iat": issued, "nbf": issued - SKEW_SECONDS, "exp": max(issued, expires)}


def _unless_empty(**claims: Any) -> dict[str, Any]:
    """The claims that say something: strict verifiers refuse blanks (Authlib's RFC 9068 validator does)."""
    return {name: value for name, value in claims.items() if value}


def _signed(rt: Runtime, claims: dict[str, Any], now: datetime) -> str:
    """A token over `claims`. What makes it longer than we or a proxy would read is left out, and that is said; we read the database."""
    text = rt.ring.sign(claims, now=now)
    for name in ("tenants", "groups", "roles"):
        if len(text) <= _LONGEST:
            break
        if claims.pop(name, None) is not None:
            claims[f"{name}_omitted"] = True
            text = rt.ring.sign(claims, now=now)
    if len(text) > TOKEN_MAX_CHARACTERS:
        raise Refused(
            VALIDATION.saying("That many scopes do not fit into a token; ask for fewer", oauth="invalid_scope"),
            field="scope",
            detail=f"a token of {len(text)} characters",
        )
    return text


def _token_id(rt: Runtime) -> str:
    return base64.urlsafe_b64encode(rt.entropy.bytes(15)).decode()


def _is_moment(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST_MOMENT


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and canonical_id(value) == value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_audience(value: Any) -> bool:
    return bool(value) and (isinstance(value, str) or (_are_texts(value) and all(value)))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(_are_texts(one) for one in value.values())


def _is_status(value: Any) -> bool:
    named = value.get("status_list") if isinstance(value, dict) else None
    return isinstance(named, dict) and type(named.get("idx")) is int and isinstance(named.get("uri"), str)


# Later moments are beyond what dates and databases can hold.
_LAST_MOMENT: Final = 2**37
_REQUIRED: Final = ("iss", "sub", "client_id", "aud", "iat", "nbf", "exp", "jti")
_REQUIRED_OF_USERS: Final = (*_REQUIRED, "auth_time", "amr")
_FORMS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "iss": _is_text,
    "sub": _is_id,
    "client_id": _is_id,
    "aud": _is_audience,
    "iat": _is_moment,
    "nbf": _is_moment,
    "exp": _is_moment,
    "jti": lambda value: isinstance(value, str) and bool(_TOKEN_ID.fullmatch(value)),
    "sid": _is_id,
    "auth_time": _is_moment,
    "amr": _are_texts,
    "roles": _are_texts,
    "groups": _are_texts,
    "tenants": _is_table,
    "scope": _is_text,
    "status": _is_status,
    "email": _is_text,
    "name": _is_text,
}
