"""Group H: administration (docs/interfaces.md), over the same use cases as the command line.

Who may call is decided before anything else of a request is read: a user with the role `users_admin`, their key pair, or an
application's token with the scope `admin`. Every deed answers 202. `ETag` and `If-Match` keep two administrators from overwriting each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

from marshmallow import Schema

from identity import documents, paging
from identity.core.access import own
from identity.core.admin import (
    applications,
    export,
    importing,
    invitations,
    keys,
    on_behalf,
    roles,
    seek,
    tenants,
    users,
)
from identity.core.admin.by import By
from identity.core.clients import applications as clients
from identity.core.clients import expiry, issuers, keypairs, secrets
from identity.core.mail import outbox
from identity.core.mail.outbox import State
from identity.core.people import tenancy
from identity.core.record import audit, explain
from identity.core.tokens import sessions
from identity.errors import (
    CONFLICT,
    FORBIDDEN,
    INVALID_TOKEN,
    KEY_MISMATCH,
    LOCKED_OUT,
    MALFORMED,
    NOT_FOUND,
    RATE_LIMITED,
    STALE,
    TOKEN_EXPIRED,
    TOO_LARGE,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    UNSUPPORTED_MEDIA,
    VALIDATION,
    Problem,
    Refused,
)
from identity.instruments.limits import Policy
from identity.runtime import Runtime
from identity.wire.dialects import admin_record_schemas as records
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects import machine_schemas, tenant_schemas
from identity.wire.dialects.lists import PAGING, changes_of, flag, one, page, renamed, seen_versions, tagged, whole
from identity.wire.endpoint import ENVELOPE_400, Call, Dialect, Reads, Reply

admin = Dialect(
    "H: administration",
    mounts=("", "/api/auth/v2"),
    shape=ENVELOPE_400,
    reads=Reads.BEARER_OR_KEY,
    admin=True,
    limit=Policy.STANDARD,
)

_USER_FIELDS: Final = {
    "fullName": "full_name",
    "portalURL": "portal_url",
    "passwordHash": "password_hash",
    "newRole": "new_role",
}
_IMPORT_BYTES: Final = 8 * 1024 * 1024
_IMPORT_LINES: Final = 10_000
_EVENT_FILTERS: Final = ("actor", "action", "target", "tenant", "credential", "address")
_ACKNOWLEDGED: Final = {"message": "acknowledged"}
_ALWAYS: Final = (
    UNAUTHENTICATED,
    INVALID_TOKEN,
    TOKEN_EXPIRED,
    KEY_MISMATCH,
    LOCKED_OUT,
    RATE_LIMITED,
    TWO_CREDENTIALS,
    FORBIDDEN,
    VALIDATION,
)
_Handler = Callable[[Call], Reply]


def _show(path: str, answer: type[Schema]) -> Callable[[_Handler], _Handler]:
    """Declare a route that shows one thing."""
    return admin.endpoint("GET", path, answer=answer, ignores_body=True, refusals=(*_ALWAYS, NOT_FOUND))


def _list(
    path: str, plural: str, item: type[Schema], *, filters: tuple[str, ...] = (), refusals: tuple[Problem, ...] = ()
) -> Callable[[_Handler], _Handler]:
    """Declare a route that lists a page of things."""
    return admin.endpoint(
        "GET",
        path,
        answer=schemas.page_of(plural, item),
        query=(*PAGING, *filters),
        ignores_body=True,
        refusals=(*_ALWAYS, *refusals),
    )


def _deed(
    method: str,
    path: str,
    *,
    body: type[Schema] | None = None,
    answer: type[Schema] = schemas.Acknowledged,
    query: tuple[str, ...] = (),
) -> Callable[[_Handler], _Handler]:
    """Declare a route that changes something."""
    refusals = (*_ALWAYS, NOT_FOUND, CONFLICT, *((STALE,) if method == "PATCH" else ()))
    return admin.endpoint(method, path, body=body, answer=answer, query=query, status=202, refusals=refusals)


# Users.


@_deed("POST", "/admin/user", body=schemas.NewUser, answer=schemas.NewUserAnswer)
def create_user(call: Call) -> Reply:
    """Make a user with a verified address and a key pair, or, with `notify`, with an invitation by mail."""
    made = users.create_user(
        call.rt,
        _by(call),
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
    max_body=_IMPORT_BYTES,
    refusals=(*_ALWAYS, TOO_LARGE, UNSUPPORTED_MEDIA, MALFORMED),
)
def import_users(call: Call) -> Reply:
    """Make or update a user for each line of NDJSON: `email, alias, fullName, roles, groups, tenants, externalID, passwordHash`.

    Found again by `externalID`, else by address. A line that cannot be taken is told with the reason, and holds up no other.
    """
    lines: list[Any] = call.body["lines"]
    if len(lines) > _IMPORT_LINES:
        raise Refused(TOO_LARGE.saying(f"At most {_IMPORT_LINES} lines at once"), detail=f"{len(lines)} lines")
    good = [line for line in lines if not isinstance(line, Refused)]
    options = {"dry_run": "dryRun", "only_new": "onlyNew", "new_role": "newRole"}
    taken = iter(importing.take(call.rt, _by(call), good, **{name: flag(call, said) for name, said in options.items()}))
    return Reply(documents.imported([line if isinstance(line, Refused) else next(taken) for line in lines]))


@_list("/admin/users", "users", schemas.UserAnswer, filters=("enabled", "role", "tenant", "email", "alias", "q"))
def list_users(call: Call) -> Reply:
    """List users in the order in which they were made."""
    enabled = one(call, "enabled")
    if enabled not in (None, "true", "false"):
        raise Refused(VALIDATION.saying("enabled is true or false"), field="enabled")
    filters = {name: one(call, name) for name in ("role", "email", "alias", "q")}
    filters["tenant"] = _sought(call, "tenant", seek.tenant_id)
    return page(
        call,
        "users",
        documents.user,
        lambda part: users.list_users(call.rt, part, enabled=None if enabled is None else enabled == "true", **filters),
    )


@_show("/admin/user/{id}", schemas.UserAnswer)
def show_user(call: Call) -> Reply:
    """Show a user; the `ETag` guards a change of it."""
    return _user(users.describe_user(call.rt, call.params["id"]))


@_deed("PATCH", "/admin/user/{id}", body=schemas.UserChange, answer=schemas.UserAnswer)
def change_user(call: Call) -> Reply:
    """Change a user's name, alias, roles or groups; `If-Match` guards against a change in between."""
    changes = renamed(changes_of(call), fullName="full_name", newRole="new_role")
    return _user(users.change_user(call.rt, _by(call), call.params["id"], versions=seen_versions(call), **changes))


@_deed("DELETE", "/admin/user/{id}")
def erase_user(call: Call) -> Reply:
    """Erase a user and everything that names them; the audit keeps the id."""
    users.erase_user(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/user/{id}/enable")
def enable_user(call: Call) -> Reply:
    """Let a user in again; sessions that were ended stay ended."""
    users.set_enabled(call.rt, _by(call), call.params["id"], enabled=True)
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/user/{id}/disable")
def disable_user(call: Call) -> Reply:
    """Put a user out: every session ends at once."""
    users.set_enabled(call.rt, _by(call), call.params["id"], enabled=False)
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/user/{id}/verify")
def verify_user(call: Call) -> Reply:
    """Vouch that a user's preferred address is theirs."""
    users.set_verified(call.rt, _by(call), call.params["id"], verified=True)
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/user/{id}/unverify")
def unverify_user(call: Call) -> Reply:
    """Have a user prove their preferred address again; their sessions end."""
    users.set_verified(call.rt, _by(call), call.params["id"], verified=False)
    return Reply(_ACKNOWLEDGED)


@_show("/admin/user/{id}/roles", schemas.RolesAnswer)
def show_roles(call: Call) -> Reply:
    """Show the global roles of a user."""
    return _roles(users.describe_user(call.rt, call.params["id"]))


@_deed("POST", "/admin/user/{id}/roles", body=schemas.RoleBody, answer=schemas.RolesAnswer)
def grant_role(call: Call) -> Reply:
    """Give a user a global role."""
    return _roles(users.grant_role(call.rt, _by(call), call.params["id"], **renamed(call.body, newRole="new_role")))


@_deed("DELETE", "/admin/user/{id}/roles/{role}", answer=schemas.RolesAnswer)
def withdraw_role(call: Call) -> Reply:
    """Take a global role from a user."""
    return _roles(users.withdraw_role(call.rt, _by(call), call.params["id"], call.params["role"]))


@_deed("PUT", "/admin/user/{id}/password-reset", answer=schemas.CodeAnswer)
def reset_password(call: Call) -> Reply:
    """Mail a user a code to choose a new password with."""
    verification_id = on_behalf.send_password_reset(call.rt, _by(call), call.params["id"])
    return Reply({"verificationCodeID": verification_id})


@_deed("PUT", "/admin/user/{id}/access-window", body=schemas.AccessWindowBody, answer=schemas.UserAnswer)
def set_access_window(call: Call) -> Reply:
    """Set when a user may come in; outside of it every session ends, and none revives."""
    bounds: dict[str, datetime | None] = renamed(changes_of(call), startsAt="starts_at", endsAt="ends_at")
    return _user(users.set_access_window(call.rt, _by(call), call.params["id"], **bounds))


@_deed("PUT", "/admin/user/{id}/fixed-otp", body=schemas.FixedOtpBody)
def fix_otp(call: Call) -> Reply:
    """Fix a one-time code for a user, where `IDENTITY_FIXED_OTP` permits it."""
    on_behalf.fix_otp(call.rt, _by(call), call.params["id"], call.body["otp"])
    return Reply(_ACKNOWLEDGED)


@_deed("DELETE", "/admin/user/{id}/fixed-otp")
def clear_otp(call: Call) -> Reply:
    """Forget the fixed one-time code of a user."""
    on_behalf.clear_otp(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("DELETE", "/admin/user/{id}/mfa")
def remove_factors(call: Call) -> Reply:
    """Take the authenticator and the recovery codes of a user who has lost them."""
    on_behalf.remove_factors(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


# Their credentials.


@_deed("POST", "/admin/user/{id}/session", body=schemas.SessionBody, answer=schemas.NewSessionAnswer)
def open_session(call: Call) -> Reply:
    """Open a session of a user, who gets the code for it by mail."""
    return Reply(documents.waiting_session(on_behalf.open_session(call.rt, _by(call), call.params["id"], **call.body)))


@_deed("POST", "/admin/user/{id}/keypair", body=schemas.KeyPairBody, answer=schemas.NewKeyPairAnswer)
def create_keypair(call: Call) -> Reply:
    """Make a key pair of a user, who gets the code for it by mail; the secret is shown once."""
    made = on_behalf.create_keypair(call.rt, _by(call), call.params["id"], **call.body)
    return Reply(documents.requested_keypair(made))


@_deed("POST", "/admin/user/{id}/email", body=schemas.AddressBody, answer=schemas.NewEmailAnswer)
def add_email(call: Call) -> Reply:
    """Add an address to a user; the code for it goes there."""
    info, verification_id = on_behalf.add_email(call.rt, _by(call), call.params["id"], call.body["address"])
    return Reply({"emailID": info.id, "address": info.address, "verificationCodeID": verification_id})


@_list("/admin/sessions", "sessions", schemas.SessionAnswer, filters=("user", "tenant", "application"))
def list_sessions(call: Call) -> Reply:
    """List living sessions, newest first."""
    return page(
        call,
        "sessions",
        documents.session,
        lambda part: sessions.listing(call.rt, part, **_owners(call)),
    )


@_list("/admin/keypairs", "keypairs", schemas.KeyPairAnswer, filters=("user",))
def list_keypairs(call: Call) -> Reply:
    """List key pairs, oldest first."""
    return page(
        call,
        "keypairs",
        documents.keypair,
        lambda part: keypairs.listing(call.rt, part, user=_sought(call, "user", seek.user_id)),
    )


@_deed("DELETE", "/admin/sessions", answer=records.EndedAnswer, query=("user", "tenant", "application", "all"))
def revoke_sessions(call: Call) -> Reply:
    """End every session of a `user`, of the members of a `tenant`, that an `application` asked for, or (`all=true`) of everybody."""
    owners = {name: value for name, value in _owners(call).items() if value is not None}
    if len(owners) + flag(call, "all") != 1:
        raise Refused(VALIDATION.saying("Name one of user, tenant, application, or all=true"))
    return Reply({"ended": on_behalf.revoke_sessions(call.rt, _by(call), **owners)})


@_deed("PUT", "/admin/user/{id}/unlock", answer=records.UnlockedAnswer)
def unlock_user(call: Call) -> Reply:
    """Forget the failed attempts at an account, so that its owner can sign in at once."""
    return Reply({"forgotten": on_behalf.unlock(call.rt, _by(call), call.params["id"])})


@_show("/admin/user/{id}/export", records.ExportAnswer)
def export_user(call: Call) -> Reply:
    """Everything that is held about a person, for that person; no secret, no hash."""
    return Reply(documents.person(export.gather(call.rt, call.params["id"])))


@_deed("PUT", "/admin/session/{id}/verify")
def verify_session(call: Call) -> Reply:
    """Make a waiting session usable without its code."""
    on_behalf.verify_session(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/keypair/{id}/verify")
def verify_keypair(call: Call) -> Reply:
    """Make a waiting key pair usable without its code."""
    on_behalf.verify_keypair(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/email/{id}/verify")
def verify_email(call: Call) -> Reply:
    """Vouch that an address is its user's."""
    on_behalf.verify_email(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/email/preferred", body=schemas.PreferredBody)
def prefer_email(call: Call) -> Reply:
    """Have a user's notices and codes sent to this address of theirs."""
    on_behalf.prefer_email(call.rt, _by(call), call.body["emailID"])
    return Reply(_ACKNOWLEDGED)


@_deed("DELETE", "/admin/session/{id}")
def revoke_session(call: Call) -> Reply:
    """End a session."""
    on_behalf.revoke_session(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("DELETE", "/admin/keypair/{id}")
def revoke_keypair(call: Call) -> Reply:
    """Delete a key pair."""
    on_behalf.revoke_keypair(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("DELETE", "/admin/email/{id}")
def remove_email(call: Call) -> Reply:
    """Delete an address, but not the last verified one of its user."""
    on_behalf.remove_email(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


# Applications.


@_deed("POST", "/admin/application", body=schemas.NewApplication, answer=schemas.NewApplicationAnswer)
def create_application(call: Call) -> Reply:
    """Register an application; its first secret is shown once."""
    options = renamed(call.body, tokenSeconds="token_seconds", newRole="new_role")
    return Reply(documents.created_application(*applications.create_application(call.rt, _by(call), **options)))


@_list("/admin/applications", "applications", schemas.ApplicationAnswer, filters=("tenant", "name", "appId", "q"))
def list_applications(call: Call) -> Reply:
    """List applications by their number."""
    return page(
        call,
        "applications",
        documents.application,
        lambda part: clients.listing(
            call.rt,
            part,
            tenant=_sought(call, "tenant", seek.tenant_id),
            name=one(call, "name"),
            app_id=whole(call, "appId", default=0, most=9_999_999) or None,
            q=one(call, "q"),
        ),
    )


@_show("/admin/application/{clientId}", schemas.ApplicationAnswer)
def show_application(call: Call) -> Reply:
    """Show an application; the `ETag` guards a change of it."""
    return _application(clients.get(call.rt, call.params["clientId"]))


@_deed("PATCH", "/admin/application/{clientId}", body=schemas.ApplicationChange, answer=schemas.ApplicationAnswer)
def change_application(call: Call) -> Reply:
    """Change an application; disabling it ends its tokens at once. `If-Match` guards against a change in between."""
    changes = renamed(changes_of(call), tokenSeconds="token_seconds", newRole="new_role", tokenClaims="token_claims")
    versions = seen_versions(call)
    return _application(
        applications.change_application(call.rt, _by(call), call.params["clientId"], versions=versions, **changes)
    )


@_deed("DELETE", "/admin/application/{clientId}")
def delete_application(call: Call) -> Reply:
    """Delete an application; its secrets and tokens end with it."""
    applications.delete_application(call.rt, _by(call), call.params["clientId"])
    return Reply(_ACKNOWLEDGED)


@_deed(
    "POST",
    "/admin/application/{clientId}/secret",
    body=machine_schemas.SecretBody,
    answer=machine_schemas.ReplacedSecretAnswer,
    query=("force",),
)
def add_secret(call: Call) -> Reply:
    """Make a second live secret, which is shown once, so that the first can be retired.

    With `retireOldAfterQuiet` the first ends by itself once nobody has used it for so many seconds. A third is refused, and the refusal
    names the last use of the older one; `force` ends the one used longest ago.
    """
    made = applications.add_secret(
        call.rt,
        _by(call),
        call.params["clientId"],
        expires_in=call.body.get("expiresIn"),
        retire_old_after_quiet=call.body.get("retireOldAfterQuiet"),
        force=call.body.get("force", False) or flag(call, "force"),
    )
    return Reply(documents.created_secret(made))


@_list("/admin/application/{clientId}/secrets", "secrets", machine_schemas.SecretAnswer, refusals=(NOT_FOUND,))
def list_secrets(call: Call) -> Reply:
    """List the secrets of an application: when and from where each was last used, and by which addresses in the last 24 hours."""
    found = secrets.secrets_of(call.rt, call.params["clientId"])
    return page(call, "secrets", documents.secret, lambda part: paging.cut(found, part))


@_deed("DELETE", "/admin/application/{clientId}/secret/{secretID}", query=("force",))
def delete_secret(call: Call) -> Reply:
    """End a secret and every token that it earned; one that was used in the last 24 hours only with `force=true`."""
    applications.delete_secret(
        call.rt, _by(call), call.params["clientId"], call.params["secretID"], force=flag(call, "force")
    )
    return Reply(_ACKNOWLEDGED)


@_deed(
    "POST", "/admin/application/{clientId}/trust", body=machine_schemas.TrustBody, answer=machine_schemas.TrustAnswer
)
def add_trust(call: Call) -> Reply:
    """Let an application prove itself with the tokens of its platform, so that it needs no secret.

    `subject` is exact, or ends in one `*`; `claims` are exact. Without `jwks` the issuer is one of `IDENTITY_TRUSTED_ISSUERS`.
    """
    options = renamed(call.body, expiresIn="expires_in")
    return Reply(documents.trust(applications.add_trust(call.rt, _by(call), call.params["clientId"], **options)))


@_list("/admin/application/{clientId}/trusts", "trusts", machine_schemas.TrustAnswer, refusals=(NOT_FOUND,))
def list_trusts(call: Call) -> Reply:
    """List whose tokens an application may prove itself with, and when and from where each trust was last used."""
    found = issuers.trusts_of(call.rt, call.params["clientId"])
    return page(call, "trusts", documents.trust, lambda part: paging.cut(found, part))


@_deed("DELETE", "/admin/application/{clientId}/trust/{trustID}")
def remove_trust(call: Call) -> Reply:
    """End a trust and every token that it earned."""
    applications.remove_trust(call.rt, _by(call), call.params["clientId"], call.params["trustID"])
    return Reply(_ACKNOWLEDGED)


@_list("/admin/expiring", "expiring", machine_schemas.EndingAnswer, filters=("days",))
def list_expiring(call: Call) -> Reply:
    """List everything that ends within `days` (30 by default), soonest first."""
    text = one(call, "days") or "30"
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:5]) <= 3650:
        raise Refused(VALIDATION.saying("days is from 1 to 3650"), field="days")
    found = expiry.endings(call.rt, days=int(text))
    return page(call, "expiring", documents.ending, lambda part: paging.cut(found, part))


# Tenants.


@_deed("POST", "/admin/tenant", body=tenant_schemas.NewTenant, answer=tenant_schemas.TenantAnswer)
def create_tenant(call: Call) -> Reply:
    """Make a tenant; its id is what callers send as `X-Tenant-Id`."""
    return _tenant(tenants.create_tenant(call.rt, _by(call), tenant_id=call.body["id"], name=call.body["name"]))


@_list("/admin/tenants", "tenants", tenant_schemas.TenantAnswer, filters=("q",))
def list_tenants(call: Call) -> Reply:
    """List tenants by id."""
    return page(call, "tenants", documents.tenant, lambda part: tenancy.listing(call.rt, part, q=one(call, "q")))


@_show("/admin/tenant/{id}", tenant_schemas.TenantAnswer)
def show_tenant(call: Call) -> Reply:
    """Show a tenant; the `ETag` guards a change of it."""
    return _tenant(tenancy.describe(call.rt, call.params["id"]))


@_deed("PATCH", "/admin/tenant/{id}", body=tenant_schemas.TenantChange, answer=tenant_schemas.TenantAnswer)
def change_tenant(call: Call) -> Reply:
    """Rename a tenant or give it budgets of its own; `If-Match` guards against a change in between."""
    versions = seen_versions(call)
    return _tenant(tenants.change_tenant(call.rt, _by(call), call.params["id"], versions=versions, **changes_of(call)))


@_deed("PUT", "/admin/tenant/{id}/disable", answer=tenant_schemas.TenantAnswer)
def disable_tenant(call: Call) -> Reply:
    """Stop a tenant at once: nobody acts in it, its applications' tokens end, and its owners hear of it."""
    return _tenant(tenants.set_tenant_enabled(call.rt, _by(call), call.params["id"], enabled=False))


@_deed("PUT", "/admin/tenant/{id}/enable", answer=tenant_schemas.TenantAnswer)
def enable_tenant(call: Call) -> Reply:
    """Let a tenant go on, with its members and applications; tokens that were ended stay ended."""
    return _tenant(tenants.set_tenant_enabled(call.rt, _by(call), call.params["id"], enabled=True))


@_deed("DELETE", "/admin/tenant/{id}")
def delete_tenant(call: Call) -> Reply:
    """Delete a tenant with its memberships and its applications."""
    tenants.delete_tenant(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


@_deed("PUT", "/admin/tenant/{id}/member/{userID}", body=tenant_schemas.MemberBody, answer=tenant_schemas.MemberAnswer)
def set_member(call: Call) -> Reply:
    """Make a user a member with exactly these roles."""
    options = renamed(call.body, newRole="new_role")
    made = tenants.set_member(call.rt, _by(call), call.params["id"], call.params["userID"], **options)
    return Reply(documents.member(made))


@_deed("DELETE", "/admin/tenant/{id}/member/{userID}")
def remove_member(call: Call) -> Reply:
    """End a membership."""
    tenants.remove_member(call.rt, _by(call), call.params["id"], call.params["userID"])
    return Reply(_ACKNOWLEDGED)


@_list("/admin/tenant/{id}/members", "members", tenant_schemas.MemberAnswer, refusals=(NOT_FOUND,))
def list_members(call: Call) -> Reply:
    """List the members of a tenant and their roles in it."""
    return page(
        call,
        "members",
        documents.member,
        lambda part: tenants.list_members(call.rt, call.params["id"], part),
    )


@_list("/admin/tenant/{id}/invitations", "invitations", tenant_schemas.InvitationAnswer, refusals=(NOT_FOUND,))
def list_invitations(call: Call) -> Reply:
    """List the invitations of a tenant that wait to be accepted, newest first."""
    by = _within(call)
    return page(call, "invitations", documents.invitation, lambda part: invitations.listing(call.rt, by, part))


@_deed(
    "POST", "/admin/tenant/{id}/invitations", body=tenant_schemas.InvitationBody, answer=tenant_schemas.InvitationAnswer
)
def invite(call: Call) -> Reply:
    """Mail an invitation into a tenant; the answer is the same whether or not anybody has the address."""
    options = renamed(call.body, expiresIn="expires_in", portalURL="portal_url", newRole="new_role")
    return Reply(documents.invitation(invitations.invite(call.rt, _within(call), **options)))


@_deed("POST", "/admin/tenant/{id}/invitation/{invitationID}/resend", answer=tenant_schemas.InvitationAnswer)
def resend_invitation(call: Call) -> Reply:
    """Mail a new link for an invitation; the link before is dead."""
    return Reply(documents.invitation(invitations.resend(call.rt, _within(call), call.params["invitationID"])))


@_deed("DELETE", "/admin/tenant/{id}/invitation/{invitationID}")
def withdraw_invitation(call: Call) -> Reply:
    """Withdraw an invitation: its link is dead."""
    invitations.withdraw(call.rt, _within(call), call.params["invitationID"])
    return Reply(_ACKNOWLEDGED)


# Roles.


@_list("/admin/roles", "roles", tenant_schemas.RoleAnswer)
def list_roles(call: Call) -> Reply:
    """List the roles that are declared or held, with those who hold them."""
    return page(call, "roles", documents.role, lambda part: roles.listing(call.rt, part))


@_deed("POST", "/admin/role", body=tenant_schemas.NewRole, answer=tenant_schemas.RoleAnswer)
def declare_role(call: Call) -> Reply:
    """Declare a role, everywhere or in one tenant, so that it is known before anybody holds it."""
    return Reply(documents.role(roles.declare(call.rt, _by(call), **call.body)))


# Mail.


@_list("/admin/mails", "mails", records.MailAnswer, filters=("state",))
def list_mails(call: Call) -> Reply:
    """List mails, newest first, never what they say: all but void ones, or those in a `state`."""
    state = one(call, "state")
    if state is not None and state not in set(State):
        raise Refused(VALIDATION.saying("state is pending, sent, dead or void"), field="state")
    return page(
        call, "mails", documents.mail, lambda part: outbox.listing(call.rt, part, state=State(state) if state else None)
    )


@_deed("POST", "/admin/mails/retry", body=records.MailBody, answer=records.RetriedAnswer)
def retry_mails(call: Call) -> Reply:
    """Send again now what waits or was given up: one mail, or all."""
    return Reply({"retried": on_behalf.retry_mails(call.rt, _by(call), call.body.get("mailID"))})


# Signing keys.


@_list("/admin/signing-keys", "keys", schemas.SigningKeyAnswer)
def list_keys(call: Call) -> Reply:
    """List signing keys, oldest first: next, active or retired."""
    found = call.rt.ring.list()
    return page(call, "keys", documents.signing_key, lambda part: paging.cut(found, part))


@_deed("POST", "/admin/signing-keys/rotate", answer=schemas.SigningKeyAnswer)
def rotate_key(call: Call) -> Reply:
    """Have the next key sign as soon as verifiers can have seen it."""
    return Reply(documents.signing_key(keys.rotate_key(call.rt, _by(call))))


@_deed("DELETE", "/admin/signing-key/{kid}")
def revoke_key(call: Call) -> Reply:
    """Withdraw a key that may be stolen: every token that it signed is refused at once."""
    keys.revoke_key(call.rt, _by(call), call.params["kid"])
    return Reply(_ACKNOWLEDGED)


# What happened, and why.


@_list("/admin/audit", "events", records.EventAnswer, filters=(*_EVENT_FILTERS, "since", "until"))
def list_events(call: Call) -> Reply:
    """List audit events, newest first; `since` and `until` are RFC 3339 or Unix seconds, names serve as `actor` and `target`."""
    filters: dict[str, Any] = {name: one(call, name) for name in ("action", "credential", "address")}
    filters |= {"tenant": one(call, "tenant"), **_period(call)}
    for name in ("actor", "target"):
        filters[name] = _sought(call, name, partial(seek.subject, field=name))
    return page(call, "events", documents.event, lambda part: audit.listing(call.rt, part, **filters))


@_list("/admin/errors", "errors", records.ExplanationAnswer, filters=("caller", "address", "error", "since", "until"))
def list_errors(call: Call) -> Reply:
    """List refusals, newest first, and why each was refused; `caller` is who was refused, where that is known."""
    filters: dict[str, Any] = {name: one(call, name) for name in ("address", "error")}
    filters |= {"caller": _sought(call, "caller", partial(seek.subject, field="caller")), **_period(call)}
    return page(call, "errors", documents.explanation, lambda part: explain.listing(call.rt, part, **filters))


@_show("/admin/error/{errorID}", records.ExplanationAnswer)
def explain_error(call: Call) -> Reply:
    """Say why the request that was answered with this `x-error-id` was refused."""
    return Reply(documents.explanation(explain.get(call.rt, call.params["errorID"])))


# How requests are read and answers written.


def _by(call: Call) -> By:
    caller, path = call.caller, call.endpoint.path
    if caller.is_by_key and path.startswith("/admin/user/{id}") and call.params["id"].lower() == caller.subject:
        # An administrator's pair administers others. What it could do to its owner would outlive its own end.
        raise Refused(own.BY_KEY, detail="by a key pair, to its owner")
    return By(caller.subject, call.origin)


def _sought(call: Call, name: str, find: Callable[[Runtime, str], str]) -> str | None:
    """The id of whoever a query parameter names, or None where it is absent. Raises Refused(VALIDATION) for nobody."""
    text = one(call, name)
    return None if text is None else find(call.rt, text)


def _owners(call: Call) -> dict[str, str | None]:
    """Whose sessions are meant."""
    return {
        "user": _sought(call, "user", seek.user_id),
        "tenant": _sought(call, "tenant", seek.tenant_id),
        "application": _sought(call, "application", seek.client_id),
    }


def _period(call: Call) -> dict[str, datetime | None]:
    """The moments that `since` and `until` name."""
    given = {name: one(call, name) for name in ("since", "until")}
    return {name: None if text is None else documents.moment(text, field=name) for name, text in given.items()}


def _within(call: Call) -> By:
    """An administrator's rights, narrowed to the tenant of the path. Raises Refused(NOT_FOUND)."""
    tenancy.describe(call.rt, call.params["id"])
    return _by(call).within(call.params["id"])


def _user(detail: users.UserDetail) -> Reply:
    return tagged(documents.user(detail), detail.info.version)


def _roles(detail: users.UserDetail) -> Reply:
    return tagged({"roles": list(detail.info.roles)}, detail.info.version)


def _application(info: clients.ApplicationInfo) -> Reply:
    return tagged(documents.application(info), info.version)


def _tenant(info: tenancy.TenantInfo) -> Reply:
    return tagged(documents.tenant(info), info.version)
