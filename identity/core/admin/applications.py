"""What administrators do with applications and their secrets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from identity.core.admin import roles as named
from identity.core.admin.by import By
from identity.core.clients import applications, issuers, registration, secrets
from identity.core.clients.applications import ADMIN_SCOPE, ApplicationInfo
from identity.core.clients.issuers import TrustInfo
from identity.core.clients.secrets import MadeSecret
from identity.core.people.accounts import ADMIN_ROLE, clean_name
from identity.errors import VALIDATION, Refused
from identity.runtime import Runtime


def create_application(
    rt: Runtime,
    by: By,
    *,
    name: str,
    tenant: str | None = None,
    scopes: Sequence[str] = (),
    new_role: bool = False,
    **options: Any,
) -> tuple[ApplicationInfo, MadeSecret]:
    """Make an application and its first secret, which is shown once. See `registration.register` for `options` and refusals."""
    _check_grant(tenant, scopes, options.get("roles", ()))
    with by.unit(rt) as unit:
        named.check(unit, options.get("roles", ()), insists=new_role)
        return registration.register(
            rt,
            unit,
            name=clean_name(name, field="name"),
            actor=by.actor,
            tenant=tenant,
            scopes=scopes,
            **options,
        )


def change_application(
    rt: Runtime,
    by: By,
    client_id: str,
    *,
    versions: Collection[int] | None = None,
    new_role: bool = False,
    **changes: Any,
) -> ApplicationInfo:
    """Change an application; see `registration.change`."""
    app = applications.get(rt, client_id)
    _check_grant(app.tenant, changes.get("scopes", ()), changes.get("roles", ()))
    if "name" in changes:
        changes["name"] = clean_name(changes["name"], field="name")
    with by.unit(rt) as unit:
        named.check(unit, changes.get("roles", ()), insists=new_role)
        return registration.change(rt, unit, app.id, actor=by.actor, versions=versions, **changes)


def delete_application(rt: Runtime, by: By, client_id: str) -> None:
    """Delete an application; its secrets and tokens end with it."""
    with by.unit(rt) as unit:
        registration.remove(rt, unit, client_id, actor=by.actor)


def add_secret(
    rt: Runtime,
    by: By,
    client_id: str,
    *,
    expires_in: int | None = None,
    retire_old_after_quiet: int | None = None,
    force: bool = False,
) -> MadeSecret:
    """A second live secret, so that the first can be retired; see `secrets.add_secret`."""
    with by.unit(rt) as unit:
        return secrets.add_secret(
            rt,
            unit,
            client_id,
            actor=by.actor,
            expires_in=expires_in,
            retire_old_after_quiet=retire_old_after_quiet,
            force=force,
        )


def rotate_secret(rt: Runtime, by: By, client_id: str, *, expires_in: int, force: bool = False) -> MadeSecret:
    """A new secret, while the one before works for `expires_in` seconds more; see `secrets.rotate_secret`."""
    with by.unit(rt) as unit:
        return secrets.rotate_secret(rt, unit, client_id, actor=by.actor, expires_in=expires_in, force=force)


def delete_secret(rt: Runtime, by: By, client_id: str, secret_id: str, *, force: bool = False) -> None:
    """End a secret and every token that it earned; one in use only with `force`."""
    with by.unit(rt) as unit:
        applications.get_row(unit.session, client_id)
        secrets.remove_secret(rt, unit, client_id, secret_id, actor=by.actor, force=force)


def add_trust(rt: Runtime, by: By, client_id: str, *, name: str, **options: Any) -> TrustInfo:
    """Let an application prove itself with the tokens of a platform; see `issuers.add_trust` for `options` and refusals."""
    with by.unit(rt) as unit:
        return issuers.add_trust(rt, unit, client_id, actor=by.actor, name=clean_name(name, field="name"), **options)


def remove_trust(rt: Runtime, by: By, client_id: str, trust_id: str) -> None:
    """End a trust and every token that it earned."""
    with by.unit(rt) as unit:
        applications.get_row(unit.session, client_id)
        issuers.remove_trust(rt, unit, client_id, trust_id, actor=by.actor)


def _check_grant(tenant: str | None, scopes: Sequence[str], roles: Sequence[str]) -> None:
    """Refuse what no application may hold: an administrator's role, or, for a tenant's own, the scope that reaches every tenant."""
    if ADMIN_ROLE in roles:
        raise Refused(VALIDATION.saying("An application administers by the scope admin, not by a role"), field="roles")
    if tenant is not None and ADMIN_SCOPE in scopes:
        raise Refused(VALIDATION.saying("An application of a tenant cannot hold the scope admin"), field="scopes")
