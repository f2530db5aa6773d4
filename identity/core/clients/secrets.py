"""Client secrets: proving an application by one, and replacing one while the other works.

An application has at most two live secrets. A secret is kept as a keyed hash and is shown once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, NoReturn

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    LargeBinary,
    String,
    bindparam,
    delete,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Origin, later
from identity.canonical import canonical_id
from identity.core.clients.applications import COLUMNS, Application, ApplicationInfo, get_row, info_of
from identity.core.keeping import Keeping, delete_batch
from identity.core.proofs import attempts, machines
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import CLIENT_MISMATCH, CONFLICT, NOT_FOUND, Refused
from identity.instruments import opaque
from identity.instruments.keyring import CURRENT_VERSION
from identity.instruments.opaque import Kind, Secret
from identity.runtime import Runtime
from identity.storage import Base, Instant, Prepared, Unit

MAX_LIVE_SECRETS: Final = 2


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


class _ProofRow(NamedTuple):
    """An application with one of its secrets, or with none."""

    id: str
    app_id: int
    name: str
    tenant: str | None
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    audiences: tuple[str, ...]
    token_seconds: int | None
    jwks: str | None
    enabled: bool
    created_at: datetime
    version: int
    tenant_enabled: bool
    ring_version: int
    failures: str | None
    secret_id: str | None
    fingerprint: bytes | None
    expires_at: datetime | None

    def holds(self, presented: bytes) -> bool:
        """Whether this row's secret is the presented one, whether it lives or not."""
        return self.fingerprint is not None and opaque.matches(self.fingerprint, presented)

    def lives(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at

    def application(self) -> ApplicationInfo:
        return info_of(self[: len(ApplicationInfo._fields)])


_WITH_SECRETS = Prepared(
    select(
        *COLUMNS,
        CURRENT_VERSION,
        attempts.FAILURES,
        ClientSecret.id,
        ClientSecret.fingerprint,
        ClientSecret.expires_at,
    )
    .outerjoin(ClientSecret, ClientSecret.client_id == Application.id)
    .where(Application.id == bindparam("id")),
    into=_ProofRow,
)


def authenticate(rt: Runtime, origin: Origin, client_id: str, secret: str) -> Authenticated:
    """The application behind a client id and secret. One read, and no write unless it is refused.

    Raises Refused(CLIENT_MISMATCH) alike for unknown, disabled, wrong and expired; Refused(LOCKED_OUT) after 20 failures of this client in
    5 minutes from one address, and for every failure after 100 of that address.
    """
    canonical = canonical_id(client_id)
    rows = rt.database.rows(_WITH_SECRETS, id=canonical, meter=machines.meter_key(origin)) if canonical else []
    if rows:
        machines.judge(rt, name_of(client_id), rows[0].failures)
    else:
        machines.check(rt, origin, name_of(client_id))
    presented = opaque.fingerprint(rt.ring.vault.derive("client secrets"), secret)
    now = rt.clock.now()
    proven = ""
    for row in rows:
        if row.holds(presented) and row.lives(now):
            proven = row.secret_id or ""
    if not proven or not rows[0].application().is_usable:
        detail, evidence = _flaw(rows, presented, secret, now)
        refuse(rt, origin, client_id, detail=detail, evidence=evidence, is_known=bool(rows))
    rt.ring.ensure_version(rows[0].ring_version)
    rt.usage.note(ClientSecret, proven, now, origin.address)
    return Authenticated(rows[0].application(), proven)


def _flaw(rows: Sequence[_ProofRow], presented: bytes, secret: str, now: datetime) -> tuple[str, dict[str, Any]]:
    """Why a client does not pass, and what would have: for operators only, clients see one refusal."""
    # Before anything that depends on who is asked for, so that an unknown client costs the same.
    well_formed = opaque.is_well_formed(Kind.CLIENT_SECRET, secret)
    if not rows:
        return "unknown client", {}
    for row in rows:
        if not row.holds(presented):
            continue
        evidence: dict[str, Any] = {"seen": {"secret": row.secret_id}, "near_miss": "the secret was right"}
        if row.expires_at is None or now < row.expires_at:
            return "the application or its tenant is disabled", evidence
        late = int((now - row.expires_at).total_seconds())
        return "the secret has expired", evidence | {"expected": "a secret that lives", "skew_seconds": late}
    evidence = {"expected": {"secret": [row.secret_id for row in rows if row.secret_id]}}
    if not well_formed:
        evidence["near_miss"] = "not the shape of a client secret: cut short, mistyped, or another kind of credential"
        return "wrong secret", evidence
    evidence["near_miss"] = "well-formed, but no living secret of this application: removed, replaced, or another one's"
    return "a secret that this application does not have (any more)", evidence


def refuse(
    rt: Runtime,
    origin: Origin,
    client_id: str,
    *,
    detail: str,
    evidence: Mapping[str, Any] | None = None,
    is_known: bool = True,
) -> NoReturn:
    """Count a failed authentication of a machine and refuse it. One that does not exist is summed up in the audit."""
    with rt.unit(origin, lasting=is_known) as unit:
        machines.record(unit, name_of(client_id))
        if is_known:
            audit.record(rt, unit, Action.APPLICATION_REFUSED, actor=canonical_id(client_id) or "", reason=detail)
    if not is_known:
        rt.strangers.note(Action.APPLICATION_REFUSED, detail, origin.address)
    raise Refused(CLIENT_MISMATCH, detail=detail, evidence=evidence)


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


def name_of(client_id: str) -> str:
    """Under which name a machine is counted: every spelling of a client id is one machine."""
    return canonical_id(client_id) or client_id


def _secret_info(row: ClientSecret) -> SecretInfo:
    return SecretInfo(row.id, row.created_at, row.expires_at, row.last_used_at, row.last_used_address)


def purge(_rt: Runtime, unit: Unit) -> int:
    """Delete secrets that expired more than 30 days ago; until then they tell who asks when they ended."""
    return delete_batch(unit, ClientSecret, ClientSecret.expires_at < later(unit.now, -30 * 86_400))


KEEPING: Final = Keeping((ClientSecret,), purge=purge)
