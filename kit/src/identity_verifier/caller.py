"""Who is calling, in the words of a service that serves them; and the checked reader that makes it from claims.

The reader is strict because what it lets through is used as it stands: a service that asks `"admin" in caller.roles` must not be told by
a text that holds those letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from identity_verifier.jose import Unfit
from identity_verifier.refusals import FORBIDDEN, Refused

_LAST_TIME: Final = 253_402_300_799  # the end of the year 9999, which is where datetime ends too
_NOTHING: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a good token speaks for. Neither `repr` nor anything in it holds the token.

    `kind` is `user` or `application`; `roles` are the global ones, and those in `tenant` where one was asked for. `session` is empty for an
    application. `fresh` tells whether the issuer was asked for this call, and so whether these are the rights of this moment.
    """

    subject: str
    kind: str
    client: str
    roles: frozenset[str]
    groups: frozenset[str]
    scopes: frozenset[str]
    tenants: Mapping[str, tuple[str, ...]]
    tenant: str | None
    session: str
    auth_time: datetime | None
    amr: tuple[str, ...]
    act: Mapping[str, Any] | None
    expires_at: datetime
    fresh: bool
    claims: Mapping[str, Any] = field(repr=False)

    @property
    def is_user(self) -> bool:
        """Whether a person signed in for this."""
        return self.kind == "user"

    def require(self, *, role: str | None = None, scope: str | None = None) -> None:
        """Raise Refused (403) unless the caller has both, for a handler that learns only later what it needs."""
        if role is not None and role not in self.roles:
            raise Refused(FORBIDDEN, f"lacks the role {role!r}")
        if scope is not None and scope not in self.scopes:
            raise Refused(FORBIDDEN, f"lacks the scope {scope!r}", scope=(scope,))


def check_claims(claims: Mapping[str, Any], *, issuer: str, audience: str) -> None:
    """Raise Unfit unless the claims are whole, well formed, from `issuer` and meant for `audience`. Times are not looked at."""
    for name, fits in (*_REQUIRED, *_REQUIRED_OF_USERS) if "sid" in claims else _REQUIRED:
        if not fits(claims.get(name)):
            raise Unfit(f"{name} is missing, or not of its form")
    for name, fits in _OPTIONAL:
        if name in claims and not fits(claims[name]):
            raise Unfit(f"{name} is not of its form")
    if claims["iss"] != issuer:
        raise Unfit("another issuer")
    meant_for = claims["aud"]
    # Never `in` on a text: it would find an audience that is a part of another.
    if audience not in ((meant_for,) if isinstance(meant_for, str) else meant_for):
        raise Unfit("for another audience")


def caller_of(claims: Mapping[str, Any], *, tenant: str | None, fresh: bool) -> Caller:
    """The caller of checked claims. Raises Refused (403) for one who is no member of `tenant`."""
    tenants: Mapping[str, tuple[str, ...]] = _NOTHING
    if claims.get("tenants"):
        tenants = MappingProxyType({name: tuple(roles) for name, roles in claims["tenants"].items()})
    roles = frozenset(claims.get("roles", ()))
    if tenant is not None:
        if tenant not in tenants:
            raise Refused(FORBIDDEN, "no member of the tenant that the request names")
        roles = roles.union(tenants[tenant])
    session = claims.get("sid", "")
    signed_in = claims.get("auth_time")
    return Caller(
        subject=claims["sub"],
        kind="user" if session else "application",
        client=claims["client_id"],
        roles=roles,
        groups=frozenset(claims.get("groups", ())),
        scopes=frozenset(claims.get("scope", "").split()),
        tenants=tenants,
        tenant=tenant,
        session=session,
        auth_time=None if signed_in is None else datetime.fromtimestamp(signed_in, UTC),
        amr=tuple(claims.get("amr", ())),
        act=claims.get("act"),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        fresh=fresh,
        claims=MappingProxyType(dict(claims)),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_audience(value: Any) -> bool:
    return isinstance(value, str) or _is_texts(value)


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST_TIME


def _is_memberships(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_texts(roles) for roles in value.values())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_REQUIRED: Final = (
    *((name, _is_name) for name in ("iss", "sub", "client_id", "jti")),
    *((name, _is_time) for name in ("iat", "nbf", "exp")),
    ("aud", _is_audience),
)
_REQUIRED_OF_USERS: Final = (("auth_time", _is_time), ("amr", _is_texts))
_OPTIONAL: Final = (
    *((name, _is_texts) for name in ("roles", "groups")),
    ("sid", _is_name),
    ("scope", _is_text),
    ("tenants", _is_memberships),
    ("tenants_omitted", _is_flag),
    ("act", _is_object),
)
