"""Group H: applications, their secrets and trusts, and what ends soon."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

from identity import documents, paging
from identity.core.admin import applications, seek
from identity.core.clients import applications as clients
from identity.core.clients import expiry, issuers, secrets
from identity.core.clients.secrets import SecretInfo
from identity.errors import NOT_FOUND, VALIDATION, Refused
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects import machine_schemas
from identity.wire.dialects.admin_dialect import ACKNOWLEDGED, by_of, deed, listing, show, sought
from identity.wire.dialects.lists import changes_of, flag, one, page, renamed, seen_versions, tagged, whole
from identity.wire.endpoint import Call, Reply

_NAMES: Final = {
    "tokenSeconds": "token_seconds",
    "tokenReuseSeconds": "token_reuse_seconds",
    "tokensPerDay": "tokens_per_day",
    "tokenClaims": "token_claims",
    "newRole": "new_role",
}


@deed("POST", "/admin/application", body=schemas.NewApplication, answer=schemas.NewApplicationAnswer)
def create_application(call: Call) -> Reply:
    """Register an application; its first secret is shown once."""
    options = renamed(call.body, **_NAMES)
    return Reply(documents.created_application(*applications.create_application(call.rt, by_of(call), **options)))


@listing("/admin/applications", "applications", schemas.ApplicationAnswer, filters=("tenant", "name", "appId", "q"))
def list_applications(call: Call) -> Reply:
    """List applications by their number."""
    return page(
        call,
        "applications",
        documents.application,
        lambda part: clients.listing(
            call.rt,
            part,
            tenant=sought(call, "tenant", seek.tenant_id),
            name=one(call, "name"),
            app_id=whole(call, "appId", default=0, most=9_999_999) or None,
            q=one(call, "q"),
        ),
    )


@show("/admin/application/{clientId}", schemas.ApplicationAnswer)
def show_application(call: Call) -> Reply:
    """Show an application; the `ETag` guards a change of it."""
    return _application(clients.get(call.rt, call.params["clientId"]))


@deed("PATCH", "/admin/application/{clientId}", body=schemas.ApplicationChange, answer=schemas.ApplicationAnswer)
def change_application(call: Call) -> Reply:
    """Change an application; disabling it ends its tokens at once. `If-Match` guards against a change in between."""
    changes = renamed(changes_of(call), **_NAMES)
    versions = seen_versions(call)
    return _application(
        applications.change_application(call.rt, by_of(call), call.params["clientId"], versions=versions, **changes)
    )


@deed("DELETE", "/admin/application/{clientId}")
def delete_application(call: Call) -> Reply:
    """Delete an application; its secrets and tokens end with it."""
    applications.delete_application(call.rt, by_of(call), call.params["clientId"])
    return Reply(ACKNOWLEDGED)


@deed(
    "POST",
    "/admin/application/{clientId}/secret",
    body=machine_schemas.RotatingSecretBody,
    answer=machine_schemas.ReplacedSecretAnswer,
    query=("force",),
)
def add_secret(call: Call) -> Reply:
    """Make a second live secret, which is shown once, so that the first can be retired.

    The first ends `oldExpiresIn` seconds from now, or, with `retireOldAfterQuiet`, by itself once nobody has used it for so many seconds.
    A third is refused, and the refusal names the last use of the older one; `force` ends the one used longest ago.
    """
    force = call.body.get("force", False) or flag(call, "force")
    if "oldExpiresIn" in call.body:
        if call.body.keys() & {"expiresIn", "retireOldAfterQuiet"}:
            raise Refused(VALIDATION.saying("oldExpiresIn goes with neither of the others"), field="oldExpiresIn")
        old = call.body["oldExpiresIn"]
        made = applications.rotate_secret(call.rt, by_of(call), call.params["clientId"], expires_in=old, force=force)
        return Reply(documents.created_secret(made))
    made = applications.add_secret(
        call.rt,
        by_of(call),
        call.params["clientId"],
        expires_in=call.body.get("expiresIn"),
        retire_old_after_quiet=call.body.get("retireOldAfterQuiet"),
        force=force,
    )
    return Reply(documents.created_secret(made))


@listing("/admin/application/{clientId}/secrets", "secrets", machine_schemas.SecretAnswer, refusals=(NOT_FOUND,))
def list_secrets(call: Call) -> Reply:
    """List the secrets of an application: when and from where each was last used, and by which addresses in the last 24 hours."""
    found = secrets.secrets_of(call.rt, call.params["clientId"])
    return page(call, "secrets", documents.secret, lambda part: paging.cut(found, part, _age))


def _age(secret: SecretInfo) -> tuple[Any, ...]:
    """Where a secret stands among those of its application: it gets one at a time, so no two are of one moment."""
    return (secret.created_at,)


@deed("DELETE", "/admin/application/{clientId}/secret/{secretID}", query=("force",))
def delete_secret(call: Call) -> Reply:
    """End a secret and every token that it earned; one that was used in the last 24 hours only with `force=true`."""
    applications.delete_secret(
        call.rt, by_of(call), call.params["clientId"], call.params["secretID"], force=flag(call, "force")
    )
    return Reply(ACKNOWLEDGED)


@deed("POST", "/admin/application/{clientId}/trust", body=machine_schemas.TrustBody, answer=machine_schemas.TrustAnswer)
def add_trust(call: Call) -> Reply:
    """Let an application prove itself with the tokens of its platform, so that it needs no secret.

    `subject` is exact, or ends in one `*`; `claims` are exact. Without `jwks` the issuer is one of `IDENTITY_TRUSTED_ISSUERS`.
    """
    options = renamed(call.body, expiresIn="expires_in")
    return Reply(documents.trust(applications.add_trust(call.rt, by_of(call), call.params["clientId"], **options)))


@listing("/admin/application/{clientId}/trusts", "trusts", machine_schemas.TrustAnswer, refusals=(NOT_FOUND,))
def list_trusts(call: Call) -> Reply:
    """List whose tokens an application may prove itself with, and when and from where each trust was last used."""
    found = issuers.trusts_of(call.rt, call.params["clientId"])
    return page(call, "trusts", documents.trust, lambda part: paging.cut(found, part, attrgetter("created_at", "id")))


@deed("DELETE", "/admin/application/{clientId}/trust/{trustID}")
def remove_trust(call: Call) -> Reply:
    """End a trust and every token that it earned."""
    applications.remove_trust(call.rt, by_of(call), call.params["clientId"], call.params["trustID"])
    return Reply(ACKNOWLEDGED)


@listing("/admin/expiring", "expiring", machine_schemas.EndingAnswer, filters=("days",))
def list_expiring(call: Call) -> Reply:
    """List everything that ends within `days` (30 by default), soonest first."""
    found = expiry.endings(call.rt, days=whole(call, "days", default=30, most=3650))
    return page(call, "expiring", documents.ending, lambda part: paging.cut(found, part, expiry.ORDER))


def _application(info: clients.ApplicationInfo) -> Reply:
    return tagged(documents.application(info), info.version)
