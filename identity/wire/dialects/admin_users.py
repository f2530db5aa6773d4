"""Group H: users, and what an administrator does for one."""

from __future__ import annotations

from datetime import datetime

from identity import documents
from identity.core.admin import importing, on_behalf, seek, users
from identity.errors import MALFORMED, TOO_LARGE, UNSUPPORTED_MEDIA, VALIDATION, Refused
from identity.wire.dialects import admin_record_schemas as records
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects.admin_dialect import (
    ACKNOWLEDGED,
    ALWAYS,
    IMPORT_BYTES,
    admin,
    by_of,
    deed,
    imported,
    listing,
    show,
    sought,
)
from identity.wire.dialects.lists import changes_of, flag, one, page, renamed, seen_versions, tagged
from identity.wire.endpoint import Call, Reply


@deed("POST", "/admin/user", body=schemas.NewUser, answer=schemas.NewUserAnswer)
def create_user(call: Call) -> Reply:
    """Make a user with a verified address and a key pair, or, with `notify`, with an invitation by mail."""
    made = users.create_user(
        call.rt,
        by_of(call),
        **renamed(
            call.body, fullName="full_name", portalURL="portal_url", passwordHash="password_hash", newRole="new_role"
        ),
    )
    return Reply(documents.created_user(made))


@admin.endpoint(
    "POST",
    "/admin/users/import",
    answer=records.ImportAnswer,
    query=("dryRun", "onlyNew", "newRole"),
    status=202,
    lines=True,
    max_body=IMPORT_BYTES,
    refusals=(*ALWAYS, TOO_LARGE, UNSUPPORTED_MEDIA, MALFORMED),
)
def import_users(call: Call) -> Reply:
    """Make or update a user for each line of NDJSON: `email, alias, fullName, roles, groups, tenants, externalID, passwordHash`.

    Send them as `application/x-ndjson`, at most 10,000 in 8 MiB. Found again by `externalID`, else by address. A line that cannot be
    taken is told with the reason, and holds up no other.
    """
    options = {"dry_run": "dryRun", "only_new": "onlyNew", "new_role": "newRole"}
    said = {name: flag(call, parameter) for name, parameter in options.items()}
    return imported(call, lambda rows: importing.take(call.rt, by_of(call), rows, **said))


@listing("/admin/users", "users", schemas.UserAnswer, filters=("enabled", "role", "tenant", "email", "alias", "q"))
def list_users(call: Call) -> Reply:
    """List users in the order in which they were made."""
    enabled = one(call, "enabled")
    if enabled not in (None, "true", "false"):
        raise Refused(VALIDATION.saying("enabled is true or false"), field="enabled")
    filters = {name: one(call, name) for name in ("role", "email", "alias", "q")}
    filters["tenant"] = sought(call, "tenant", seek.tenant_id)
    return page(
        call,
        "users",
        documents.user,
        lambda part: users.list_users(call.rt, part, enabled=None if enabled is None else enabled == "true", **filters),
    )


@show("/admin/user/{id}", schemas.UserAnswer)
def show_user(call: Call) -> Reply:
    """Show a user; the `ETag` guards a change of it."""
    return _user(users.describe_user(call.rt, call.params["id"]))


@deed("PATCH", "/admin/user/{id}", body=schemas.UserChange, answer=schemas.UserAnswer)
def change_user(call: Call) -> Reply:
    """Change a user's name, alias, roles or groups; `If-Match` guards against a change in between."""
    changes = renamed(changes_of(call), fullName="full_name", newRole="new_role")
    return _user(users.change_user(call.rt, by_of(call), call.params["id"], versions=seen_versions(call), **changes))


@deed("DELETE", "/admin/user/{id}")
def erase_user(call: Call) -> Reply:
    """Erase a user and everything that names them; the audit keeps the id."""
    users.erase_user(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/user/{id}/enable")
def enable_user(call: Call) -> Reply:
    """Let a user in again; sessions that were ended stay ended."""
    users.set_enabled(call.rt, by_of(call), call.params["id"], enabled=True)
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/user/{id}/disable")
def disable_user(call: Call) -> Reply:
    """Put a user out: every session ends at once."""
    users.set_enabled(call.rt, by_of(call), call.params["id"], enabled=False)
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/user/{id}/verify")
def verify_user(call: Call) -> Reply:
    """Vouch that a user's preferred address is theirs."""
    users.set_verified(call.rt, by_of(call), call.params["id"], verified=True)
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/user/{id}/unverify")
def unverify_user(call: Call) -> Reply:
    """Have a user prove their preferred address again; their sessions end."""
    users.set_verified(call.rt, by_of(call), call.params["id"], verified=False)
    return Reply(ACKNOWLEDGED)


@show("/admin/user/{id}/roles", schemas.RolesAnswer)
def show_roles(call: Call) -> Reply:
    """Show the global roles of a user."""
    return _roles(users.describe_user(call.rt, call.params["id"]))


@deed("POST", "/admin/user/{id}/roles", body=schemas.RoleBody, answer=schemas.RolesAnswer)
def grant_role(call: Call) -> Reply:
    """Give a user a global role."""
    return _roles(users.grant_role(call.rt, by_of(call), call.params["id"], **renamed(call.body, newRole="new_role")))


@deed("DELETE", "/admin/user/{id}/roles/{role}", answer=schemas.RolesAnswer)
def withdraw_role(call: Call) -> Reply:
    """Take a global role from a user."""
    return _roles(users.withdraw_role(call.rt, by_of(call), call.params["id"], call.params["role"]))


@deed("PUT", "/admin/user/{id}/password-reset", answer=schemas.CodeAnswer)
def reset_password(call: Call) -> Reply:
    """Mail a user a code to choose a new password with."""
    verification_id = on_behalf.send_password_reset(call.rt, by_of(call), call.params["id"])
    return Reply({"verificationCodeID": verification_id})


@deed("PUT", "/admin/user/{id}/access-window", body=schemas.AccessWindowBody, answer=schemas.UserAnswer)
def set_access_window(call: Call) -> Reply:
    """Set when a user may come in; outside of it every session ends, and none revives."""
    bounds: dict[str, datetime | None] = renamed(changes_of(call), startsAt="starts_at", endsAt="ends_at")
    return _user(users.set_access_window(call.rt, by_of(call), call.params["id"], **bounds))


@deed("PUT", "/admin/user/{id}/fixed-otp", body=schemas.FixedOtpBody)
def fix_otp(call: Call) -> Reply:
    """Fix a one-time code for a user, where `IDENTITY_FIXED_OTP` permits it."""
    on_behalf.fix_otp(call.rt, by_of(call), call.params["id"], call.body["otp"])
    return Reply(ACKNOWLEDGED)


@deed("DELETE", "/admin/user/{id}/fixed-otp")
def clear_otp(call: Call) -> Reply:
    """Forget the fixed one-time code of a user."""
    on_behalf.clear_otp(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("DELETE", "/admin/user/{id}/mfa")
def remove_factors(call: Call) -> Reply:
    """Take the authenticator and the recovery codes of a user who has lost them."""
    on_behalf.remove_factors(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


def _user(detail: users.UserDetail) -> Reply:
    return tagged(documents.user(detail), detail.info.version)


def _roles(detail: users.UserDetail) -> Reply:
    return tagged({"roles": list(detail.info.roles)}, detail.info.version)
