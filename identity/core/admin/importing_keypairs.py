"""Key pairs of an older system, by the thousand, so that nobody has to change keys on the day of the move.

As with people (`importing`), a run that died is simply run again: a pair that is there already stays as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import or_, select

from identity.ambient import later
from identity.canonical import canonical_address, canonical_alias, canonical_id
from identity.columns import from_micros
from identity.core.admin.by import By
from identity.core.admin.importing import Outcome, Taken, in_batches
from identity.core.clients import imported_pairs
from identity.core.clients.imported_pairs import Imported
from identity.core.clients.keypairs import MAX_DAYS
from identity.core.people.accounts import Email, User
from identity.core.people.rights import Rights
from identity.errors import VALIDATION, Refused
from identity.runtime import Runtime
from identity.storage import Unit

FIELDS: Final = ("user", "apiKey", "apiSecret", "secretHash", "name", "expireAt", "cidrs", "roles", "tenants")
_TEXTS: Final = ("user", "apiKey", "apiSecret", "secretHash", "name")
_LISTS: Final = ("cidrs", "roles", "tenants")
_MOST_NAMES: Final = 100
_NO_PREFIX: Final = VALIDATION.saying(
    "Name the prefix that all keys share; or say that they share none: each made-up key of their length then costs a read"
)


def take(
    rt: Runtime,
    by: By,
    rows: Sequence[Mapping[str, Any]],
    *,
    prefix: str | None,
    days: int = MAX_DAYS,
    dry_run: bool = False,
) -> list[Taken]:
    """Make a key pair for each row, in order; tell what became of each. `days`: how long those live that name no `expireAt`.

    `prefix`: what every key begins with; empty where they share nothing, None where nobody said. Raises Refused(VALIDATION) for that.
    """
    if prefix is None:
        raise Refused(_NO_PREFIX, field="prefix")
    if not 1 <= days <= MAX_DAYS:
        raise Refused(VALIDATION.saying(f"A key lives from 1 to {MAX_DAYS} days"), field="days")
    named = prefix

    def take_row(unit: Unit, row: Mapping[str, Any]) -> Taken:
        pair = _checked(row, now=unit.now, days=days)
        owner = _owner(unit, row["user"])
        by.require_other(owner.id)
        made = imported_pairs.take(rt, unit, owner, pair, prefix=named, actor=by.actor)
        return Taken(Outcome.CREATED if made else Outcome.UNCHANGED)

    return in_batches(rt, by, rows, take_row, dry_run=dry_run, in_use="That key is in use")


def _checked(row: Mapping[str, Any], *, now: datetime, days: int) -> Imported:
    """The row in its one spelling. Raises Refused(VALIDATION)."""
    if any(name not in FIELDS for name in row):
        raise Refused(VALIDATION.saying("The row has a field that an import does not know"))
    odd = next((name for name in _TEXTS if row.get(name) is not None and not isinstance(row[name], str)), None)
    if odd is not None:
        raise Refused(VALIDATION.saying(f"{odd} must be text"), field=odd)
    missing = next((name for name in ("user", "apiKey") if not row.get(name)), None)
    if missing is not None:
        raise Refused(VALIDATION.saying(f"Missing {missing}"), field=missing)
    lists = {name: _names(row.get(name), name) for name in _LISTS}
    digest, secret_hash = imported_pairs.read_secret(plain=row.get("apiSecret"), hashed=row.get("secretHash"))
    return Imported(
        api_key=row["apiKey"],
        digest=digest,
        secret_hash=secret_hash,
        name=row.get("name") or "imported",
        expires_at=_end(row.get("expireAt"), now=now, days=days),
        cidrs=lists["cidrs"] or (),
        rights=Rights(lists["roles"], lists["tenants"]),
    )


def _names(value: Any, field: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or len(value) > _MOST_NAMES:
        raise Refused(VALIDATION.saying(f"{field} is a list of at most {_MOST_NAMES} texts"), field=field)
    return tuple(value)


def _end(value: Any, *, now: datetime, days: int) -> datetime:
    if value is None:
        return later(now, days * 86_400)
    latest = later(now, MAX_DAYS * 86_400)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or not now.timestamp() < value <= latest.timestamp():
        message = f"expireAt is a time to come, in seconds since 1970, at most {MAX_DAYS} days from now"
        raise Refused(VALIDATION.saying(message), field="expireAt")
    return from_micros(value * 1_000_000)


def _owner(unit: Unit, name: str) -> User:
    """Who is meant: by id, the other system's id, alias or proven address. Raises Refused(VALIDATION)."""
    address = canonical_address(name)
    by_address = select(Email.user_id).where(Email.address == address, Email.verified)
    meant = or_(
        User.id == canonical_id(name),
        User.external_id == name,
        User.alias == canonical_alias(name),
        User.id.in_(by_address if address else ()),
    )
    found = unit.execute(select(User).where(meant).limit(2)).scalars().all()
    if len(found) != 1:
        message = "Several users have that name: give an id" if found else "There is no such user"
        raise Refused(VALIDATION.saying(message), field="user")
    owner: User = found[0]
    return owner
