"""Client secrets: proving an application by one, and replacing one while the other works.

An application has at most two live secrets. A secret is kept as a keyed hash and is shown once. One that expires or is replaced proves
nothing any more, and what it earned runs out by itself: its row stays until then. One that is removed ends what it earned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    ForeignKey,
    LargeBinary,
    String,
    bindparam,
    delete,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Origin, later
from identity.canonical import canonical_id
from identity.columns import Instant
from identity.core.clients import decoys
from identity.core.clients.applications import COLUMNS, Application, ApplicationInfo, get_row, info_of
from identity.core.keeping import Keeping, delete_batch
from identity.core.proofs import attempts, machines
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import status
from identity.errors import CLIENT_MISMATCH, CONFLICT, NOT_FOUND, Problem, Refused
from identity.instruments import opaque, usage
from identity.instruments.epochs import EVERYBODY, shard_of, shard_of_meter
from identity.instruments.keyring import CURRENT_VERSION, SKEW_SECONDS
from identity.instruments.opaque import Kind, Secret
from identity.instruments.usage import CredentialCaller
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

MAX_LIVE_SECRETS: Final = 2
LONGEST_TOKEN_SECONDS: Final = 86_400
_IN_USE_SECONDS: Final = 86_400
_REMEMBERED_SECONDS: Final = 3_600


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
    retire_after_quiet: Mapped[int | None] = mapped_column(BigInteger)
    quiet_from: Mapped[datetime | None] = mapped_column(Instant)
    place: Mapped[int | None] = mapped_column(BigInteger)

    tells_callers: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A client secret as administrators see it: never the secret."""

    id: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_ip: str | None
    retire_after_quiet_seconds: int | None = None
    callers: tuple[str, ...] = ()


class MadeSecret(NamedTuple):
    """A new secret, the only copy of it, and the one before it, if that still works."""

    info: SecretInfo
    secret: Secret
    previous: SecretInfo | None = None


class Authenticated(NamedTuple):
    """An application that has proven itself, by which credential (its id travels in the `jti`), and when that ends, if it is known.

    `place`: that credential's, in the status lists.
    """

    application: ApplicationInfo
    secret_id: str
    ends_at: datetime | None = None
    place: int | None = None


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
    key_set_id: str | None
    key_place: int | None
    attributes: str
    token_claims: str
    token_reuse_seconds: int
    tokens_per_day: int | None
    decoy: bool
    ring_version: int
    failures: str | None
    secret_id: str | None
    fingerprint: bytes | None
    expires_at: datetime | None
    retire_after_quiet: int | None
    quiet_from: datetime | None
    last_used_at: datetime | None
    place: int | None

    def holds(self, presented: bytes) -> bool:
        """Whether this row's secret is the presented one, whether it lives or not."""
        return self.fingerprint is not None and opaque.matches(self.fingerprint, presented)

    @property
    def ends_at(self) -> datetime | None:
        return _end(self.expires_at, self.retire_after_quiet, self.quiet_from, self.last_used_at)

    def lives(self, now: datetime) -> bool:
        end = self.ends_at
        return end is None or now < end

    def application(self) -> ApplicationInfo:
        return info_of(self._asdict())


_WITH_SECRETS = Prepared(
    select(
        *COLUMNS,
        CURRENT_VERSION,
        attempts.FAILURES,
        ClientSecret.id,
        ClientSecret.fingerprint,
        ClientSecret.expires_at,
        ClientSecret.retire_after_quiet,
        ClientSecret.quiet_from,
        ClientSecret.last_used_at,
        ClientSecret.place,
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
    name = rt.memory.digest("client", client_id, secret, origin.address)
    remembered = rt.memory.recall(name, rt.clock.now())
    proven: Authenticated | None = remembered.value
    if proven is None:
        proven, ends_at = _authenticate(rt, origin, client_id, secret)
        shards = (EVERYBODY, shard_of(proven.application.id), shard_of_meter(machines.meter_key(origin)))
        until = ends_at or later(rt.clock.now(), _REMEMBERED_SECONDS)
        rt.memory.learn(name, proven, shards=shards, until=until, asked=remembered)
    rt.usage.note(ClientSecret, proven.secret_id, rt.clock.now(), origin.address)
    return proven


def _authenticate(rt: Runtime, origin: Origin, client_id: str, secret: str) -> tuple[Authenticated, datetime | None]:
    """The proven application by the rows of now, and when its secret stops to prove it if nobody uses it meanwhile."""
    canonical = canonical_id(client_id)
    rows = rt.database.rows(_WITH_SECRETS, id=canonical, meter=machines.meter_key(origin)) if canonical else []
    if rows:
        machines.judge(rt, name_of(client_id), rows[0].failures)
    else:
        machines.check(rt, origin, name_of(client_id))
    presented = _fingerprint(rt, secret)
    now = rt.clock.now()
    proven = None
    for row in rows:
        if row.holds(presented) and row.lives(now):
            proven = row
    if proven is None or not rows[0].application().is_usable:
        detail, evidence = _flaw(rows, presented, secret, now)
        bait = rows[0].application() if rows and rows[0].decoy else None
        taken = bait is not None and any(row.holds(_fingerprint(rt, secret, decoy=True)) for row in rows)
        refuse(rt, origin, client_id, detail=detail, evidence=evidence, is_known=bool(rows), bait=bait, is_right=taken)
    rt.ring.ensure_version(proven.ring_version)
    return Authenticated(proven.application(), proven.secret_id or "", proven.expires_at, proven.place), proven.ends_at


def _flaw(rows: Sequence[_ProofRow], presented: bytes, secret: str, now: datetime) -> tuple[str, dict[str, Any]]:
    """Why a client does not pass, and what would have: for operators only, clients see one refusal."""
    # Before anything that depends on who is asked for, so that an unknown client costs the same.
    well_formed = opaque.is_well_formed(Kind.CLIENT_SECRET, secret)
    if not rows:
        return "unknown client", {}
    if rows[0].decoy:
        return "a decoy, which proves nothing", {"near_miss": "whoever sent this has found where the decoy lies"}
    for row in rows:
        if not row.holds(presented):
            continue
        evidence: dict[str, Any] = {"seen": {"secret": row.secret_id}, "near_miss": "the secret was right"}
        end = row.ends_at
        if end is None or now < end:
            return f"the {'application' if not row.enabled else 'tenant'} is disabled", evidence
        late = int((now - end).total_seconds())
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
    problem: Problem = CLIENT_MISMATCH,
    bait: ApplicationInfo | None = None,
    is_right: bool = False,
) -> NoReturn:
    """Count a failed authentication of a machine and refuse it. One that does not exist is summed up in the audit.

    `bait`: it is this decoy, and `is_right` where its own secret was sent: who answers for it hears of that.
    """
    with rt.unit(origin, lasting=is_known) as unit:
        machines.record(rt, unit, name_of(client_id))
        if bait is not None:
            decoys.record_try(rt, unit, "application", bait.id, is_right=is_right, tenant=bait.tenant)
        elif is_known:
            audit.record(rt, unit, Action.APPLICATION_REFUSED, actor=canonical_id(client_id) or "", reason=detail)
    if bait is not None:
        decoys.note_try(rt, "application", bait.id)
    if not is_known:
        rt.strangers.note(Action.APPLICATION_REFUSED, detail, origin.address)
    # Whom it was about, for who explains it; what is no id may be a secret in the wrong place.
    named = {"client": canonical_id(client_id)} if canonical_id(client_id) else {}
    raise Refused(problem, detail=detail, evidence={**named, **(evidence or {})})


def add_secret(
    rt: Runtime,
    unit: Unit,
    client_id: str,
    *,
    actor: str,
    expires_in: int | None = None,
    retire_old_after_quiet: int | None = None,
    force: bool = False,
) -> MadeSecret:
    """A further live secret; it expires after `expires_in` seconds, or never.

    With `retire_old_after_quiet` the one before it ends by itself once nobody has used it for so many seconds. A third live secret is
    refused (CONFLICT), or, with `force`, takes the place of the one used longest ago, whose tokens run out by themselves.
    """
    living = _make_room(rt, unit, client_id, actor=actor, force=force)
    if retire_old_after_quiet is not None:
        for old in living:
            old.retire_after_quiet, old.quiet_from = retire_old_after_quiet, unit.now
    return _add(rt, unit, client_id, living, actor=actor, expires_in=expires_in)


def rotate_secret(
    rt: Runtime, unit: Unit, client_id: str, *, actor: str, expires_in: int, force: bool = False
) -> MadeSecret:
    """A new secret, while the one before it keeps working for `expires_in` seconds more. See `add_secret` for `force`."""
    living = _make_room(rt, unit, client_id, actor=actor, force=force)
    end = later(unit.now, expires_in)
    for old in living:
        old.expires_at = min(old.expires_at or end, end)
    return _add(rt, unit, client_id, living, actor=actor, expires_in=None)


def remove_secret(rt: Runtime, unit: Unit, client_id: str, secret_id: str, *, actor: str, force: bool = False) -> None:
    """End a secret and every token that it earned. One that was used in the last 24 hours is refused (CONFLICT) without `force`."""
    mine = (ClientSecret.id == secret_id, ClientSecret.client_id == client_id)
    row = unit.execute(select(ClientSecret).where(*mine).with_for_update()).scalar_one_or_none()
    if row is None:
        raise Refused(NOT_FOUND, detail="no such secret of this application")
    if not force and row.last_used_at is not None and unit.now < later(row.last_used_at, _IN_USE_SECONDS):
        raise Refused(_in_use(row), detail="the secret is in use")
    status.end_grants(rt, unit, select(ClientSecret.place).where(*mine))
    unit.execute(delete(ClientSecret).where(*mine))
    audit.record(
        rt,
        unit,
        Action.SECRET_REVOKED,
        actor=actor,
        target=client_id,
        tenant=_tenant_of(unit, client_id),
        secret=secret_id,
    )


def secrets_of(rt: Runtime, client_id: str) -> list[SecretInfo]:
    """The secrets of an application, oldest first, also those that have ended while something that they earned may live."""
    with rt.database.reading() as session:
        get_row(session, client_id)
        rows = session.scalars(
            select(ClientSecret).where(ClientSecret.client_id == client_id).order_by(ClientSecret.created_at)
        ).all()
        callers = usage.callers_of(session, [row.id for row in rows], rt.clock.now())
        return [_secret_info(row, callers.get(row.id, ())) for row in rows]


def retire_quiet(rt: Runtime) -> int:
    """Write down the end of each secret that was to end once it is quiet, and is; tell of how many. A background job."""
    waiting = select(ClientSecret).where(ClientSecret.retire_after_quiet.is_not(None))
    retired = 0
    with rt.unit(Origin.background()) as unit:
        for row in unit.execute(waiting.where(_lives(unit.now))).scalars().all():
            end = _end(row.expires_at, row.retire_after_quiet, row.quiet_from, row.last_used_at)
            # A use that another process wrote down meanwhile keeps it alive.
            unchanged = ClientSecret.last_used_at.is_not_distinct_from(row.last_used_at)
            if end is None or unit.now < end:
                continue
            if unit.changed(update(ClientSecret).where(ClientSecret.id == row.id, unchanged).values(expires_at=end)):
                retired += 1
                audit.record(
                    rt,
                    unit,
                    Action.SECRET_RETIRED,
                    actor="background",
                    target=row.client_id,
                    tenant=_tenant_of(unit, row.client_id),
                    secret=row.id,
                )
    return retired


def purge(rt: Runtime, unit: Unit) -> int:
    """Forget secrets that have ended, once the last token that they can have earned is dead; for the janitor."""
    longest = max(LONGEST_TOKEN_SECONDS, rt.settings.application_token_seconds) + SKEW_SECONDS
    gone = delete_batch(unit, ClientSecret, ClientSecret.expires_at < later(unit.now, -longest))
    return gone + usage.purge(unit)


def name_of(client_id: str) -> str:
    """Under which name a machine is counted: every spelling of a client id is one machine."""
    return canonical_id(client_id) or client_id


def _make_room(rt: Runtime, unit: Unit, client_id: str, *, actor: str, force: bool) -> list[ClientSecret]:
    """The live secrets of an application, oldest first, locked; one fewer than it may have. See `add_secret`."""
    get_row(unit.session, client_id, for_update=True)
    rows = unit.execute(
        select(ClientSecret)
        .where(ClientSecret.client_id == client_id, _lives(unit.now))
        .order_by(ClientSecret.created_at, ClientSecret.id)
        .with_for_update()
    ).scalars()
    living = [row for row in rows if not _has_ended(row, unit.now)]
    if len(living) < MAX_LIVE_SECRETS:
        return living
    if not force:
        raise Refused(_third(living[0]), detail="two secrets live", evidence={"seen": [row.id for row in living]})
    longest_ago = min(living, key=lambda row: (row.last_used_at is not None, row.last_used_at or row.created_at))
    longest_ago.expires_at = unit.now
    audit.record(
        rt,
        unit,
        Action.SECRET_RETIRED,
        actor=actor,
        target=client_id,
        tenant=_tenant_of(unit, client_id),
        secret=longest_ago.id,
        reason="a third was made",
    )
    return [row for row in living if row is not longest_ago]


def _add(
    rt: Runtime, unit: Unit, client_id: str, living: Sequence[ClientSecret], *, actor: str, expires_in: int | None
) -> MadeSecret:
    unit.session.flush()
    secret = opaque.mint(Kind.CLIENT_SECRET, rt.entropy)
    row = ClientSecret(
        id=rt.entropy.bytes(6).hex(),
        client_id=client_id,
        fingerprint=_fingerprint(rt, secret.reveal(), decoy=get_row(unit.session, client_id).decoy),
        created_at=unit.now,
        expires_at=None if expires_in is None else later(unit.now, expires_in),
        place=status.take(rt, unit),
    )
    unit.add(row)
    audit.record(
        rt,
        unit,
        Action.SECRET_CREATED,
        actor=actor,
        target=client_id,
        tenant=_tenant_of(unit, client_id),
        secret=row.id,
    )
    return MadeSecret(_secret_info(row), secret, _secret_info(living[-1]) if living else None)


def _fingerprint(rt: Runtime, secret: str, *, decoy: bool = False) -> bytes:
    """The keyed hash that is kept of a secret; that of a decoy's is of another kind, and equals nothing that is presented."""
    return opaque.fingerprint(rt.ring.vault.derive("decoys" if decoy else "client secrets"), secret)


def _tenant_of(unit: Unit, client_id: str) -> str | None:
    """Whose affair the secrets of an application are, for the audit."""
    tenant: str | None = unit.execute(
        select(Application.tenant_id).where(Application.id == client_id)
    ).scalar_one_or_none()
    return tenant


def _lives(now: datetime) -> ColumnElement[bool]:
    return or_(ClientSecret.expires_at.is_(None), ClientSecret.expires_at > now)


def _has_ended(row: ClientSecret, now: datetime) -> bool:
    end = _end(row.expires_at, row.retire_after_quiet, row.quiet_from, row.last_used_at)
    return end is not None and end <= now


def _end(
    expires_at: datetime | None, quiet_seconds: int | None, quiet_from: datetime | None, last_used_at: datetime | None
) -> datetime | None:
    """When a secret stops to prove its application, if nobody uses it before that."""
    if quiet_seconds is None or quiet_from is None:
        return expires_at
    silent_since = quiet_from if last_used_at is None else max(quiet_from, last_used_at)
    # A use that is known to some process only must not come too late.
    quiet_end = later(silent_since, quiet_seconds + usage.NOTED_WITHIN_SECONDS)
    return quiet_end if expires_at is None else min(expires_at, quiet_end)


def _third(older: ClientSecret) -> Problem:
    return CONFLICT.saying(
        f"Two secrets live already; the older, {older.id}, {_last_use(older)}. Force ends the one used longest ago"
    )


def _in_use(row: ClientSecret) -> Problem:
    return CONFLICT.saying(f"The secret {row.id} {_last_use(row)}. Force ends it and all that it earned")


def _last_use(row: ClientSecret) -> str:
    """For the eyes of administrators: a time, and an address in its canonical form."""
    if row.last_used_at is None:
        return "was never used"
    return f"was last used {row.last_used_at:%Y-%m-%dT%H:%M:%SZ} from {row.last_used_address}"


def _secret_info(row: ClientSecret, callers: tuple[str, ...] = ()) -> SecretInfo:
    return SecretInfo(
        row.id,
        row.created_at,
        row.expires_at,
        row.last_used_at,
        row.last_used_address,
        row.retire_after_quiet,
        callers,
    )


KEEPING: Final = Keeping((ClientSecret, CredentialCaller), purge=purge)
