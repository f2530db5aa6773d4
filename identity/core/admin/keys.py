"""What administrators do with signing keys and master keys."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, select

from identity.columns import Instant
from identity.core.admin.by import By
from identity.core.keeping import keepings
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.instruments.keyring import KeyInfo, SigningKey
from identity.runtime import Runtime
from identity.storage import Database, Prepared


class _ActiveRow(NamedTuple):
    signs_from: datetime | None


_ACTIVE: Final = Prepared(
    select(func.max(SigningKey.signs_from)).where(SigningKey.signs_from <= bindparam("now", type_=Instant)),
    into=_ActiveRow,
)


def active_age_seconds(database: Database, now: datetime) -> float:
    """How long the key that signs now has done so; for metrics, which have no master key."""
    row = database.row(_ACTIVE, now=now)
    since = row.signs_from if row else None
    return max(0.0, (now - since).total_seconds()) if since else 0.0


def rotate_key(rt: Runtime, by: By) -> KeyInfo:
    """Have the standby key sign as soon as verifiers can know it; publishes one first where none waits."""
    rt.ring.ensure_standby()
    with by.unit(rt) as unit:
        kid = rt.ring.rotate(unit)
        audit.record(rt, unit, Action.KEY_ROTATED, actor=by.actor, target=kid)
    return next(key for key in rt.ring.list() if key.kid == kid)


def revoke_key(rt: Runtime, by: By, kid: str) -> None:
    """Withdraw a signing key at once: everything that it signed is refused from now on."""
    with by.unit(rt) as unit:
        rt.ring.revoke(unit, kid)
        audit.record(rt, unit, Action.KEY_REVOKED, actor=by.actor, target=kid)


def import_key(rt: Runtime, by: By, pem: bytes) -> KeyInfo:
    """Take a private RSA key as the one that signs next."""
    with by.unit(rt) as unit:
        imported = rt.ring.import_pem(unit, pem)
        audit.record(rt, unit, Action.KEY_IMPORTED, actor=by.actor, target=imported.kid)
    return imported


def reseal(rt: Runtime, by: By) -> int:
    """Seal everything anew under the newest master key, so that the older ones can go; tell how many rows changed."""
    with by.unit(rt) as unit:
        changed = rt.ring.reseal(unit)
        changed += sum(keeping.reseal(rt, unit) for keeping in keepings().values() if keeping.reseal is not None)
        audit.record(rt, unit, Action.MASTER_KEY_CHANGED, actor=by.actor, rows=changed)
    return changed
