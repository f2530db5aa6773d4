"""Group L: a tenant administered by its own owners (docs/interfaces.md), always the one that `X-Tenant-Id` names.

Who may call is decided in `core.access.passage` before anything else of a request is read, and carried into the use cases by a `By` that
knows no other tenant. Administrators of the whole service may call these routes too. What is another tenant's is not found.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from marshmallow import Schema, fields

from identity import documents, paging
from identity.core.access import passage
from identity.core.admin import invitations, owners
from identity.core.admin.by import By
from identity.core.clients.applications import ApplicationInfo
from identity.core.clients.secrets import SecretInfo
from identity.core.people import tenancy
from identity.core.record import audit
from identity.errors import (
    CONFLICT,
    FORBIDDEN,
    INVALID_TOKEN,
    KEY_MISMATCH,
    LOCKED_OUT,
    MISSING_TENANT,
    NOT_FOUND,
    RATE_LIMITED,
    STALE_LOGIN,
    TOKEN_EXPIRED,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    VALIDATION,
)
from identity.instruments.limits import Policy
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects import machine_schemas, tenant_schemas
from identity.wire.dialects.lists import PAGING, changes_of, flag, page, renamed, seen_versions, tagged
from identity.wire.endpoint import Call, Dialect, Reads, Reply
from identity.wire.fields import Body, Change, Flag, Message, Names, Text, Whole

tenant = Dialect("L: tenants", reads=Reads.BEARER_OR_KEY, owners=True, limit=Policy.STANDARD)

_ACKNOWLEDGED: Final = {"message": "acknowledged"}
_ALWAYS: Final = (
    UNAUTHENTICATED,
    INVALID_TOKEN,
    TOKEN_EXPIRED,
    KEY_MISMATCH,
    LOCKED_OUT,
    RATE_LIMITED,
    TWO_CREDENTIALS,
    MISSING_TENANT,
    FORBIDDEN,
    NOT_FOUND,
    VALIDATION,
)
_Handler = Callable[[Call], Reply]


class NewApplication(Body):
    """An application of the tenant to register. It has no roles: those reach beyond the tenant."""

    name = Text(required=True, max_length=200)
    scopes = Names()
    audiences = Names()
    tokenSeconds = Whole(least=60, most=86_400)
    tokenReuseSeconds = Whole(least=0, most=43_200)
    jwks = fields.Dict(keys=fields.String())


class ApplicationChange(Change):
    """What of an application to change; null takes its own token life or key set away."""

    name = Text(max_length=200)
    scopes = Names()
    audiences = Names()
    tokenSeconds = Whole(least=60, most=86_400, allow_none=True)
    tokenReuseSeconds = Whole(least=0, most=43_200)
    jwks = fields.Dict(keys=fields.String(), allow_none=True)
    enabled = Flag()


class MemberAnswer(Schema):
    """A member as the owners of the tenant see one."""

    userID = fields.String(required=True)
    alias = fields.String(required=True)
    fullName = fields.String(required=True)
    email = fields.String(required=True)
    roles = fields.List(fields.String(), required=True)


class EventAnswer(Schema):
    """An event of the tenant: who did what; `genuine` is false for a row that was edited after it was written."""

    eventID = fields.String(required=True)
    at = schemas.Seconds(required=True)
    action = fields.String(required=True)
    actor = fields.String(required=True)
    target = fields.String(required=True)
    data = fields.Dict(required=True)
    genuine = fields.Boolean(required=True)


class LimitsAnswer(Schema):
    """The budgets in force for the tenant, and which of them are its own."""

    limits = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    own = fields.List(fields.String(), required=True)


def _list(path: str, plural: str, item: type[Schema]) -> Callable[[_Handler], _Handler]:
    """Declare a route that lists a page of things."""
    answer = schemas.page_of(plural, item)
    return tenant.endpoint("GET", path, answer=answer, query=PAGING, ignores_body=True, refusals=_ALWAYS)


def _deed(
    method: str,
    path: str,
    *,
    body: type[Schema] | None = None,
    answer: type[Schema] = Message,
    query: tuple[str, ...] = (),
    recent: bool = False,
    credential: bool = False,
) -> Callable[[_Handler], _Handler]:
    """Declare a route that changes something."""
    refusals = (*_ALWAYS, CONFLICT, *((STALE_LOGIN,) if recent else ()))
    return tenant.endpoint(
        method,
        path,
        body=body,
        answer=answer,
        query=query,
        status=202,
        refusals=refusals,
        recent_login=recent,
        makes_credential=credential,
    )


@tenant.endpoint("GET", "/tenant", answer=tenant_schemas.TenantAnswer, ignores_body=True, refusals=_ALWAYS)
def show_tenant(call: Call) -> Reply:
    """Show the tenant."""
    info = tenancy.describe(call.rt, call.tenant)
    return tagged(documents.tenant(info), info.version)


# Members.


@_list("/tenant/members", "members", MemberAnswer)
def list_members(call: Call) -> Reply:
    """List the members of the tenant and their roles in it."""
    return page(
        call,
        "members",
        documents.tenant_member,
        lambda part: owners.list_members(call.rt, _by(call), part),
    )


@_deed("PUT", "/tenant/member/{userID}", body=tenant_schemas.MemberBody, answer=MemberAnswer, recent=True)
def set_member(call: Call) -> Reply:
    """Give a member exactly these roles; who is no member yet is invited. The last owner stays one."""
    roles = renamed(call.body, newRole="new_role")
    return Reply(documents.tenant_member(owners.set_roles(call.rt, _by(call), call.params["userID"], **roles)))


@_deed("DELETE", "/tenant/member/{userID}", recent=True)
def remove_member(call: Call) -> Reply:
    """End a membership; the user's account and what they have elsewhere is not touched. The last owner stays."""
    owners.end_membership(call.rt, _by(call), call.params["userID"])
    return Reply(_ACKNOWLEDGED)


# Invitations.


@_list("/tenant/invitations", "invitations", tenant_schemas.InvitationAnswer)
def list_invitations(call: Call) -> Reply:
    """List the invitations that wait to be accepted, newest first."""
    return page(
        call,
        "invitations",
        documents.invitation,
        lambda part: invitations.listing(call.rt, _by(call), part),
    )


@_deed("POST", "/tenant/invitations", body=tenant_schemas.InvitationBody, answer=tenant_schemas.InvitationAnswer)
def invite(call: Call) -> Reply:
    """Mail an invitation; the answer is the same whether or not anybody has the address."""
    options = renamed(call.body, expiresIn="expires_in", portalURL="portal_url", newRole="new_role")
    return Reply(documents.invitation(invitations.invite(call.rt, _by(call), **options)))


@_deed("POST", "/tenant/invitation/{id}/resend", answer=tenant_schemas.InvitationAnswer)
def resend_invitation(call: Call) -> Reply:
    """Mail a new link for an invitation; the link before is dead."""
    return Reply(documents.invitation(invitations.resend(call.rt, _by(call), call.params["id"])))


@_deed("DELETE", "/tenant/invitation/{id}")
def withdraw_invitation(call: Call) -> Reply:
    """Withdraw an invitation: its link is dead."""
    invitations.withdraw(call.rt, _by(call), call.params["id"])
    return Reply(_ACKNOWLEDGED)


# Applications.


@_list("/tenant/applications", "applications", schemas.ApplicationAnswer)
def list_applications(call: Call) -> Reply:
    """List the applications of the tenant by their number."""
    return page(
        call,
        "applications",
        documents.application,
        lambda part: owners.list_applications(call.rt, _by(call), part),
    )


@_deed("POST", "/tenant/applications", body=NewApplication, answer=schemas.NewApplicationAnswer, credential=True)
def create_application(call: Call) -> Reply:
    """Register an application of the tenant, with scopes that the tenant may give; its first secret is shown once."""
    options = renamed(call.body, tokenSeconds="token_seconds", tokenReuseSeconds="token_reuse_seconds")
    return Reply(documents.created_application(*owners.create_application(call.rt, _by(call), **options)))


@_deed(
    "PATCH", "/tenant/application/{clientId}", body=ApplicationChange, answer=schemas.ApplicationAnswer, credential=True
)
def change_application(call: Call) -> Reply:
    """Change an application of the tenant; `If-Match` guards against a change in between."""
    names = {"tokenSeconds": "token_seconds", "tokenReuseSeconds": "token_reuse_seconds"}
    changes: dict[str, Any] = renamed(changes_of(call), **names)
    versions = seen_versions(call)
    changed = owners.change_application(call.rt, _by(call), call.params["clientId"], versions=versions, **changes)
    return _application(changed)


@_deed("DELETE", "/tenant/application/{clientId}")
def delete_application(call: Call) -> Reply:
    """Delete an application of the tenant; its secrets and tokens end with it."""
    owners.delete_application(call.rt, _by(call), call.params["clientId"])
    return Reply(_ACKNOWLEDGED)


@_deed(
    "POST",
    "/tenant/application/{clientId}/secret",
    body=machine_schemas.SecretBody,
    answer=machine_schemas.ReplacedSecretAnswer,
    query=("force",),
    credential=True,
)
def add_secret(call: Call) -> Reply:
    """Make a second live secret, which is shown once, so that the first can be retired; a third only with `force`."""
    options = renamed(call.body, expiresIn="expires_in", retireOldAfterQuiet="retire_old_after_quiet")
    options["force"] = options.get("force", False) or flag(call, "force")
    return Reply(documents.created_secret(owners.add_secret(call.rt, _by(call), call.params["clientId"], **options)))


@_list("/tenant/application/{clientId}/secrets", "secrets", machine_schemas.SecretAnswer)
def list_secrets(call: Call) -> Reply:
    """List the secrets of an application of the tenant."""
    found = owners.list_secrets(call.rt, _by(call), call.params["clientId"])
    return page(call, "secrets", documents.secret, lambda part: paging.cut(found, part, _age))


def _age(secret: SecretInfo) -> tuple[Any, ...]:
    """Where a secret stands among those of its application: it gets one at a time, so no two are of one moment."""
    return (secret.created_at,)


@_deed("DELETE", "/tenant/application/{clientId}/secret/{secretID}", recent=True, query=("force",))
def delete_secret(call: Call) -> Reply:
    """End a secret and every token that it earned; one that was used in the last 24 hours only with `force=true`."""
    owners.delete_secret(
        call.rt, _by(call), call.params["clientId"], call.params["secretID"], force=flag(call, "force")
    )
    return Reply(_ACKNOWLEDGED)


@_deed(
    "POST",
    "/tenant/application/{clientId}/trust",
    body=machine_schemas.TrustBody,
    answer=machine_schemas.TrustAnswer,
    credential=True,
)
def add_trust(call: Call) -> Reply:
    """Let an application of the tenant prove itself with the tokens of its platform, so that it needs no secret."""
    options = renamed(call.body, expiresIn="expires_in")
    return Reply(documents.trust(owners.add_trust(call.rt, _by(call), call.params["clientId"], **options)))


@_list("/tenant/application/{clientId}/trusts", "trusts", machine_schemas.TrustAnswer)
def list_trusts(call: Call) -> Reply:
    """List whose tokens an application of the tenant may prove itself with."""
    found = owners.list_trusts(call.rt, _by(call), call.params["clientId"])
    return page(call, "trusts", documents.trust, lambda part: paging.cut(found, part, attrgetter("created_at", "id")))


@_deed("DELETE", "/tenant/application/{clientId}/trust/{trustID}", recent=True)
def remove_trust(call: Call) -> Reply:
    """End a trust of an application of the tenant, and every token that it earned."""
    owners.remove_trust(call.rt, _by(call), call.params["clientId"], call.params["trustID"])
    return Reply(_ACKNOWLEDGED)


# What happened, and how much may.


@_list("/tenant/audit", "events", EventAnswer)
def list_events(call: Call) -> Reply:
    """List the events of the tenant, newest first."""
    return page(
        call,
        "events",
        documents.tenant_event,
        lambda part: audit.listing(call.rt, part, tenant=call.tenant),
    )


@tenant.endpoint("GET", "/tenant/limits", answer=LimitsAnswer, ignores_body=True, refusals=_ALWAYS)
def show_limits(call: Call) -> Reply:
    """Show the budgets in force for the tenant."""
    return Reply(passage.budgets(call.rt, call.tenant))


def _by(call: Call) -> By:
    return By(call.caller.subject, call.origin).within(call.tenant)


def _application(info: ApplicationInfo) -> Reply:
    return tagged(documents.application(info), info.version)
