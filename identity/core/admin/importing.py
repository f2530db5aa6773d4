"""People of an older system, by the thousand: made or brought up to date, as often as it takes.

A row is found again by its `externalID`, else by its address, so that a run that died is simply run again. Passwords move as their hashes;
one that has been replaced at a login since is never put back. Rows are taken in batches, each in a transaction of its own; a row that
cannot be taken is told with the reason, and holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from identity.canonical import get_address, get_alias, get_names
from identity.core.admin import roles as named
from identity.core.admin.by import By
from identity.core.admin.tenants import put_member
from identity.core.people import accounts, tenancy
from identity.core.people.accounts import ADMIN_ROLE, Email, User, clean_name
from identity.core.people.tenancy import OWNER_ROLE, Membership, Tenant
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import status
from identity.errors import CONFLICT, VALIDATION, Refused
from identity.instruments.hashing import is_password_hash
from identity.runtime import Runtime
from identity.storage import Unit

BATCH: Final = 200
FIELDS: Final = ("email", "alias", "fullName", "roles", "groups", "tenants", "externalID", "passwordHash")
_OURS: Final = "$argon2id"


class Outcome(StrEnum):
    """What became of a row."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one row, and why where it was rejected."""

    outcome: Outcome
    error: str = ""
    message: str = ""
    field: str | None = None


class _Rehearsed(Exception):
    """Rolls a batch back that was only tried."""


def take(
    rt: Runtime,
    by: By,
    rows: Sequence[Mapping[str, Any]],
    *,
    dry_run: bool = False,
    only_new: bool = False,
    new_role: bool = False,
) -> list[Taken]:
    """Make or update a user for each row, in order; tell what became of each. `only_new`: leave those that exist alone."""

    def take_row(unit: Unit, row: Mapping[str, Any]) -> Taken:
        wanted = _checked(row)
        found = _find(unit, wanted)
        # Before anything is written: a refusal must leave nothing of its row behind.
        _check_uses(unit, wanted, found, new_role=new_role)
        if found is None:
            return _create(rt, unit, by, wanted)
        return Taken(Outcome.UNCHANGED) if only_new else _update(rt, unit, by, found, wanted)

    return in_batches(rt, by, rows, take_row, dry_run=dry_run, in_use="That alias, address or externalID is in use")


def in_batches(
    rt: Runtime,
    by: By,
    rows: Sequence[Mapping[str, Any]],
    take_row: Callable[[Unit, Mapping[str, Any]], Taken],
    *,
    dry_run: bool,
    in_use: str,
) -> list[Taken]:
    """What became of each row, `BATCH` of them in a transaction. A row that `take_row` refuses must have written nothing.

    `in_use`: what a row is told that somebody else made at the same moment.
    """
    taken: list[Taken] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        try:
            taken += _take_batch(rt, by, batch, take_row, dry_run=dry_run)
        except IntegrityError:
            # Somebody else made one of them at this moment: one by one, it is that row's fault alone.
            for row in batch:
                try:
                    taken += _take_batch(rt, by, [row], take_row, dry_run=dry_run)
                except IntegrityError:
                    taken.append(Taken(Outcome.REJECTED, CONFLICT.code, in_use))
    return taken


def _take_batch(
    rt: Runtime,
    by: By,
    rows: Sequence[Mapping[str, Any]],
    take_row: Callable[[Unit, Mapping[str, Any]], Taken],
    *,
    dry_run: bool,
) -> list[Taken]:
    taken: list[Taken] = []
    try:
        with by.unit(rt) as unit:
            for row in rows:
                try:
                    taken.append(take_row(unit, row))
                except Refused as refused:
                    if isinstance(refused.__cause__, IntegrityError):
                        raise refused.__cause__ from None  # The database has undone the batch: see `in_batches`.
                    taken.append(Taken(Outcome.REJECTED, refused.problem.code, refused.problem.message, refused.field))
            _stop_if(dry_run)
    except _Rehearsed:
        return taken
    return taken


def _stop_if(rehearses: bool) -> None:
    if rehearses:
        raise _Rehearsed


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in its one spelling. Raises Refused(VALIDATION)."""
    unknown = next((name for name in row if name not in FIELDS), None)
    if unknown is not None:
        raise Refused(VALIDATION.saying("The row has a field that an import does not know"))
    texts = {name: row.get(name) for name in ("email", "alias", "fullName", "externalID", "passwordHash")}
    odd = next((name for name, value in texts.items() if value is not None and not isinstance(value, str)), None)
    if odd is not None:
        raise Refused(VALIDATION.saying(f"{odd} must be text"), field=odd)
    missing = next((name for name in ("email", "alias", "fullName") if not texts[name]), None)
    if missing is not None:
        raise Refused(VALIDATION.saying(f"Missing {missing}"), field=missing)
    wanted: dict[str, Any] = {
        "email": get_address(texts["email"] or ""),
        "alias": get_alias(texts["alias"] or ""),
        "full_name": clean_name(texts["fullName"] or ""),
        "external_id": _external(texts["externalID"]),
        "password_hash": texts["passwordHash"] or None,
    }
    if wanted["password_hash"] is not None and not is_password_hash(wanted["password_hash"]):
        raise Refused(
            VALIDATION.saying("The password hash is broken, too costly, or of a kind that is not known"),
            field="passwordHash",
        )
    for name in ("roles", "groups"):
        if row.get(name) is not None:
            wanted[name] = get_names(_names(row[name], name), field=name)
    tenants = row.get("tenants")
    if tenants is not None and not isinstance(tenants, Mapping):
        raise Refused(VALIDATION.saying('tenants is like {"acme": ["lead"]}'), field="tenants")
    wanted["tenants"] = {
        tenant: get_names(_names(held, "tenants"), field="tenants") for tenant, held in (tenants or {}).items()
    }
    return wanted


def _external(text: str | None) -> str | None:
    if text and (len(text) > 200 or not text.isprintable()):
        raise Refused(VALIDATION.saying("An externalID has at most 200 printable characters"), field="externalID")
    return text or None


def _names(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value) or len(value) > 100:
        raise Refused(VALIDATION.saying("Roles and groups are lists of at most 100 names"), field=field)
    return tuple(value)


def _find(unit: Unit, wanted: Mapping[str, Any]) -> User | None:
    """Who the row is about, if they are here: by the other system's name for them, else by their proven address."""
    if wanted["external_id"] is not None:
        by_id = select(User).where(User.external_id == wanted["external_id"])
        found: User | None = unit.execute(by_id).scalar_one_or_none()
        if found is not None:
            return found
    by_address = (
        select(User).join(Email, Email.user_id == User.id).where(Email.address == wanted["email"], Email.verified)
    )
    owner: User | None = unit.execute(by_address).scalar_one_or_none()
    if owner is not None and owner.external_id not in (None, wanted["external_id"]) and wanted["external_id"]:
        raise Refused(CONFLICT.saying("Another externalID has that address"), field="externalID")
    return owner


def _check_uses(unit: Unit, wanted: Mapping[str, Any], found: User | None, *, new_role: bool) -> None:
    """Refuse what would break a rule or a uniqueness."""
    holder = unit.execute(select(User.id).where(User.alias == wanted["alias"])).scalar_one_or_none()
    if holder is not None and (found is None or holder != found.id):
        raise Refused(CONFLICT.saying("That alias is in use"), field="alias")
    if found is not None:
        theirs = select(Email.id).where(Email.user_id == found.id, Email.address == wanted["email"], Email.verified)
        if unit.execute(theirs).first() is None:
            raise Refused(
                CONFLICT.saying("That user has another address; an import does not change addresses"), field="email"
            )
    named.check(unit, set(wanted.get("roles", ())) - set(found.roles if found else ()), insists=new_role)
    for tenant, held in wanted["tenants"].items():
        named.check(unit, held, insists=new_role, field="tenants")
        if ADMIN_ROLE in held:
            raise Refused(VALIDATION.saying("A membership cannot hold the role users_admin"), field="tenants")
        if not _has_tenant(unit, tenant):
            raise Refused(VALIDATION.saying("There is no such tenant"), field="tenants")


def _has_tenant(unit: Unit, tenant_id: str) -> bool:
    return unit.execute(select(Tenant.id).where(Tenant.id == tenant_id)).first() is not None


def _create(rt: Runtime, unit: Unit, by: By, wanted: Mapping[str, Any]) -> Taken:
    user_id = accounts.create(
        rt,
        unit,
        email=wanted["email"],
        full_name=wanted["full_name"],
        alias=wanted["alias"],
        roles=wanted.get("roles", ()),
        groups=wanted.get("groups", ()),
        password_hash=wanted["password_hash"],
        external_id=wanted["external_id"],
        verified=True,
        actor=by.actor,
    )
    for tenant, held in sorted(wanted["tenants"].items()):
        put_member(rt, unit, tenant, user_id, roles=held, actor=by.actor)
    return Taken(Outcome.CREATED)


def _update(rt: Runtime, unit: Unit, by: By, row: User, wanted: Mapping[str, Any]) -> Taken:
    by.require_other(row.id)
    names = [name for name in ("alias", "full_name", "roles", "groups", "external_id") if wanted.get(name) is not None]
    changes = {name: wanted[name] for name in names if getattr(row, name) != wanted[name]}
    stored, moved = row.password_hash, wanted["password_hash"]
    # What a login has made anew since, or its owner has chosen, is newer than what the old system knew.
    if moved is not None and moved != stored and (stored is None or not stored.startswith(_OURS)):
        changes["password_hash"] = moved
    held = {
        one.tenant_id: one.roles
        for one in unit.execute(select(Membership).where(Membership.user_id == row.id)).scalars()
    }
    belongs = {tenant: roles for tenant, roles in wanted["tenants"].items() if held.get(tenant) != roles}
    if not changes and not belongs:
        return Taken(Outcome.UNCHANGED)
    if ADMIN_ROLE in row.roles and ADMIN_ROLE not in changes.get("roles", row.roles):
        raise Refused(CONFLICT.saying("An import does not demote an administrator"), field="roles")
    if belongs:
        for tenant in tenancy.lock_owned(unit, row.id):
            if OWNER_ROLE not in belongs.get(tenant, (OWNER_ROLE,)):
                tenancy.guard_last_owner(unit, tenant, leaving=row.id)
    for name, value in changes.items():
        setattr(row, name, value)
    row.version += 1
    unit.session.flush()
    for tenant, roles in sorted(belongs.items()):
        put_member(rt, unit, tenant, row.id, roles=roles, actor=by.actor)
    if changes.keys() & {"roles", "groups"}:
        status.change_subjects(rt, unit, User.id == row.id)
    if changes:
        audit.record(
            rt, unit, Action.USER_CHANGED, actor=by.actor, target=row.id, changed=sorted(changes), imported=True
        )
    return Taken(Outcome.UPDATED)
