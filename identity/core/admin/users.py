"""What administrators do, written once for group H and the command line, so that what either makes cannot be told apart.

Each function is a whole use case: it opens its unit, checks the rules that bind administrators too (the last of them stays, nobody
gets what an administrator may not give), and leaves an audit event that names who did it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.exc import IntegrityError

from identity import paging
from identity.canonical import canonical_address, canonical_id, get_address, get_alias, get_names, is_name
from identity.core.admin import erasure
from identity.core.admin import roles as named
from identity.core.admin.by import By
from identity.core.admin.portal import check_portal
from identity.core.admin.tenants import put_member
from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyPairInfo
from identity.core.people import accounts, addresses, attributes, invitations
from identity.core.people.accounts import ADMIN_ROLE, AccessWindow, Email, User, UserInfo, clean_name
from identity.core.people.addresses import EmailInfo
from identity.core.people.tenancy import Membership
from identity.core.proofs import codes
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import factors
from identity.core.tokens import sessions, status
from identity.core.versions import check as check_version
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Refused
from identity.instruments.hashing import is_password_hash
from identity.instruments.opaque import Secret
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Unit, is_violation

FIRST_KEY_NAME: Final = "first"
FIRST_KEY_DAYS: Final = 365


@dataclass(frozen=True, slots=True)
class UserDetail:
    """A user with what hangs on them."""

    info: UserInfo
    emails: tuple[EmailInfo, ...]
    tenants: Mapping[str, tuple[str, ...]]
    has_totp: bool
    has_fixed_otp: bool
    attributes: Mapping[str, Any]
    last_login_at: datetime | None = None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class CreatedUser:
    """A new user, and their first key pair where they were not invited by mail; its secret exists only here."""

    user_id: str
    email: str
    key: KeyPairInfo | None
    secret: Secret | None


def create_user(
    rt: Runtime,
    by: By,
    *,
    email: str,
    full_name: str,
    alias: str,
    roles: Sequence[str] = (),
    groups: Sequence[str] = (),
    tenants: Mapping[str, Sequence[str]] | None = None,
    password: str | None = None,
    password_hash: str | None = None,
    notify: bool = False,
    portal_url: str | None = None,
    new_role: bool = False,
) -> CreatedUser:
    """Make a user whose address the administrator vouches for, with a verified key pair; or, with `notify`, with an invitation by mail.

    `password_hash` is what an older system kept of the password, which so moves here without its user's doing.
    `new_role`: see `roles.check`.
    Raises Refused(VALIDATION), Refused(CONFLICT) for an alias or address in use, Refused(NOT_FOUND) for an unknown tenant.
    """
    address = get_address(email)
    if portal_url is not None:
        check_portal(rt, portal_url)
        if not notify:
            raise Refused(VALIDATION.saying("A portalURL goes into an invitation: set notify"), field="portalURL")
    hashed = _hash_of(rt, password, password_hash, about=(alias, address.partition("@")[0], full_name))
    with by.unit(rt) as unit:
        named.check(unit, roles, insists=new_role)
        user_id = accounts.create(
            rt,
            unit,
            email=address,
            full_name=full_name,
            alias=alias,
            roles=roles,
            groups=groups,
            password_hash=hashed,
            verified=True,
            actor=by.actor,
        )
        for tenant, held in sorted((tenants or {}).items()):
            named.check(unit, held, insists=new_role, field="tenants")
            put_member(rt, unit, tenant, user_id, roles=held, actor=by.actor)
        if notify:
            invitations.issue(rt, unit, address=address, actor=by.actor, user_id=user_id, portal_url=portal_url)
            return CreatedUser(user_id, address, None, None)
        key, secret = keypairs.create(
            rt, unit, user_id, name=FIRST_KEY_NAME, days=FIRST_KEY_DAYS, actor=by.actor, verified=True
        )
    return CreatedUser(user_id, address, key, secret)


def _hash_of(rt: Runtime, password: str | None, moved: str | None, *, about: Sequence[str]) -> str | None:
    """The hash to store: of a password, or one that moves here; None for neither. Raises Refused(VALIDATION)."""
    if moved is not None and (password is not None or not is_password_hash(moved)):
        raise Refused(VALIDATION.saying("Give a password, or one hash of it of a kind that is known"), field="password")
    if password is None:
        return moved
    rt.passwords.check_policy(password, about=tuple(about))
    with rt.passwords.turn():
        return rt.passwords.hash(password)


def find_user(rt: Runtime, identifier: str) -> UserInfo:
    """The user with this id, verified address or alias; for people who type. Raises Refused(NOT_FOUND)."""
    canonical = canonical_id(identifier)
    found = accounts.find(rt, canonical) if canonical else accounts.find_by_identifier(rt, identifier)
    if found is None and (address := canonical_address(identifier)):
        found = accounts.find_by_address(rt, address)
    if found is None:
        raise Refused(NOT_FOUND, detail="no such user")
    return found


def describe_user(rt: Runtime, user_id: str) -> UserDetail:
    """A user with addresses and memberships. Raises Refused(NOT_FOUND)."""
    return _details(rt, [accounts.get(rt, user_id)])[0]


def list_users(
    rt: Runtime,
    part: Part,
    *,
    enabled: bool | None = None,
    role: str | None = None,
    tenant: str | None = None,
    email: str | None = None,
    alias: str | None = None,
    q: str | None = None,
) -> Listed[UserDetail]:
    """Users that fit every filter, in the order in which they were made; `q` is how a name, alias, address or id begins.

    Raises Refused(VALIDATION) for an `email` or `alias` that is none: nobody has it, but that is not what was meant.
    """
    query = select(User.id)
    if enabled is not None:
        query = query.where(User.enabled if enabled else ~User.enabled)
    if role is not None:
        query = query.where(accounts.holds_role(get_names((role,), field="role")[0]))
    if tenant is not None:
        query = query.where(User.id.in_(select(Membership.user_id).where(Membership.tenant_id == tenant)))
    if email is not None:
        query = query.where(User.id.in_(select(Email.user_id).where(Email.address == get_address(email))))
    if alias is not None:
        query = query.where(User.alias == get_alias(alias))
    if q is not None:
        query = query.where(begins(rt, q))
    with rt.database.reading() as session:
        found = paging.read(session, query, User.id, part=part, make=str)
    return found.mapped(lambda ids: _details(rt, accounts.find_all(rt, ids)))


def begins(rt: Runtime, q: str) -> ColumnElement[bool]:
    """The condition that a user's name, alias, id or one of their addresses begins so."""
    is_sqlite, plain = rt.database.is_sqlite, q.lower()
    by_address = select(Email.user_id).where(paging.begins(Email.address, plain, is_sqlite=is_sqlite))
    return or_(
        paging.begins(User.alias, plain, is_sqlite=is_sqlite),
        paging.begins(User.id, plain, is_sqlite=is_sqlite),
        paging.begins_in_any_case(User.full_name, q, is_sqlite=is_sqlite),
        User.id.in_(by_address),
    )


def has_users(rt: Runtime) -> bool:
    """Whether anybody has an account yet."""
    with rt.database.reading() as session:
        return session.scalar(select(User.id).limit(1)) is not None


def change_user(
    rt: Runtime,
    by: By,
    user_id: str,
    *,
    versions: Collection[int] | None = None,
    new_role: bool = False,
    **changes: Any,
) -> UserDetail:
    """Change `full_name`, `alias`, `roles`, `groups` or `attributes`; a callable makes the new value of the present one.

    `versions` are those that the caller has seen. `new_role`: see `roles.check`. Raises Refused(NOT_FOUND), Refused(VALIDATION),
    Refused(STALE) for another version, Refused(CONFLICT) for an alias in use or the last administrator.
    """
    checks: dict[str, Callable[[Any], Any]] = {
        "full_name": clean_name,
        "alias": get_alias,
        "roles": lambda value: get_names(tuple(value), field="roles"),
        "groups": lambda value: get_names(tuple(value), field="groups"),
        "attributes": attributes.checked,
    }
    with by.unit(rt) as unit:
        row = accounts.get_row(unit.session, user_id, for_update=True)
        made = {name: value(getattr(row, name)) if callable(value) else value for name, value in changes.items()}
        values = {name: checks[name](value) for name, value in made.items()}
        named.check(unit, set(values.get("roles", ())) - set(row.roles), insists=new_role)
        # Names are personal: the record keeps that they changed, not what they were.
        kept = ("roles", "groups")
        before = {name: list(getattr(row, name)) for name in values if name in kept}
        after = {name: list(values[name]) for name in values if name in kept}
        try:
            _update_user(unit, row, versions, **values)
        except IntegrityError as exc:
            if not is_violation(exc, "uq_user_account_alias", "user_account.alias"):
                raise
            raise Refused(CONFLICT.saying("That alias is in use"), field="alias", cause=exc) from exc
        if ADMIN_ROLE in before.get("roles", ()) and ADMIN_ROLE not in after["roles"]:
            accounts.guard_last_admin(unit, user_id)
        if before != after or "attributes" in values:
            status.change_subjects(rt, unit, User.id == user_id)
        audit.record(
            rt,
            unit,
            Action.USER_CHANGED,
            actor=by.actor,
            target=user_id,
            before=before,
            after=after,
            changed=sorted(values),
        )
    return describe_user(rt, user_id)


def grant_role(rt: Runtime, by: By, user_id: str, role: str, *, new_role: bool = False) -> UserDetail:
    """Give a user a global role; giving it twice is the same. `new_role`: see `roles.check`."""
    if not is_name(role):
        raise Refused(VALIDATION.saying("A role needs 1 to 64 of a-z, 0-9 and ._:-"), field="role")
    return change_user(rt, by, user_id, new_role=new_role, roles=lambda held: {*held, role})


def withdraw_role(rt: Runtime, by: By, user_id: str, role: str) -> UserDetail:
    """Take a global role from a user. Raises Refused(NOT_FOUND) where they do not hold it."""

    def without(held: Collection[str]) -> Collection[str]:
        if role not in held:
            raise Refused(NOT_FOUND, detail="the user does not hold that role")
        return {*held} - {role}

    return change_user(rt, by, user_id, roles=without)


def set_enabled(rt: Runtime, by: By, user_id: str, *, enabled: bool) -> None:
    """Let a user in, or put them out: disabling ends every session at once, and enabling revives none."""
    with by.unit(rt) as unit:
        set_enabled_within(rt, unit, by, user_id, enabled=enabled)


def set_enabled_within(rt: Runtime, unit: Unit, by: By, user_id: str, *, enabled: bool) -> None:
    """`set_enabled` as a part of the caller's unit."""
    row = accounts.get_row(unit.session, user_id, for_update=True)
    before, was_admin = row.enabled, ADMIN_ROLE in row.roles
    _update_user(unit, row, None, enabled=enabled)
    if not enabled:
        if was_admin and before:
            accounts.guard_last_admin(unit, user_id)
        sessions.revoke_all(rt, unit, user_id, actor=by.actor, reason="user disabled")
    action = Action.USER_ENABLED if enabled else Action.USER_DISABLED
    told = ({"enabled": before}, {"enabled": enabled})
    audit.record(rt, unit, action, actor=by.actor, target=user_id, before=told[0], after=told[1])


def set_verified(rt: Runtime, by: By, user_id: str, *, verified: bool) -> None:
    """Vouch for a user's preferred address, or have them prove it again, which ends their sessions.

    Raises Refused(CONFLICT) for an address that another user has verified.
    """
    with by.unit(rt) as unit:
        row = accounts.get_row(unit.session, user_id, for_update=True)
        before = row.verified
        wanted = select(Email.address).where(Email.user_id == row.id, Email.preferred)
        address = unit.execute(wanted).scalar_one_or_none()
        if verified and address:
            addresses.mark_proven(rt, unit, row.id, address, actor=by.actor)
        elif before != verified:
            _update_user(unit, row, None, verified=verified)
        if not verified:
            unit.execute(update(Email).where(Email.user_id == row.id, Email.preferred).values(verified=False))
            sessions.revoke_all(rt, unit, row.id, actor=by.actor, reason="user unverified")
            if address:
                codes.cancel_mailed(unit, row.id, address)  # Whoever reads that mailbox may not be this user.
        told = ({"verified": before}, {"verified": verified})
        audit.record(rt, unit, Action.USER_CHANGED, actor=by.actor, target=row.id, before=told[0], after=told[1])


def set_access_window(rt: Runtime, by: By, user_id: str, **bounds: datetime | None) -> UserDetail:
    """Set when a user may come in: `starts_at` and `ends_at`, of which an absent one stays and None is no bound.

    Who is outside, before or after the change, loses every session: a window that opens again revives nothing.
    """
    with by.unit(rt) as unit:
        row = accounts.get_row(unit.session, user_id, for_update=True)
        before = {"starts_at": row.starts_at, "ends_at": row.ends_at}
        after = before | bounds
        if after["starts_at"] and after["ends_at"] and after["starts_at"] >= after["ends_at"]:
            raise Refused(VALIDATION.saying("The access window ends before it starts"), field="endsAt")
        was_admin = ADMIN_ROLE in row.roles and row.enabled
        _update_user(unit, row, None, **after)
        if not (_is_inside(before, unit.now) and _is_inside(after, unit.now)):
            if was_admin and not _is_inside(after, unit.now):
                accounts.guard_last_admin(unit, user_id)
            sessions.revoke_all(rt, unit, user_id, actor=by.actor, reason="access window")
        elif _is_earlier(after["ends_at"], before["ends_at"]):
            # Good until then; but tokens that live on after it are out, and only those who ask would know.
            status.change_subjects(rt, unit, User.id == user_id)
        audit.record(rt, unit, Action.USER_CHANGED, actor=by.actor, target=user_id, before=before, after=after)
    return describe_user(rt, user_id)


def erase_user(rt: Runtime, by: By, user_id: str) -> None:
    """Delete a user and everything that names them; the audit keeps only the id. The last administrator stays (CONFLICT)."""
    with by.unit(rt) as unit:
        erasure.erase(rt, unit, user_id, actor=by.actor)


def _update_user(unit: Unit, row: User, versions: Collection[int] | None, **values: Any) -> None:
    """Change a user's locked row. Raises Refused(STALE) for who has seen another version."""
    check_version(row.version, versions)
    unit.changed(update(User).where(User.id == row.id).values(**values, version=User.version + 1))


def _is_inside(window: Mapping[str, datetime | None], now: datetime) -> bool:
    return AccessWindow(window["starts_at"], window["ends_at"]).is_open(now)


def _is_earlier(end: datetime | None, than: datetime | None) -> bool:
    return end is not None and (than is None or end < than)


def _details(rt: Runtime, users: Sequence[UserInfo]) -> list[UserDetail]:
    """The users with what hangs on them, read a page at a time."""
    ids = [user.id for user in users]
    addresses: dict[str, list[EmailInfo]] = {}
    tenants: dict[str, dict[str, tuple[str, ...]]] = {}
    with rt.database.reading() as session:
        for row in session.scalars(select(Email).where(Email.user_id.in_(ids)).order_by(Email.created_at, Email.id)):
            info = EmailInfo(row.id, row.user_id, row.address, row.verified, row.preferred)
            addresses.setdefault(row.user_id, []).append(info)
        rows = session.execute(select(User.id, User.attributes).where(User.id.in_(ids)))
        noted: dict[str, str] = {row.id: row.attributes for row in rows}
        held = select(Membership).where(Membership.user_id.in_(ids)).order_by(Membership.tenant_id)
        for belonging in session.scalars(held):
            tenants.setdefault(belonging.user_id, {})[belonging.tenant_id] = belonging.roles
        logins = audit.last_logins(session, User.id, ids)
        named_elsewhere = select(User.id, User.external_id).where(User.id.in_(ids), User.external_id.is_not(None))
        enrolled, fixed = factors.among(session, ids)
        externals = {row.id: row.external_id for row in session.execute(named_elsewhere)}
    return [
        UserDetail(
            user,
            tuple(addresses.get(user.id, ())),
            tenants.get(user.id, {}),
            user.id in enrolled,
            user.id in fixed,
            attributes.read(noted.get(user.id)),
            logins.get(user.id),
            externals.get(user.id),
        )
        for user in users
    ]
