"""Who is asking: from the credentials of a request to a live subject, for every route and for the gate.

One place reads bearers (session bearers, user and application tokens) and key pairs, so that no route is weaker than another. What a
token says about rights is not believed: roles and memberships are those of now.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from identity.ambient import Origin
from identity.columns import from_micros
from identity.core.clients import keypair_proof, machine_tokens
from identity.core.clients.applications import ADMIN_SCOPE
from identity.core.people.accounts import ADMIN_ROLE
from identity.core.people.tenancy import Memberships
from identity.core.proofs import machines
from identity.core.tokens import claims, sessions
from identity.core.tokens.claims import Claims, secret_of
from identity.core.tokens.sessions import Live
from identity.errors import FORBIDDEN, INVALID_TOKEN, STALE_LOGIN, TWO_CREDENTIALS, UNAUTHENTICATED, Refused
from identity.instruments.epochs import EVERYBODY, shard_of, shard_of_meter
from identity.instruments.opaque import Kind
from identity.runtime import Runtime

BY_KEY: Final = FORBIDDEN.saying("A key pair may not make or change credentials, nor change its owner")
_A_PERSONS: Final = {"expected": "a login of a person", "seen": "a key pair"}
_NOWHERE: Final = Memberships()
# What clients send whose variable was never filled. An empty one is among them.
_PLACEHOLDERS: Final = frozenset(
    {"", "undefined", "null", "none", "nan", "false", "[object object]", "<token>", "$token", "{{token}}"}
)


class CallerKind(StrEnum):
    """What proved the caller; also the gate's `X-Auth-Type`."""

    USER = "user"
    APPLICATION = "application"
    KEY = "key"


class Presented(NamedTuple):
    """The credentials that a request carries, unread."""

    bearer: str | None = None
    api_key: str | None = None
    api_secret: str | None = None

    @property
    def has_key(self) -> bool:
        return self.api_key is not None or self.api_secret is not None


class Caller(NamedTuple):
    """An authenticated subject with its rights as of now."""

    kind: CallerKind
    subject: str
    roles: tuple[str, ...]
    groups: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    alias: str = ""
    full_name: str = ""
    session: Live | None = None
    key: keypair_proof.KeyInfo | None = None
    memberships: Memberships = _NOWHERE
    claims: Claims | None = None
    auth_time: datetime | None = None
    amr: tuple[str, ...] = ()

    @property
    def session_id(self) -> str:
        return self.session.session.id if self.session else ""

    @property
    def credential(self) -> str:
        """What proved it, for the audit: the kind and the id of a session, a key pair or a client secret."""
        if self.session is not None:
            return f"session:{self.session.session.id}"
        if self.key is not None:
            return f"key:{self.key.id}"
        return f"secret:{secret_of(self.claims.token_id)}" if self.claims is not None else ""

    @property
    def counted_as(self) -> str:
        """Whose use this counts as: a client secret's, or a key pair's with all that it opened; a person's is counted nowhere."""
        if self.session is not None:
            pair = self.session.session.keypair_id
            return f"key:{pair}" if pair is not None else ""
        return self.credential

    @property
    def is_by_key(self) -> bool:
        """Whether a key pair proved the caller, or a token that one was traded for."""
        return self.key is not None or (self.session is not None and self.session.session.is_of_keypair)

    @property
    def is_admin(self) -> bool:
        """Whether it may use group H."""
        return ADMIN_SCOPE in self.scopes if self.kind is CallerKind.APPLICATION else ADMIN_ROLE in self.roles

    def require_admin(self) -> None:
        """Raise Refused(FORBIDDEN) unless this caller may administer."""
        if not self.is_admin:
            needed = f"scope {ADMIN_SCOPE}" if self.kind is CallerKind.APPLICATION else f"role {ADMIN_ROLE}"
            raise Refused(
                FORBIDDEN,
                detail="not an administrator",
                evidence={"expected": needed, "seen": {"roles": self.roles, "scopes": self.scopes}},
            )

    def require_recent_login(self, rt: Runtime) -> None:
        """Raise Refused(STALE_LOGIN) unless the user signed in a short while ago (RFC 9470), Refused(BY_KEY) for a key pair."""
        if self.is_by_key:
            raise Refused(BY_KEY, detail="by a key pair", evidence=_A_PERSONS)
        age = None if self.auth_time is None else (rt.clock.now() - self.auth_time).total_seconds()
        if age is None or age >= rt.settings.recent_login_seconds:
            raise Refused(
                STALE_LOGIN, detail="login too old", evidence={"age": age, "allowed": rt.settings.recent_login_seconds}
            )


def identify(rt: Runtime, origin: Origin, presented: Presented, *, own_routes: bool = True) -> Caller:
    """The caller behind whatever the request carries, as `read` finds it; what was found a moment ago is not read again while it holds.

    Raises what `read` raises.
    """
    if presented.bearer is not None and presented.has_key:
        # Both must hold, and only one of them would say until when.
        return read(rt, origin, presented, own_routes=own_routes)
    # A key pair may be bound to networks, and its failures are counted by address.
    address = origin.address if presented.has_key else ""
    parts = (presented.bearer or "", presented.api_key or "", presented.api_secret or "", address, str(own_routes))
    name = rt.memory.digest("caller", *parts)
    remembered = rt.memory.recall(name, rt.clock.now())
    caller: Caller | None = remembered.value
    if caller is not None:
        if caller.key is not None:
            keypair_proof.note_use(rt, origin, caller.key)
        return caller
    caller = read(rt, origin, presented, own_routes=own_routes)
    until = _holds_until(caller)
    if until is not None:
        rt.memory.learn(name, caller, shards=_shards(origin, caller), until=until, asked=remembered)
    return caller


def of_console(rt: Runtime, bearer: str) -> Caller:
    """The user behind the bearer of a console's cookie, which serves nowhere else, by the rows of now.

    Raises Refused(INVALID_TOKEN) or Refused(TOKEN_EXPIRED).
    """
    return _user(sessions.find_live_bearer(rt, bearer, Kind.CONSOLE))


def _shards(origin: Origin, caller: Caller) -> tuple[str, ...]:
    """Whose epochs a change that concerns this caller turns."""
    shards = [EVERYBODY, shard_of(caller.subject)]
    if caller.kind is CallerKind.APPLICATION and caller.claims is not None:
        shards.append(shard_of(caller.claims.token_id))
    if caller.key is not None:
        shards.append(shard_of_meter(machines.meter_key(origin)))
    return tuple(shards)


def _holds_until(caller: Caller) -> datetime | None:
    """When what was read may end by itself, without anybody's doing; None for a caller who is not to be remembered."""
    ends = [] if caller.key is None else [caller.key.until]
    if caller.session is not None:
        ends += [end for end in (caller.session.session.expires_at, caller.session.ends_at) if end is not None]
    if caller.claims is not None:
        ends.append(from_micros(caller.claims.expires_at * 1_000_000))
    return min(ends, default=None)


def read(rt: Runtime, origin: Origin, presented: Presented, *, own_routes: bool = True) -> Caller:
    """The caller behind whatever the request carries, by the rows of now.

    `own_routes`: the route is ours, so a token must name us as audience; the gate asks on behalf of others.
    Raises Refused(UNAUTHENTICATED) for nothing, Refused(TWO_CREDENTIALS) for two that name different subjects, and what each kind of
    credential raises.
    """
    caller = _by_bearer(rt, presented.bearer, own_routes=own_routes) if presented.bearer is not None else None
    if presented.has_key:
        by_key = _by_key(rt, origin, presented)
        if caller is not None and caller.subject != by_key.subject:
            raise Refused(TWO_CREDENTIALS, detail="bearer and key pair of different subjects")
        caller = caller or by_key
    if caller is None:
        raise Refused(UNAUTHENTICATED, detail="no credential: neither Authorization nor api-key and api-secret")
    return caller


def _by_bearer(rt: Runtime, bearer: str, *, own_routes: bool) -> Caller:
    if bearer.lower() in _PLACEHOLDERS:
        evidence = {
            "expected": "a token",
            "seen": bearer,
            "near_miss": "the client sent a variable that was never filled",
        }
        raise Refused(INVALID_TOKEN, detail="a placeholder where a token should be", evidence=evidence)
    if bearer.startswith(f"{Kind.SESSION}_"):
        return _user(sessions.find_live_bearer(rt, bearer))
    said = _read(rt, bearer)
    if own_routes and not {rt.settings.issuer, rt.settings.default_audience} & set(said.audience):
        raise Refused(
            INVALID_TOKEN,
            detail="not meant for this service",
            evidence={
                "expected": {"aud": sorted({rt.settings.issuer, rt.settings.default_audience})},
                "seen": {"aud": said.audience},
            },
        )
    if said.is_user:
        live = sessions.find_live(rt, said.session_id)
        if live.user_id != said.subject or not rt.ring.can_verify(bearer):
            raise Refused(INVALID_TOKEN, detail="the session or the key behind the token has changed")
        return _user(live, said)
    return _application(rt, bearer, said)


def _read(rt: Runtime, token: str) -> Claims:
    """The claims of a token of ours; a token that says itself that it is another issuer's is told as that."""
    try:
        return claims.read(rt, token)
    except Refused as refused:
        seen = refused.evidence.get("seen")
        issuer = seen.get("iss") if isinstance(seen, Mapping) else None
        if issuer is None or issuer == rt.settings.issuer:
            raise
        evidence = {"expected": {"iss": rt.settings.issuer}, "seen": seen}
        raise Refused(
            refused.problem, detail="a token of another issuer", evidence=evidence, cause=refused
        ) from refused


def _user(live: Live, claims: Claims | None = None) -> Caller:
    return Caller(
        kind=CallerKind.USER,
        subject=live.user_id,
        roles=live.roles,
        groups=live.groups,
        alias=live.alias,
        full_name=live.full_name,
        session=live,
        memberships=live.memberships,
        claims=claims,
        auth_time=live.session.auth_time,
        amr=live.session.amr,
    )


def _application(rt: Runtime, bearer: str, claims: Claims) -> Caller:
    state = machine_tokens.live_state(rt, claims.client_id, claims.token_id, issued_at=claims.issued_at)
    if state is None or not rt.ring.can_verify(bearer):
        raise Refused(
            INVALID_TOKEN,
            detail=machine_tokens.why_ended(rt, claims.client_id, claims.token_id, issued_at=claims.issued_at),
            evidence={"client": claims.client_id, "secret": secret_of(claims.token_id)},
        )
    return Caller(
        kind=CallerKind.APPLICATION,
        subject=claims.client_id,
        roles=state.roles,
        scopes=tuple(scope for scope in claims.scope if scope in state.scopes),
        memberships=state.memberships,
        claims=claims,
    )


def _by_key(rt: Runtime, origin: Origin, presented: Presented) -> Caller:
    key = keypair_proof.authenticate(rt, origin, presented.api_key or "", presented.api_secret or "")
    return Caller(
        kind=CallerKind.KEY,
        subject=key.user_id,
        roles=key.roles,
        groups=key.groups,
        alias=key.alias,
        full_name=key.full_name,
        key=key,
        memberships=key.memberships,
        amr=("key",),
    )
