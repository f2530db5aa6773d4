"""Machine clients: what they are, their secrets, and their tokens.

An application has a client id (UUID), a small number (`appId`) for GraphQL, and at most two live secrets, so that one can be replaced
while the other works. Its tokens are stateless: no row and no write on success. What ends them early is the application (disabled,
deleted), the secret that earned them, or a revoked `jti`; all are asked of the live rows in one read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, NoReturn

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    LargeBinary,
    String,
    Text,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from identity.ambient import Origin, later
from identity.canonical import canonical_id, get_names
from identity.core.people import tenancy
from identity.core.people.tenancy import Memberships, Tenant
from identity.core.proofs import attempts
from identity.core.proofs.attempts import MACHINE_AND_ADDRESS, Charge
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import claims
from identity.core.tokens.claims import AccessToken
from identity.errors import CLIENT_MISMATCH, CONFLICT, NOT_FOUND, VALIDATION, Problem, Refused
from identity.instruments import opaque
from identity.instruments.jws import load_jwks, unverified_claims, verify_assertion
from identity.instruments.keyring import CURRENT_VERSION, SKEW_SECONDS
from identity.instruments.limits import address_key
from identity.instruments.opaque import Kind, Secret
from identity.runtime import Runtime
from identity.storage import Base, Contention, Instant, Names, Prepared, Unit, from_micros

STANDARD_APP_ID: Final = 10
ADMIN_SCOPE: Final = "admin"
INTROSPECT_SCOPE: Final = "introspect"
MAX_LIVE_SECRETS: Final = 2
ASSERTION_SECONDS: Final = 300
_RESOURCE: Final = re.compile(r"[a-z][a-z0-9+.-]*://[!-\"$-~]{1,190}", re.ASCII | re.IGNORECASE)
SCOPE_REFUSED: Final = Problem(
    "VALIDATION_ERROR", 422, "That scope is not this application's to ask for", oauth="invalid_scope"
)
TARGET_REFUSED: Final = Problem(
    "VALIDATION_ERROR", 422, "That resource is not this application's to ask for", oauth="invalid_target"
)


class Application(Base):
    """A machine client."""

    __tablename__ = "application"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    app_id: Mapped[int] = mapped_column(BigInteger, unique=True)
    name: Mapped[str] = mapped_column(String(200))
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"))
    scopes: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    roles: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    audiences: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    token_seconds: Mapped[int | None] = mapped_column(BigInteger)
    jwks: Mapped[str | None] = mapped_column(Text)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    disabled_at: Mapped[datetime | None] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant)
    version: Mapped[int] = mapped_column(BigInteger, default=1)


class ClientSecret(Base):
    """A secret of an application, as a keyed hash. Its id is short: it travels in every `jti` that it earns."""

    __tablename__ = "client_secret"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("application.id", ondelete="CASCADE"), index=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_address: Mapped[str | None] = mapped_column(String(64))
    warned_days: Mapped[int | None] = mapped_column(BigInteger)


class RevokedToken(Base):
    """An application token that was revoked before its time, kept until that time."""

    __tablename__ = "revoked_token"

    jti: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


class SpentAssertion(Base):
    """A signed assertion that has proven its client once, kept until it would expire: RFC 7523 section 3 (7)."""

    __tablename__ = "spent_assertion"

    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


class ApplicationInfo(NamedTuple):
    """An application as callers outside the core see one."""

    id: str
    app_id: int
    name: str
    tenant: str | None
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    audiences: tuple[str, ...]
    token_seconds: int | None
    jwks: Mapping[str, Any] | None
    enabled: bool
    created_at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A client secret as administrators see it: never the secret."""

    id: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_address: str | None


class Authenticated(NamedTuple):
    """An application that has proven itself, and by which secret (`key` for a signed assertion)."""

    application: ApplicationInfo
    secret_id: str


class LiveApplication(NamedTuple):
    """The rights of an application as of now, whatever its token says."""

    roles: tuple[str, ...]
    scopes: tuple[str, ...]
    memberships: Memberships


_COLUMNS = (
    Application.id,
    Application.app_id,
    Application.name,
    Application.tenant_id,
    Application.scopes,
    Application.roles,
    Application.audiences,
    Application.token_seconds,
    Application.jwks,
    Application.enabled,
    Application.created_at,
    Application.version,
)
_WITH_SECRETS = Prepared(
    select(
        *_COLUMNS,
        CURRENT_VERSION,
        attempts.FAILURES,
        ClientSecret.id,
        ClientSecret.fingerprint,
        ClientSecret.expires_at,
    )
    .outerjoin(ClientSecret, ClientSecret.client_id == Application.id)
    .where(Application.id == bindparam("id"))
)
_BY_ID = Prepared(select(*_COLUMNS).where(Application.id == bindparam("id")))
_BY_APP_ID = Prepared(select(*_COLUMNS).where(Application.app_id == bindparam("app_id")))
_LIVE = Prepared(
    select(
        Application.enabled,
        Application.roles,
        Application.tenant_id,
        Application.scopes,
        Application.jwks,
        ClientSecret.id,
        ClientSecret.expires_at,
        RevokedToken.jti,
        Application.disabled_at,
        Tenant.limits,
        CURRENT_VERSION,
    )
    .outerjoin(Tenant, Tenant.id == Application.tenant_id)
    .outerjoin(ClientSecret, (ClientSecret.client_id == Application.id) & (ClientSecret.id == bindparam("secret_id")))
    .outerjoin(RevokedToken, RevokedToken.jti == bindparam("jti"))
    .where(Application.id == bindparam("id"))
)
KEY_PROOF: Final = "key"


# Proving an application and giving it a token: the hot path.


def authenticate(rt: Runtime, origin: Origin, client_id: str, secret: str) -> Authenticated:
    """The application behind a client id and secret. One read, and no write unless it is refused.

    Raises Refused(CLIENT_MISMATCH) alike for unknown, disabled, wrong and expired; Refused(LOCKED_OUT) after 20 failures in 5 minutes
    from one address.
    """
    canonical = canonical_id(client_id)
    (charge,) = _charges(origin, canonical or client_id)
    rows = rt.database.rows(_WITH_SECRETS, id=canonical, meter=charge.key) if canonical else []
    if rows:
        attempts.judge(rt, charge, rows[0][13])
    else:
        attempts.check(rt, (charge,))
    presented = opaque.fingerprint(rt.ring.vault.derive("client secrets"), secret)
    now = rt.clock.now()
    proven = ""
    for row in rows:
        secret_id, stored, expires_at = row[14:]
        if stored is not None and opaque.matches(stored, presented) and (expires_at is None or now < expires_at):
            proven = secret_id
    if not proven or not rows[0][9]:
        detail, evidence = _flaw(rows, presented, secret, now)
        refuse(rt, origin, client_id, detail=detail, evidence=evidence)
    rt.ring.ensure_version(rows[0][12])
    rt.usage.note(ClientSecret, proven, now, origin.address)
    return Authenticated(_info(rows[0][:12]), proven)


def _flaw(rows: Sequence[tuple[Any, ...]], presented: bytes, secret: str, now: datetime) -> tuple[str, dict[str, Any]]:
    """Why a client does not pass, and what would have: for operators only, clients see one refusal."""
    # Before anything that depends on who is asked for, so that an unknown client costs the same.
    well_formed = opaque.is_well_formed(Kind.CLIENT_SECRET, secret)
    if not rows:
        return "unknown client", {}
    for secret_id, stored, expires_at in (row[14:] for row in rows):
        if stored is None or not opaque.matches(stored, presented):
            continue
        evidence: dict[str, Any] = {"seen": {"secret": secret_id}, "near_miss": "the secret was right"}
        if expires_at is None or now < expires_at:
            return "the application is disabled", evidence
        late = int((now - expires_at).total_seconds())
        return "the secret has expired", evidence | {"expected": "a secret that lives", "skew_seconds": late}
    evidence = {"expected": {"secret": [row[14] for row in rows if row[14]]}}
    if not well_formed:
        evidence["near_miss"] = "not the shape of a client secret: cut short, mistyped, or another kind of credential"
    return "wrong secret", evidence


def authenticate_assertion(rt: Runtime, origin: Origin, assertion: str, *, audiences: Sequence[str]) -> Authenticated:
    """The application that signed a JWT about itself (RFC 7523 section 3) with one of its registered keys. Each serves once.

    It names the application as `iss` and `sub` and one of `audiences` alone as `aud`, ends at most five minutes ahead, and has a `jti`.
    That `jti` is written down: this is the one authentication of a machine that writes on success. Raises as `authenticate` does.
    """
    client_id = str(unverified_claims(assertion).get("sub", ""))
    attempts.check(rt, _charges(origin, client_id))
    app = find(rt, client_id)
    if app is None or not app.enabled or app.jwks is None:
        refuse(rt, origin, client_id, detail="unknown, disabled or without keys")
    # Only a signature that holds makes the reasons below worth telling to an operator.
    try:
        claims = verify_assertion(assertion, app.jwks)
    except Refused as refused:
        refuse(rt, origin, client_id, detail=refused.detail)
    fault = _assertion_fault(claims, app.id, audiences, int(rt.clock.now().timestamp()))
    if fault:
        refuse(rt, origin, client_id, detail=fault, evidence={"aud": claims.get("aud"), "exp": claims.get("exp")})
    fingerprint = hashlib.sha256(f"{app.id} {claims['jti']}".encode("utf-8", "surrogatepass")).digest()
    try:
        with rt.unit(origin) as unit:
            # Remembered a little beyond its end: a janitor on a host with a fast clock must not forget it too soon.
            kept_until = from_micros((claims["exp"] + SKEW_SECONDS) * 1_000_000)
            unit.add(SpentAssertion(fingerprint=fingerprint, expires_at=kept_until))
    except IntegrityError:
        refuse(rt, origin, client_id, detail="assertion: this jti has been used")
    return Authenticated(app, KEY_PROOF)


def refuse(
    rt: Runtime, origin: Origin, client_id: str, *, detail: str, evidence: Mapping[str, Any] | None = None
) -> NoReturn:
    """Count a failed authentication of a machine and refuse it."""
    with rt.unit(origin) as unit:
        attempts.record(rt, unit, _charges(origin, client_id))
        audit.record(rt, unit, Action.APPLICATION_REFUSED, actor=canonical_id(client_id) or "", reason=detail)
    raise Refused(CLIENT_MISMATCH, detail=detail, evidence=evidence)


def issue_token(
    rt: Runtime, proven: Authenticated, *, scope: Sequence[str] | None, audience: Sequence[str]
) -> AccessToken:
    """A token for a proven application: the asked scopes, or all that it has.

    Raises Refused(SCOPE_REFUSED) for a scope that it does not have.
    """
    app = proven.application
    granted = app.scopes if scope is None else tuple(dict.fromkeys(scope))
    if not set(granted) <= set(app.scopes):
        raise Refused(SCOPE_REFUSED, field="scope", evidence={"asked": sorted(granted), "has": list(app.scopes)})
    return claims.issue_application_token(
        rt,
        client_id=app.id,
        secret_id=proven.secret_id,
        roles=app.roles,
        tenant=app.tenant,
        scope=granted,
        audience=audience,
        seconds=app.token_seconds or rt.settings.application_token_seconds,
        now=rt.clock.now(),
    )


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
    if resource not in allowed if allowed else not _RESOURCE.fullmatch(resource):
        raise Refused(TARGET_REFUSED, field="resource", evidence={"asked": resource[:200], "has": list(allowed)})
    return (resource,)


def live_state(rt: Runtime, client_id: str, token_id: str, *, issued_at: int) -> LiveApplication | None:
    """What an application whose token `token_id`, issued at that Unix second, is still good may do now, or None."""
    secret_id = claims.secret_of(token_id)
    row = rt.database.row(_LIVE, id=client_id, secret_id=secret_id, jti=token_id)
    if row is None:
        return None
    enabled, roles, tenant, scopes, jwks, secret, expires_at, revoked, disabled_at, limits, version = row
    if rt.ring.ensure_version(version) and not rt.ring.is_ready():
        return None
    by_key = secret_id == KEY_PROOF and jwks is not None
    by_secret = secret is not None and (expires_at is None or rt.clock.now() < expires_at)
    # Enabling again revives nothing: what was issued before the application was last disabled has ended.
    is_ended = revoked is not None or (disabled_at is not None and issued_at <= disabled_at.timestamp())
    is_good = enabled and not is_ended and (by_key or by_secret)
    belongs = Memberships.alone(tenant, roles, limits) if tenant else Memberships()
    return LiveApplication(roles, scopes, belongs) if is_good else None


def revoke_token(rt: Runtime, unit: Unit, token_id: str, expires_at: datetime, *, actor: str) -> None:
    """End one application token; doing it twice is the same."""
    if unit.session.get(RevokedToken, token_id) is None:
        try:
            with unit.session.begin_nested():
                unit.session.add(RevokedToken(jti=token_id, expires_at=expires_at))
        except IntegrityError:
            return  # Revoked by another request at this moment.
        audit.record(rt, unit, Action.TOKEN_REVOKED, actor=actor, jti=token_id)


def purge(unit: Unit) -> int:
    """Forget revoked tokens and spent assertions that have expired; for the janitor."""
    gone = unit.changed(delete(RevokedToken).where(RevokedToken.expires_at < unit.now))
    return gone + unit.changed(delete(SpentAssertion).where(SpentAssertion.expires_at < unit.now))


# Making and changing applications.


def register(
    rt: Runtime,
    unit: Unit,
    *,
    name: str,
    actor: str,
    tenant: str | None = None,
    scopes: Sequence[str] = (),
    roles: Sequence[str] = (),
    audiences: Sequence[str] = (),
    token_seconds: int | None = None,
    jwks: Mapping[str, Any] | None = None,
) -> tuple[ApplicationInfo, SecretInfo, Secret]:
    """Make an application and its first secret, which is shown once.

    Raises Refused(VALIDATION) and Refused(NOT_FOUND) for a tenant that does not exist.
    """
    if tenant is not None:
        tenancy.get(unit.session, tenant)
    highest = unit.execute(select(func.coalesce(func.max(Application.app_id), STANDARD_APP_ID))).scalar_one()
    row = Application(
        id=rt.new_id(),
        app_id=highest + 1,
        name=name,
        tenant_id=tenant,
        scopes=get_names(tuple(scopes), field="scopes"),
        roles=get_names(tuple(roles), field="roles"),
        audiences=_checked_audiences(audiences),
        token_seconds=_checked_seconds(token_seconds),
        jwks=_checked_jwks(jwks),
        enabled=True,
        created_at=unit.now,
        version=1,
    )
    try:
        unit.add(row)
    except IntegrityError as exc:
        raise Contention("two applications at once took one number") from exc
    audit.record(
        rt,
        unit,
        Action.APPLICATION_CREATED,
        actor=actor,
        target=row.id,
        name=name,
        tenant=tenant,
        scopes=list(row.scopes),
    )
    info, secret = add_secret(rt, unit, row.id, actor=actor)
    return _from_row(row), info, secret


def add_secret(
    rt: Runtime, unit: Unit, client_id: str, *, actor: str, expires_in: int | None = None
) -> tuple[SecretInfo, Secret]:
    """A further live secret, at most two in all (CONFLICT); it expires after `expires_in` seconds, or never."""
    get_row(unit.session, client_id, for_update=True)
    alive = or_(ClientSecret.expires_at.is_(None), ClientSecret.expires_at > unit.now)
    living = unit.execute(
        select(func.count()).select_from(ClientSecret).where(ClientSecret.client_id == client_id, alive)
    ).scalar_one()
    if living >= MAX_LIVE_SECRETS:
        raise Refused(CONFLICT.saying("An application has at most two live secrets; delete one first"))
    secret = opaque.mint(Kind.CLIENT_SECRET, rt.entropy)
    row = ClientSecret(
        id=rt.entropy.bytes(6).hex(),
        client_id=client_id,
        fingerprint=opaque.fingerprint(rt.ring.vault.derive("client secrets"), secret.reveal()),
        created_at=unit.now,
        expires_at=None if expires_in is None else later(unit.now, expires_in),
    )
    unit.add(row)
    audit.record(rt, unit, Action.SECRET_CREATED, actor=actor, target=client_id, secret=row.id)
    return _secret_info(row), secret


def rotate_secret(rt: Runtime, unit: Unit, client_id: str, *, actor: str, expires_in: int) -> tuple[SecretInfo, Secret]:
    """A new secret, while the older ones keep working for `expires_in` seconds more; the oldest goes where two live already."""
    get_row(unit.session, client_id, for_update=True)
    alive = or_(ClientSecret.expires_at.is_(None), ClientSecret.expires_at > unit.now)
    living = (
        unit.execute(
            select(ClientSecret)
            .where(ClientSecret.client_id == client_id, alive)
            .order_by(ClientSecret.created_at.desc())
        )
        .scalars()
        .all()
    )
    for old in living[1:]:
        remove_secret(rt, unit, client_id, old.id, actor=actor)
    end = later(unit.now, expires_in)
    for old in living[:1]:
        old.expires_at = min(old.expires_at or end, end)
    unit.session.flush()
    return add_secret(rt, unit, client_id, actor=actor)


def remove_secret(rt: Runtime, unit: Unit, client_id: str, secret_id: str, *, actor: str) -> None:
    """End a secret and every token that it earned."""
    gone = unit.changed(delete(ClientSecret).where(ClientSecret.id == secret_id, ClientSecret.client_id == client_id))
    if not gone:
        raise Refused(NOT_FOUND, detail="no such secret of this application")
    audit.record(rt, unit, Action.SECRET_REVOKED, actor=actor, target=client_id, secret=secret_id)


def secrets_of(rt: Runtime, client_id: str) -> list[SecretInfo]:
    """The secrets of an application, oldest first."""
    with rt.database.reading() as session:
        get_row(session, client_id)
        rows = session.scalars(
            select(ClientSecret).where(ClientSecret.client_id == client_id).order_by(ClientSecret.created_at)
        )
        return [_secret_info(row) for row in rows]


def change(
    rt: Runtime, unit: Unit, client_id: str, *, actor: str, version: int | None = None, **changes: Any
) -> ApplicationInfo:
    """Change `name`, `scopes`, `roles`, `audiences`, `token_seconds`, `jwks` or `enabled`; `version` guards against a change in between.

    Raises Refused(NOT_FOUND), Refused(VALIDATION), Refused(CONFLICT) for a stale version.
    """
    row = get_row(unit.session, client_id)
    checks: dict[str, Callable[[Any], Any]] = {
        "scopes": lambda value: get_names(tuple(value), field="scopes"),
        "roles": lambda value: get_names(tuple(value), field="roles"),
        "audiences": _checked_audiences,
        "token_seconds": _checked_seconds,
        "jwks": _checked_jwks,
    }
    values = {name: checks[name](value) if name in checks else value for name, value in changes.items()}
    before = {name: getattr(row, name) for name in values}
    ended = {"disabled_at": unit.now} if values.get("enabled") is False else {}
    expected = row.version if version is None else version
    if not unit.changed(
        update(Application)
        .where(Application.id == client_id, Application.version == expected)
        .values(**values, **ended, version=expected + 1)
    ):
        raise Refused(CONFLICT.saying("It has changed in between; read it again"), detail="stale version")
    unit.session.refresh(row)
    audit.record(rt, unit, Action.APPLICATION_CHANGED, actor=actor, target=client_id, before=before, after=values)
    return _from_row(row)


def remove(rt: Runtime, unit: Unit, client_id: str, *, actor: str) -> None:
    """Delete an application; its secrets and tokens end with it. The standard one stays (CONFLICT)."""
    row = get_row(unit.session, client_id)
    if row.app_id == STANDARD_APP_ID:
        raise Refused(CONFLICT.saying("The standard application always exists"))
    unit.execute(delete(ClientSecret).where(ClientSecret.client_id == client_id))
    unit.execute(delete(Application).where(Application.id == client_id))
    audit.record(rt, unit, Action.APPLICATION_DELETED, actor=actor, target=client_id)


def ensure_standard(rt: Runtime) -> None:
    """Make the application number 10 of a new database: the issuer's own, whose id stands in every user token without another."""
    if find_by_app_id(rt, STANDARD_APP_ID) is not None:
        return
    try:
        with rt.unit(Origin.background()) as unit:
            unit.add(
                Application(
                    id=rt.new_id(),
                    app_id=STANDARD_APP_ID,
                    name="standard",
                    enabled=True,
                    created_at=unit.now,
                    version=1,
                )
            )
    except IntegrityError:
        return  # Another process was first.


def standard_client(rt: Runtime) -> str:
    """The client id that stands in a user's token when no application asked for it."""
    app = find_by_app_id(rt, STANDARD_APP_ID)
    assert app is not None, "made at first start, never deleted"
    return app.id


def find_by_app_id(rt: Runtime, app_id: int) -> ApplicationInfo | None:
    """The application with this number, or None."""
    row = rt.database.row(_BY_APP_ID, app_id=app_id) if 0 < app_id < 2**63 else None
    return _info(row) if row else None


def find(rt: Runtime, client_id: str) -> ApplicationInfo | None:
    """The application with this client id, or None."""
    canonical = canonical_id(client_id)
    row = rt.database.row(_BY_ID, id=canonical) if canonical else None
    return _info(row) if row else None


def get(rt: Runtime, client_id: str) -> ApplicationInfo:
    """The application with this client id. Raises Refused(NOT_FOUND)."""
    found = find(rt, client_id)
    if found is None:
        raise Refused(NOT_FOUND, detail="no such application")
    return found


def get_row(session: Session, client_id: str, *, for_update: bool = False) -> Application:
    """The row of an application. Raises Refused(NOT_FOUND)."""
    row = session.get(Application, client_id, with_for_update=for_update or None) if canonical_id(client_id) else None
    if row is None:
        raise Refused(NOT_FOUND, detail="no such application")
    return row


def listing(rt: Runtime, *, limit: int, offset: int) -> tuple[int, list[ApplicationInfo]]:
    """How many applications there are, and a page of them by number."""
    with rt.database.reading() as session:
        total = session.scalar(select(func.count()).select_from(Application)) or 0
        rows = session.scalars(select(Application).order_by(Application.app_id).limit(limit).offset(offset))
        return total, [_from_row(row) for row in rows]


def _charges(origin: Origin, client_id: str) -> tuple[Charge, ...]:
    """What a failure of this machine counts against; every spelling of a client id is one machine."""
    name = canonical_id(client_id) or client_id
    return (Charge(MACHINE_AND_ADDRESS, f"{name} {address_key(origin.address)}"),)


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


def _checked_audiences(audiences: Sequence[str]) -> tuple[str, ...]:
    if any(not 1 <= len(one) <= 200 or not one.isascii() or not one.isprintable() or " " in one for one in audiences):
        raise Refused(
            VALIDATION.saying("An audience has 1 to 200 printable ASCII characters without spaces"), field="audiences"
        )
    return tuple(sorted(set(audiences)))


def _checked_seconds(seconds: int | None) -> int | None:
    if seconds is not None and not 60 <= seconds <= 86_400:
        raise Refused(VALIDATION.saying("A token lives from 60 to 86400 seconds"), field="tokenSeconds")
    return seconds


def _checked_jwks(jwks: Mapping[str, Any] | None) -> str | None:
    if jwks is None:
        return None
    load_jwks(jwks)
    return json.dumps(jwks, sort_keys=True)


def _info(row: Sequence[Any]) -> ApplicationInfo:
    return ApplicationInfo(*(*row[:8], json.loads(row[8]) if row[8] else None, *row[9:12]))


def _from_row(row: Application) -> ApplicationInfo:
    return _info([getattr(row, column.key) for column in _COLUMNS])


def _secret_info(row: ClientSecret) -> SecretInfo:
    return SecretInfo(row.id, row.created_at, row.expires_at, row.last_used_at, row.last_used_address)
