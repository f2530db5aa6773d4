"""Group H: the sessions, key pairs and addresses of users."""

from __future__ import annotations

from identity import documents
from identity.core.admin import export, importing_keypairs, on_behalf, seek
from identity.core.clients import keypairs
from identity.core.clients.keypairs import MAX_DAYS
from identity.core.tokens import sessions
from identity.errors import MALFORMED, TOO_LARGE, UNSUPPORTED_MEDIA, VALIDATION, Refused
from identity.wire.dialects import admin_record_schemas as records
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects import machine_schemas
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
from identity.wire.dialects.lists import flag, one, page, whole
from identity.wire.endpoint import Call, Reply


@deed("POST", "/admin/user/{id}/session", body=schemas.SessionBody, answer=schemas.NewSessionAnswer)
def open_session(call: Call) -> Reply:
    """Open a session of a user, who gets the code for it by mail."""
    return Reply(
        documents.waiting_session(on_behalf.open_session(call.rt, by_of(call), call.params["id"], **call.body))
    )


@deed("POST", "/admin/user/{id}/keypair", body=schemas.KeyPairBody, answer=schemas.NewKeyPairAnswer)
def create_keypair(call: Call) -> Reply:
    """Make a key pair of a user, who gets the code for it by mail; the secret is shown once."""
    made = on_behalf.create_keypair(call.rt, by_of(call), call.params["id"], **call.body)
    return Reply(documents.requested_keypair(made))


@deed("POST", "/admin/user/{id}/email", body=schemas.AddressBody, answer=schemas.NewEmailAnswer)
def add_email(call: Call) -> Reply:
    """Add an address to a user; the code for it goes there."""
    info, verification_id = on_behalf.add_email(call.rt, by_of(call), call.params["id"], call.body["address"])
    return Reply({"emailID": info.id, "address": info.address, "verificationCodeID": verification_id})


@listing("/admin/sessions", "sessions", schemas.SessionAnswer, filters=("user", "tenant", "application"))
def list_sessions(call: Call) -> Reply:
    """List living sessions, newest first."""
    return page(
        call,
        "sessions",
        documents.session,
        lambda part: sessions.listing(call.rt, part, **_owners(call)),
    )


@admin.endpoint(
    "POST",
    "/admin/keypairs/import",
    answer=records.ImportAnswer,
    query=("prefix", "withoutPrefix", "days", "dryRun"),
    status=202,
    lines=True,
    max_body=IMPORT_BYTES,
    refusals=(*ALWAYS, TOO_LARGE, UNSUPPORTED_MEDIA, MALFORMED),
)
def import_keypairs(call: Call) -> Reply:
    """Take over a key pair of another system for each line of NDJSON.

    Fields: `user, apiKey, apiSecret | secretHash, name, expireAt, cidrs, roles, tenants`. Keys and secrets stay as their owners have
    them. `secretHash` is like `sha256:<hex>`; `prefix` is what all the keys begin with (`withoutPrefix=true` where they share none:
    each made-up key of their length then costs a read).
    """
    prefix = "" if flag(call, "withoutPrefix") else one(call, "prefix")
    days = whole(call, "days", default=MAX_DAYS, most=MAX_DAYS)
    return imported(
        call,
        lambda rows: importing_keypairs.take(
            call.rt, by_of(call), rows, prefix=prefix, days=days, dry_run=flag(call, "dryRun")
        ),
    )


@listing("/admin/keypairs", "keypairs", schemas.KeyPairAnswer, filters=("user",))
def list_keypairs(call: Call) -> Reply:
    """List key pairs, oldest first."""
    return page(
        call,
        "keypairs",
        documents.keypair,
        lambda part: keypairs.listing(call.rt, part, user=sought(call, "user", seek.user_id)),
    )


@deed("DELETE", "/admin/sessions", answer=records.EndedAnswer, query=("user", "tenant", "application", "all"))
def revoke_sessions(call: Call) -> Reply:
    """End every session of a `user`, of the members of a `tenant`, that an `application` asked for, or (`all=true`) of everybody."""
    owners = {name: value for name, value in _owners(call).items() if value is not None}
    if len(owners) + flag(call, "all") != 1:
        raise Refused(VALIDATION.saying("Name one of user, tenant, application, or all=true"))
    return Reply({"ended": on_behalf.revoke_sessions(call.rt, by_of(call), **owners)})


@deed("PUT", "/admin/user/{id}/unlock", answer=records.UnlockedAnswer)
def unlock_user(call: Call) -> Reply:
    """Forget the failed attempts at an account, so that its owner can sign in at once."""
    return Reply({"forgotten": on_behalf.unlock(call.rt, by_of(call), call.params["id"])})


@show("/admin/user/{id}/export", records.ExportAnswer)
def export_user(call: Call) -> Reply:
    """Everything that is held about a person, for that person; no secret, no hash."""
    return Reply(documents.person(export.gather(call.rt, call.params["id"])))


@deed("PUT", "/admin/session/{id}/verify")
def verify_session(call: Call) -> Reply:
    """Make a waiting session usable without its code."""
    on_behalf.verify_session(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/keypair/{id}/verify")
def verify_keypair(call: Call) -> Reply:
    """Make a waiting key pair usable without its code."""
    on_behalf.verify_keypair(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed(
    "POST",
    "/admin/keypair/{id}/rotate",
    body=machine_schemas.RotationBody,
    answer=machine_schemas.RotatedKeyPairAnswer,
)
def rotate_keypair(call: Call) -> Reply:
    """Give a key pair of a user a new secret, shown once; the one before it works for `graceSeconds` more."""
    grace = call.body.get("graceSeconds", 0)
    info, secret, until = on_behalf.rotate_keypair(call.rt, by_of(call), call.params["id"], grace_seconds=grace)
    return Reply(
        {
            "apiKey": info.api_key,
            "apiSecret": secret.reveal(),
            "keyID": info.id,
            "expireAt": documents.seconds(info.expires_at),
            "previousExpireAt": documents.seconds(until),
        }
    )


@deed("PUT", "/admin/email/{id}/verify")
def verify_email(call: Call) -> Reply:
    """Vouch that an address is its user's."""
    on_behalf.verify_email(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/email/preferred", body=schemas.PreferredBody)
def prefer_email(call: Call) -> Reply:
    """Have a user's notices and codes sent to this address of theirs."""
    on_behalf.prefer_email(call.rt, by_of(call), call.body["emailID"])
    return Reply(ACKNOWLEDGED)


@deed("DELETE", "/admin/session/{id}")
def revoke_session(call: Call) -> Reply:
    """End a session."""
    on_behalf.revoke_session(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("DELETE", "/admin/keypair/{id}")
def revoke_keypair(call: Call) -> Reply:
    """Delete a key pair."""
    on_behalf.revoke_keypair(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("DELETE", "/admin/email/{id}")
def remove_email(call: Call) -> Reply:
    """Delete an address, but not the last verified one of its user."""
    on_behalf.remove_email(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


def _owners(call: Call) -> dict[str, str | None]:
    """Whose sessions are meant."""
    return {
        "user": sought(call, "user", seek.user_id),
        "tenant": sought(call, "tenant", seek.tenant_id),
        "application": sought(call, "application", seek.client_id),
    }
