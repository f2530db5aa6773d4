"""The tokens of applications: stateless, no row and no write on success.

What ends one early is the application (disabled, deleted), the removal of what earned it (a secret, a key set, a trust), or its own
revocation; all are asked of the live rows in one read. A secret that merely expires or is replaced ends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    bindparam,
    literal,
    select,
    update,
)

from identity import grounds
from identity.ambient import Origin, later
from identity.canonical import canonical_audience
from identity.columns import from_micros
from identity.core.clients.applications import Application, ApplicationInfo, find, get_row
from identity.core.clients.assertions import key_proof
from identity.core.clients.issuers import ApplicationTrust
from identity.core.clients.secrets import Authenticated, ClientSecret
from identity.core.people import policy as tenant_policy
from identity.core.people.tenancy import Memberships, Tenant
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import claims, custom_claims, revoked, status
from identity.core.tokens.claims import AccessToken, Claims
from identity.core.tokens.revoked import RevokedToken
from identity.errors import CLIENT_MISMATCH, NOT_FOUND, RATE_LIMITED, Problem, Refused
from identity.instruments.asking import LONG_ENOUGH_SECONDS, Often
from identity.instruments.counts import TOKENS
from identity.instruments.epochs import EVERYBODY, shard_of
from identity.instruments.jws import unverified_claims
from identity.instruments.keyring import CURRENT_VERSION, SKEW_SECONDS
from identity.instruments.limits import Policy
from identity.runtime import Runtime
from identity.storage import Contention, Prepared, Unit

_RESOURCE: Final = re.compile(r"[a-z][a-z0-9+.-]*://[!-\"$-~]{1,190}", re.ASCII | re.IGNORECASE)
SCOPE_REFUSED: Final = Problem(
    "VALIDATION_ERROR", 422, "That scope is not this application's to ask for", oauth="invalid_scope"
)


TARGET_REFUSED: Final = Problem(
    "VALIDATION_ERROR", 422, "That resource is not this application's to ask for", oauth="invalid_target"
)
DAY_LIMITED: Final = RATE_LIMITED.saying(
    "This application has had its tokens of the last 24 hours. Use each for as long as it lives"
)


class LiveApplication(NamedTuple):
    """The rights of an application as of now, whatever its token says."""

    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    memberships: Memberships


class _LiveRow(NamedTuple):
    """An application with the secret that earned a token, and whether the token itself was revoked."""

    enabled: bool
    roles: tuple[str, ...]
    tenant: str | None
    scopes: tuple[str, ...]
    jwks: str | None
    key_set_id: str | None
    secret_id: str | None
    trust_id: str | None
    revoked: str | None
    disabled_at: datetime | None
    limits: str
    policy: str
    tenant_enabled: bool
    tenant_disabled_at: datetime | None
    ring_version: int

    @property
    def has_earned(self) -> bool:
        """Whether the secret or the trust that earned the token is still there, whether it lives or not."""
        return self.secret_id is not None or self.trust_id is not None


_LIVE = Prepared(
    select(
        Application.enabled,
        Application.roles,
        Application.tenant_id,
        Application.scopes,
        Application.jwks,
        Application.key_set_id,
        ClientSecret.id,
        ApplicationTrust.id,
        RevokedToken.jti,
        Application.disabled_at,
        Tenant.limits,
        Tenant.policy,
        Application.tenant_enabled,
        Tenant.disabled_at,
        CURRENT_VERSION,
    )
    .outerjoin(Tenant, Tenant.id == Application.tenant_id)
    .outerjoin(ClientSecret, (ClientSecret.client_id == Application.id) & (ClientSecret.id == bindparam("secret_id")))
    .outerjoin(
        ApplicationTrust,
        (ApplicationTrust.client_id == Application.id) & (ApplicationTrust.id == bindparam("secret_id")),
    )
    .outerjoin(RevokedToken, RevokedToken.jti == bindparam("jti"))
    .where(Application.id == bindparam("id")),
    into=_LiveRow,
)


def issue_token(
    rt: Runtime, proven: Authenticated, *, scope: Sequence[str] | None, audience: Sequence[str]
) -> AccessToken:
    """A token for a proven application: the asked scopes, or all that it has; within its `token_reuse_seconds` the one of before.

    It never outlives what proved the application, as far as that end is known now. Raises Refused(SCOPE_REFUSED) for a scope that it does
    not have, Refused(DAY_LIMITED) where a new one is more than its `tokens_per_day`.
    """
    app, now = proven.application, rt.clock.now()
    granted = app.scopes if scope is None else tuple(dict.fromkeys(scope))
    if not set(granted) <= set(app.scopes):
        raise Refused(SCOPE_REFUSED, field="scope", evidence={"asked": sorted(granted), "has": list(app.scopes)})
    seconds = _life(rt, proven, now)
    rt.asking.note(app.id, seconds, now)
    grounds.note_deed(lambda then: rt.asking.note(app.id, seconds, then))
    # Its tenant's policy, or the end of a secret, may have made the life shorter than it was when the window was set.
    reuse = min(app.token_reuse_seconds, seconds // 2)
    if reuse < 1:
        return _mint(rt, proven, granted, audience, seconds=seconds, now=now)
    shards = (EVERYBODY, shard_of(app.id), shard_of(proven.secret_id))
    name = rt.issued.digest(app.id, proven.secret_id, " ".join(sorted(granted)), *audience)
    asked = rt.issued.look(name, now, shards=shards)
    kept: _Kept | None = asked.value
    if kept is not None and kept.is_to_give(rt, proven, audience):
        _count(rt, "again")
        grounds.note_end(later(now.replace(microsecond=0), 1))  # From the next second on it says a shorter life.
        return AccessToken(kept.text, kept.expires_at - int(now.timestamp()), tuple(sorted(granted)), is_reused=True)
    token = _mint(rt, proven, granted, audience, seconds=seconds, now=now)
    said = unverified_claims(token.text)
    if _stands(rt, proven, token.text, said):
        rt.issued.keep(
            name, _Kept(token.text, said["exp"], _added(said)), shards=shards, until=later(now, reuse), asked=asked
        )
    return token


class _Kept(NamedTuple):
    """A token that may be given again while the epochs stand that stood before it was issued."""

    text: str
    expires_at: int
    added: Mapping[str, Any]

    def is_to_give(self, rt: Runtime, proven: Authenticated, audience: Sequence[str]) -> bool:
        """Whether what no epoch tells is as it was, too.

        What proves the application now may end sooner than what did then, the key may have left the ring, and another application that
        has this audience may add other claims.
        """
        outlives = proven.ends_at is not None and self.expires_at > int(proven.ends_at.timestamp())
        if outlives or not rt.ring.can_verify(self.text):
            return False
        return self.added == custom_claims.of(rt, audience, client_id=proven.application.id)


def _stands(rt: Runtime, proven: Authenticated, text: str, said: Mapping[str, Any]) -> bool:
    """Whether a fresh token tells how things stand by the rows of now.

    The application was read when it proved itself, before the epochs were: what changed in between no later epoch would tell.
    """
    if find(rt, proven.application.id) != proven.application:
        return False
    live = live_state(rt, said["client_id"], said["jti"], issued_at=said["iat"])
    return live is not None and rt.ring.can_verify(text)


def _added(said: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a token that are nobody's but its applications' own."""
    reserved = custom_claims.RESERVED - {custom_claims.OMITTED}
    return {name: value for name, value in said.items() if name not in reserved}


def _life(rt: Runtime, proven: Authenticated, now: datetime) -> int:
    """How many seconds a token lives that is issued now."""
    app = proven.application
    seconds = app.token_seconds or rt.settings.application_token_seconds
    own = tenant_policy.of_tenant(rt, app.tenant).token_seconds if app.tenant else None
    seconds = seconds if own is None else min(seconds, own)
    if proven.ends_at is not None:
        seconds = min(seconds, int(proven.ends_at.timestamp()) - int(now.timestamp()))
        if seconds < 1:
            raise Refused(CLIENT_MISMATCH, detail="what proved the application ends within this second")
    return seconds


def _mint(
    rt: Runtime, proven: Authenticated, granted: Sequence[str], audience: Sequence[str], *, seconds: int, now: datetime
) -> AccessToken:
    """A new token, which counts as one of its day."""
    grounds.give_up()
    app = proven.application
    if app.tokens_per_day is not None:
        try:
            rt.limiter.hit(Policy.APPLICATION, f"tokens of a day {app.id}", budget=f"{app.tokens_per_day}/day")
        except Refused as refused:
            if refused.problem is not RATE_LIMITED:
                raise
            _count(rt, "refused")
            raise Refused(
                DAY_LIMITED,
                detail="tokensPerDay of the application",
                evidence=refused.evidence | {"expected": {"tokensPerDay": app.tokens_per_day}},
                retry_after_seconds=refused.retry_after_seconds,
            ) from refused
    _count(rt, "new")
    return claims.issue_application_token(
        rt,
        client_id=app.id,
        secret_id=proven.secret_id,
        place=proven.place,
        roles=app.roles,
        tenant=app.tenant,
        scope=granted,
        audience=audience,
        seconds=seconds,
        now=now,
    )


def _count(rt: Runtime, result: str) -> None:
    """Count a token that was asked for, also where the answer is given again as it was."""
    grounds.note_deed(lambda _: rt.counts.add(TOKENS, result))
    rt.counts.add(TOKENS, result)


def record_asking(rt: Runtime) -> None:
    """Write down who asked this process for tokens too often for an hour; all processes together once an hour for each client."""
    found = rt.asking.take()
    try:
        while found:
            _record_often(rt, found[-1])
            found.pop()
    except (Refused, Contention):
        rt.asking.give_back(found)
        raise


def _record_often(rt: Runtime, often: Often) -> None:
    try:
        with rt.unit(Origin.background()) as unit:
            # Locked: of two processes that found it out, the second sees what the first wrote.
            app = get_row(unit.session, often.client_id, for_update=True)
            since = later(unit.now, -LONG_ENOUGH_SECONDS)
            if audit.is_recorded(unit, Action.APPLICATION_ASKS_TOO_OFTEN, target=app.id, since=since):
                return
            audit.record(
                rt,
                unit,
                Action.APPLICATION_ASKS_TOO_OFTEN,
                actor="background",
                target=app.id,
                tenant=app.tenant_id,
                asked=often.asked,
                tokenSeconds=often.token_seconds,
                tokenReuseSeconds=app.token_reuse_seconds,
            )
    except Refused as refused:
        if refused.problem is not NOT_FOUND:
            raise  # Only one that was deleted meanwhile is nobody's concern.


def audience_of(rt: Runtime, app: ApplicationInfo, *, origin: str | None = None) -> tuple[str, ...]:
    """The audience of a token asked for with this `Origin` header: the origin, if this application may name it, else its own default."""
    allowed = app.audiences or rt.settings.origins
    fallback = app.audiences[0] if app.audiences else rt.settings.default_audience
    required = rt.settings.require_origin
    return (claims.resource_of(origin, allowed=allowed, required=required, fallback=fallback),)


def audience_for_resource(rt: Runtime, app: ApplicationInfo, resource: str) -> tuple[str, ...]:
    """The audience that a `resource` parameter selects (RFC 8707 section 2), among those that this application may name.

    Raises Refused(TARGET_REFUSED) for another, and, where nothing is listed, for what is no absolute URI without a fragment.
    """
    allowed = app.audiences or rt.settings.origins
    named = canonical_audience(resource) or resource
    if named not in allowed if allowed else not _RESOURCE.fullmatch(named):
        raise Refused(TARGET_REFUSED, field="resource", evidence={"asked": resource[:200], "has": list(allowed)})
    return (named,)


def live_state(rt: Runtime, client_id: str, token_id: str, *, issued_at: int) -> LiveApplication | None:
    """What an application whose token `token_id`, issued at that Unix second, is still good may do now, or None."""
    secret_id = claims.secret_of(token_id)
    row = rt.database.row(_LIVE, id=client_id, secret_id=secret_id, jti=token_id)
    if row is None:
        return None
    if rt.ring.ensure_version(row.ring_version) and not rt.ring.is_ready():
        return None
    by_key = row.jwks is not None and secret_id == key_proof(row.key_set_id)
    # Enabling again revives nothing: what was issued before the application, or its tenant, was last disabled has ended.
    ends = [moment.timestamp() for moment in (row.disabled_at, row.tenant_disabled_at) if moment is not None]
    is_ended = row.revoked is not None or (bool(ends) and issued_at <= max(ends))
    is_good = row.enabled and row.tenant_enabled and not is_ended and (by_key or row.has_earned)
    belongs = Memberships.alone(row.tenant, row.roles, row.limits, row.policy) if row.tenant else Memberships()
    return LiveApplication(row.roles, row.scopes, belongs) if is_good else None


def why_ended(rt: Runtime, client_id: str, token_id: str, *, issued_at: int) -> str:
    """Why `live_state` finds nothing for a genuine token: one line for operators, after the same checks in the same order."""
    secret_id = claims.secret_of(token_id)
    row = rt.database.row(_LIVE, id=client_id, secret_id=secret_id, jti=token_id)
    if row is None:
        return "the application was deleted"
    if not row.enabled:
        return "the application is disabled"
    if row.revoked is not None:
        return "this token was revoked by its application (RFC 7009)"
    if row.disabled_at is not None and issued_at <= row.disabled_at.timestamp():
        return "the application was disabled after this token was issued; enabling it again revives nothing"
    if not row.has_earned and secret_id != key_proof(row.key_set_id):
        kind = secret_id.partition("-")[0]
        ended = {
            "key": "key set that earned this token was replaced or taken away",
            "trust": "trust that earned this token was removed",
        }
        return f"the {ended.get(kind, 'secret that earned this token was removed')}"
    return "the key that signed this token was withdrawn"


def revoke(rt: Runtime, unit: Unit, said: Claims, *, actor: str) -> None:
    """End one token of an application; doing it twice is the same.

    Offline verifiers hear its `jti`. Of one grant they can be told a thousand; one more, and they ask us about all that it earned before.
    """
    # Remembered a little beyond its end: a janitor on a host with a fast clock must not revive it.
    end = later(from_micros(said.expires_at * 1_000_000), SKEW_SECONDS)
    place = rt.status_lists.place_of(said.raw)
    is_news = revoked.revoke_token(rt, unit, said.token_id, end, actor=actor)
    if not is_news or place is None or status.end_token(unit, place, said.token_id, end):
        return
    fresh = status.take(rt, unit)
    secret = (ClientSecret.client_id == said.client_id, ClientSecret.place == place)
    keys = (Application.id == said.client_id, Application.key_place == place)
    trust = (ApplicationTrust.client_id == said.client_id, ApplicationTrust.place == place)
    moves = (
        update(ClientSecret).where(*secret).values(place=fresh),
        update(ApplicationTrust).where(*trust).values(place=fresh),
        update(Application).where(*keys).values(key_place=fresh),
    )
    if any(unit.changed(move) for move in moves):
        status.change_grants(rt, unit, select(literal(place)))
