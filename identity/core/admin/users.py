"""What administrators do, written once for group H and the command line, so that what either makes cannot be told apart.

Each function is a whole use case: it opens its unit, checks the rules that bind administrators too (the last of them stays, nobody
gets what an administrator may not give), and leaves an audit event that names who did it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.exc import IntegrityError

from identity.ambient import Origin
from identity.canonical import canonical_address, canonical_id, get_address, get_alias, get_names, is_name
from identity.core.clients import applications, keypairs
from identity.core.clients.applications import ADMIN_SCOPE, ApplicationInfo, SecretInfo
from identity.core.clients.keypairs import KeyPairInfo
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts, addresses, tenancy
from identity.core.people.accounts import ADMIN_ROLE, Email, User, UserInfo, clean_name
from identity.core.people.addresses import EmailInfo
from identity.core.people.tenancy import Membership, TenantInfo
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import factors, sign_up
from identity.core.tokens import sessions
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Refused
from identity.instruments.hashing import is_password_hash
from identity.instruments.keyring import KeyInfo
from identity.instruments.opaque import Secret
from identity.runtime import Runtime
from identity.storage import Unit, is_violation

FIRST_KEY_NAME: Final = "first"
FIRST_KEY_DAYS: Final = 365
_STALE: Final = CONFLICT.saying("It has changed in between; read it again")


@dataclass(frozen=True, slots=True)
class By:
    """Who administers, and from where."""

    actor: str
    origin: Origin

    @classmethod
    def command_line(cls) -> By:
        return cls("command line", Origin.command_line())


@dataclass(frozen=True, slots=True)
class UserDetail:
    """A user with what hangs on them."""

    info: UserInfo
    emails: tuple[EmailInfo, ...]
    tenants: Mapping[str, tuple[str, ...]]
    has_totp: bool
    has_fixed_otp: bool


@dataclass(frozen=True, slots=True)
class CreatedUser:
    """A new user, and their first key pair where they were not invited by mail; its secret exists only here."""

    user_id: str
    email: str
    key: KeyPairInfo | None
    secret: Secret | None


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a tenant."""

    user_id: str
    alias: str
    roles: tuple[str, ...]


# Users.


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
) -> CreatedUser:
    """Make a user whose address the administrator vouches for, with a verified key pair; or, with `notify`, with an invitation by mail.

    `password_hash` is what an older system kept of the password, which so moves here without its user's doing.
    Raises Refused(VALIDATION), Refused(CONFLICT) for an alias or address in use, Refused(NOT_FOUND) for an unknown tenant.
    """
    address = get_address(email)
    if portal_url is not None:
        check_portal(rt, portal_url)
        if not notify:
            raise Refused(VALIDATION.saying("A portalURL goes into an invitation: set notify"), field="portalURL")
    if password_hash is not None and (password is not None or not is_password_hash(password_hash)):
        raise Refused(VALIDATION.saying("Give a password, or one bcrypt or Argon2id hash of it"), field="password")
    hashed = password_hash
    if password is not None:
        rt.passwords.check_policy(password, about=(alias, address.partition("@")[0], full_name))
        with rt.passwords.turn():
            hashed = rt.passwords.hash(password)
    with rt.unit(by.origin) as unit:
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
            _set_member(rt, unit, tenant, user_id, roles=held, actor=by.actor)
        if notify:
            values = {"account": get_alias(alias), "by": "an administrator"}
            outbox.queue(
                rt, unit, Template.INVITATION, to=address, values=values | ({"url": portal_url} if portal_url else {})
            )
            return CreatedUser(user_id, address, None, None)
        key, secret = keypairs.create(
            rt, unit, user_id, name=FIRST_KEY_NAME, days=FIRST_KEY_DAYS, actor=by.actor, verified=True
        )
    return CreatedUser(user_id, address, key, secret)


def check_portal(rt: Runtime, url: str) -> None:
    """Refuse (VALIDATION) a link that an invitation must not carry: it has to lie under one of `IDENTITY_PORTAL_URLS`.

    Origins are compared as a whole and paths by segment: `https://portal.example.evil` does not lie under `https://portal.example`,
    nor `/appendix` under `/app`.
    """
    parts = _parts(url)
    if parts is None:
        raise Refused(
            VALIDATION.saying("A portalURL is an absolute http or https URL without user information"),
            field="portalURL",
        )
    for allowed in map(_parts, rt.settings.portal_urls):
        if allowed is None or allowed[:3] != parts[:3]:
            continue
        prefix = allowed[3].rstrip("/")
        if parts[3] == prefix or parts[3].startswith(f"{prefix}/"):
            return
    raise Refused(VALIDATION.saying("That portalURL is not on the list of allowed ones"), field="portalURL")


def _parts(url: str) -> tuple[str, str, int, str] | None:
    """Scheme, host, port and path of a URL that every program reads alike; None for any other."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or "@" in url or len(url) > 1000:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "%" in parts.netloc:
        return None
    # A path that climbs would leave its prefix in the reader's browser; so would one that hides its dots.
    plain = parts.path.lower().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/")
    if any(segment in (".", "..") for segment in plain.split("/")):
        return None
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/") if parts.path == "/" else parts.path


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
    *,
    limit: int,
    offset: int,
    enabled: bool | None = None,
    role: str | None = None,
    tenant: str | None = None,
    email: str | None = None,
) -> tuple[int, list[UserDetail]]:
    """How many users fit, and a page of them in the order in which they were made."""
    conditions: list[ColumnElement[bool]] = []
    if enabled is not None:
        conditions.append(User.enabled.is_(enabled))
    if role is not None:
        conditions.append(accounts.holds_role(role))
    if tenant is not None:
        conditions.append(User.id.in_(select(Membership.user_id).where(Membership.tenant_id == tenant)))
    if email is not None:
        address = canonical_address(email) or ""
        conditions.append(User.id.in_(select(Email.user_id).where(Email.address == address)))
    with rt.database.reading() as session:
        total = session.scalar(select(func.count()).select_from(User).where(*conditions)) or 0
        ids = session.scalars(select(User.id).where(*conditions).order_by(User.id).limit(limit).offset(offset)).all()
    found = [accounts.find(rt, one) for one in ids]
    return total, _details(rt, [one for one in found if one])


def has_users(rt: Runtime) -> bool:
    """Whether anybody has an account yet."""
    with rt.database.reading() as session:
        return session.scalar(select(User.id).limit(1)) is not None


def change_user(rt: Runtime, by: By, user_id: str, *, version: int | None = None, **changes: Any) -> UserDetail:
    """Change `full_name`, `alias`, `roles` or `groups`; `version` guards against a change in between.

    Raises Refused(NOT_FOUND), Refused(VALIDATION), Refused(CONFLICT) for a stale version, an alias in use, or the last administrator.
    """
    checks: dict[str, Callable[[Any], Any]] = {
        "full_name": clean_name,
        "alias": get_alias,
        "roles": lambda value: get_names(tuple(value), field="roles"),
        "groups": lambda value: get_names(tuple(value), field="groups"),
    }
    with rt.unit(by.origin) as unit:
        row = accounts.get_row(unit.session, user_id)
        values = {name: checks[name](value) for name, value in changes.items()}
        # Names are personal: the record keeps that they changed, not what they were.
        kept = ("roles", "groups")
        before = {name: list(getattr(row, name)) for name in values if name in kept}
        after = {name: list(values[name]) for name in values if name in kept}
        try:
            _update_user(unit, row, version, **values)
        except IntegrityError as exc:
            if not is_violation(exc, "uq_user_account_alias", "user_account.alias"):
                raise
            raise Refused(CONFLICT.saying("That alias is in use"), field="alias", cause=exc) from exc
        if ADMIN_ROLE in before.get("roles", ()) and ADMIN_ROLE not in after["roles"]:
            accounts.guard_last_admin(unit, user_id)
        changes_told = {"before": before, "after": after, "changed": sorted(values)}
        audit.record(rt, unit, Action.USER_CHANGED, actor=by.actor, target=user_id, **changes_told)
    return describe_user(rt, user_id)


def grant_role(rt: Runtime, by: By, user_id: str, role: str) -> UserDetail:
    """Give a user a global role; giving it twice is the same."""
    if not is_name(role):
        raise Refused(VALIDATION.saying("A role needs 1 to 64 of a-z, 0-9 and ._:-"), field="role")
    user = accounts.get(rt, user_id)
    return change_user(rt, by, user_id, version=user.version, roles={*user.roles, role})


def withdraw_role(rt: Runtime, by: By, user_id: str, role: str) -> UserDetail:
    """Take a global role from a user. Raises Refused(NOT_FOUND) where they do not hold it."""
    user = accounts.get(rt, user_id)
    if role not in user.roles:
        raise Refused(NOT_FOUND, detail="the user does not hold that role")
    return change_user(rt, by, user_id, version=user.version, roles={*user.roles} - {role})


def set_enabled(rt: Runtime, by: By, user_id: str, *, enabled: bool) -> None:
    """Let a user in, or put them out: disabling ends every session at once, and enabling revives none."""
    with rt.unit(by.origin) as unit:
        row = accounts.get_row(unit.session, user_id)
        before, was_admin = row.enabled, ADMIN_ROLE in row.roles
        _update_user(unit, row, None, enabled=enabled)
        if not enabled:
            if was_admin and before:
                accounts.guard_last_admin(unit, user_id)
            sessions.revoke_all(rt, unit, user_id, actor=by.actor, reason="user disabled")
        action = Action.USER_ENABLED if enabled else Action.USER_DISABLED
        told = {"before": {"enabled": before}, "after": {"enabled": enabled}}
        audit.record(rt, unit, action, actor=by.actor, target=user_id, **told)


def set_verified(rt: Runtime, by: By, user_id: str, *, verified: bool) -> None:
    """Vouch for a user's preferred address, or have them prove it again, which ends their sessions.

    Raises Refused(CONFLICT) for an address that another user has verified.
    """
    with rt.unit(by.origin) as unit:
        row = accounts.get_row(unit.session, user_id)
        before = row.verified
        wanted = select(Email.address).where(Email.user_id == row.id, Email.preferred)
        address = unit.execute(wanted).scalar_one_or_none()
        if verified and address:
            addresses.confirm(rt, unit, row.id, address, actor=by.actor)
        elif before != verified:
            _update_user(unit, row, None, verified=verified)
        if not verified:
            unit.execute(update(Email).where(Email.user_id == row.id, Email.preferred).values(verified=False))
            sessions.revoke_all(rt, unit, row.id, actor=by.actor, reason="user unverified")
        told = {"before": {"verified": before}, "after": {"verified": verified}}
        audit.record(rt, unit, Action.USER_CHANGED, actor=by.actor, target=row.id, **told)


def set_access_window(rt: Runtime, by: By, user_id: str, **bounds: datetime | None) -> UserDetail:
    """Set when a user may come in: `starts_at` and `ends_at`, of which an absent one stays and None is no bound.

    Who is outside, before or after the change, loses every session: a window that opens again revives nothing.
    """
    with rt.unit(by.origin) as unit:
        row = accounts.get_row(unit.session, user_id)
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
        audit.record(rt, unit, Action.USER_CHANGED, actor=by.actor, target=user_id, before=before, after=after)
    return describe_user(rt, user_id)


def erase_user(rt: Runtime, by: By, user_id: str) -> None:
    """Delete a user and everything that names them; the audit keeps only the id. The last administrator stays (CONFLICT)."""
    with rt.unit(by.origin) as unit:
        sign_up.erase(rt, unit, user_id, actor=by.actor)


# Applications.


def create_application(
    rt: Runtime, by: By, *, name: str, tenant: str | None = None, scopes: Sequence[str] = (), **options: Any
) -> tuple[ApplicationInfo, SecretInfo, Secret]:
    """Make an application and its first secret, which is shown once. See `applications.register` for `options` and refusals."""
    _check_grant(tenant, scopes, options.get("roles", ()))
    with rt.unit(by.origin) as unit:
        return applications.register(
            rt,
            unit,
            name=clean_name(name, field="name"),
            actor=by.actor,
            tenant=tenant,
            scopes=scopes,
            **options,
        )


def change_application(
    rt: Runtime, by: By, client_id: str, *, version: int | None = None, **changes: Any
) -> ApplicationInfo:
    """Change an application; see `applications.change`."""
    app = applications.get(rt, client_id)
    _check_grant(app.tenant, changes.get("scopes", ()), changes.get("roles", ()))
    if "name" in changes:
        changes["name"] = clean_name(changes["name"], field="name")
    with rt.unit(by.origin) as unit:
        return applications.change(rt, unit, app.id, actor=by.actor, version=version, **changes)


def delete_application(rt: Runtime, by: By, client_id: str) -> None:
    """Delete an application; its secrets and tokens end with it."""
    with rt.unit(by.origin) as unit:
        applications.remove(rt, unit, client_id, actor=by.actor)


def add_secret(rt: Runtime, by: By, client_id: str, *, expires_in: int | None = None) -> tuple[SecretInfo, Secret]:
    """A second live secret, so that the first can be retired."""
    with rt.unit(by.origin) as unit:
        return applications.add_secret(rt, unit, client_id, actor=by.actor, expires_in=expires_in)


def rotate_secret(rt: Runtime, by: By, client_id: str, *, expires_in: int) -> tuple[SecretInfo, Secret]:
    """A new secret, while the one before works for `expires_in` seconds more."""
    with rt.unit(by.origin) as unit:
        return applications.rotate_secret(rt, unit, client_id, actor=by.actor, expires_in=expires_in)


def delete_secret(rt: Runtime, by: By, client_id: str, secret_id: str) -> None:
    """End a secret and every token that it earned."""
    with rt.unit(by.origin) as unit:
        applications.get_row(unit.session, client_id)
        applications.remove_secret(rt, unit, client_id, secret_id, actor=by.actor)


# Tenants.


def create_tenant(rt: Runtime, by: By, *, tenant_id: str, name: str) -> TenantInfo:
    """Make a tenant. Raises Refused(VALIDATION) or Refused(CONFLICT)."""
    with rt.unit(by.origin) as unit:
        return tenancy.create(rt, unit, tenant_id=tenant_id, name=clean_name(name, field="name"), actor=by.actor)


def change_tenant(rt: Runtime, by: By, tenant_id: str, *, version: int | None = None, **changes: Any) -> TenantInfo:
    """Rename a tenant, or set its budgets; see `tenancy.change`."""
    if "name" in changes:
        changes["name"] = clean_name(changes["name"], field="name")
    with rt.unit(by.origin) as unit:
        return tenancy.change(rt, unit, tenant_id, actor=by.actor, version=version, **changes)


def delete_tenant(rt: Runtime, by: By, tenant_id: str) -> None:
    """Delete a tenant with its memberships and its applications."""
    with rt.unit(by.origin) as unit:
        tenancy.remove(rt, unit, tenant_id, actor=by.actor)


def set_member(rt: Runtime, by: By, tenant_id: str, user_id: str, *, roles: Sequence[str]) -> Member:
    """Make a user a member with exactly these roles."""
    with rt.unit(by.origin) as unit:
        user = accounts.get_row(unit.session, user_id)
        return Member(user.id, user.alias, _set_member(rt, unit, tenant_id, user.id, roles=roles, actor=by.actor))


def remove_member(rt: Runtime, by: By, tenant_id: str, user_id: str) -> None:
    """End a membership. Raises Refused(NOT_FOUND) where there is none."""
    with rt.unit(by.origin) as unit:
        if not canonical_id(user_id):
            raise Refused(NOT_FOUND, detail="no such membership")
        tenancy.remove_member(rt, unit, tenant_id, user_id, actor=by.actor)


def list_members(rt: Runtime, tenant_id: str, *, limit: int, offset: int) -> tuple[int, list[Member]]:
    """How many members a tenant has, and a page of them in the order in which their accounts were made."""
    belongs = Membership.tenant_id == tenant_id
    with rt.database.reading() as session:
        tenancy.get(session, tenant_id)
        total = session.scalar(select(func.count()).select_from(Membership).where(belongs)) or 0
        query = select(User.id, User.alias, Membership.roles).join(User, User.id == Membership.user_id).where(belongs)
        return total, [Member(*row) for row in session.execute(query.order_by(User.id).limit(limit).offset(offset))]


# Signing keys and master keys.


def rotate_key(rt: Runtime, by: By) -> KeyInfo:
    """Have the standby key sign as soon as verifiers can know it; publishes one first where none waits."""
    rt.ring.ensure_standby()
    with rt.unit(by.origin) as unit:
        rotated = rt.ring.rotate(unit)
        audit.record(rt, unit, Action.KEY_ROTATED, actor=by.actor, target=rotated.kid)
    return next(key for key in rt.ring.list() if key.kid == rotated.kid)


def revoke_key(rt: Runtime, by: By, kid: str) -> None:
    """Withdraw a signing key at once: everything that it signed is refused from now on."""
    with rt.unit(by.origin) as unit:
        rt.ring.revoke(unit, kid)
        audit.record(rt, unit, Action.KEY_REVOKED, actor=by.actor, target=kid)


def import_key(rt: Runtime, by: By, pem: bytes) -> KeyInfo:
    """Take a private RSA key as the one that signs next."""
    with rt.unit(by.origin) as unit:
        imported = rt.ring.import_pem(unit, pem)
        audit.record(rt, unit, Action.KEY_IMPORTED, actor=by.actor, target=imported.kid)
    return imported


def reseal(rt: Runtime, by: By) -> int:
    """Seal everything anew under the newest master key, so that the older ones can go; tell how many rows changed."""
    with rt.unit(by.origin) as unit:
        changed = rt.ring.reseal(unit) + outbox.reseal(rt, unit) + factors.reseal(rt, unit)
        audit.record(rt, unit, Action.MASTER_KEY_CHANGED, actor=by.actor, rows=changed)
    return changed


def _update_user(unit: Unit, row: User, version: int | None, **values: Any) -> None:
    """Change a user's row, if nobody did since it was read. Raises Refused(CONFLICT)."""
    expected = row.version if version is None else version
    changing = update(User).where(User.id == row.id, User.version == expected)
    if not unit.changed(changing.values(**values, version=expected + 1)):
        raise Refused(_STALE, detail="stale version", evidence={"expected": row.version, "seen": expected})


def _set_member(
    rt: Runtime, unit: Unit, tenant_id: str, user_id: str, *, roles: Sequence[str], actor: str
) -> tuple[str, ...]:
    if ADMIN_ROLE in roles:
        raise Refused(
            VALIDATION.saying("A membership cannot hold the role users_admin, which is global"), field="roles"
        )
    return tenancy.set_member(rt, unit, tenant_id, user_id, roles=roles, actor=actor)


def _check_grant(tenant: str | None, scopes: Sequence[str], roles: Sequence[str]) -> None:
    """Refuse what no application may hold: an administrator's role, or, for a tenant's own, the scope that reaches every tenant."""
    if ADMIN_ROLE in roles:
        raise Refused(VALIDATION.saying("An application administers by the scope admin, not by a role"), field="roles")
    if tenant is not None and ADMIN_SCOPE in scopes:
        raise Refused(VALIDATION.saying("An application of a tenant cannot hold the scope admin"), field="scopes")


def _is_inside(window: Mapping[str, datetime | None], now: datetime) -> bool:
    starts_at, ends_at = window["starts_at"], window["ends_at"]
    return (starts_at is None or starts_at <= now) and (ends_at is None or now < ends_at)


def _details(rt: Runtime, users: Sequence[UserInfo]) -> list[UserDetail]:
    """The users with what hangs on them, read a page at a time."""
    ids = [user.id for user in users]
    addresses: dict[str, list[EmailInfo]] = {}
    tenants: dict[str, dict[str, tuple[str, ...]]] = {}
    with rt.database.reading() as session:
        for row in session.scalars(select(Email).where(Email.user_id.in_(ids)).order_by(Email.created_at, Email.id)):
            info = EmailInfo(row.id, row.user_id, row.address, row.verified, row.preferred)
            addresses.setdefault(row.user_id, []).append(info)
        held = select(Membership).where(Membership.user_id.in_(ids)).order_by(Membership.tenant_id)
        for belonging in session.scalars(held):
            tenants.setdefault(belonging.user_id, {})[belonging.tenant_id] = belonging.roles
    return [
        UserDetail(
            user,
            tuple(addresses.get(user.id, ())),
            tenants.get(user.id, {}),
            factors.is_enrolled(rt, user.id),
            factors.has_fixed_otp(rt, user.id),
        )
        for user in users
    ]
