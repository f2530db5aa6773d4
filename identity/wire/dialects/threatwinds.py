"""Group C: sessions, emails, key pairs and users, as ThreatWinds documents them (docs/interfaces.md)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from marshmallow import Schema, fields

from identity.canonical import get_address
from identity.core.access import own, passage
from identity.core.access.callers import Caller
from identity.core.admin import erasure
from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyInfo
from identity.core.people import accounts, addresses
from identity.core.signin import by_code, by_password, sign_up
from identity.core.signin.by_code import Waiting
from identity.core.tokens import sessions
from identity.core.tokens.claims import AccessToken
from identity.core.tokens.sessions import Live
from identity.errors import (
    ACCESS_WINDOW_EXPIRED,
    CONFLICT,
    FORBIDDEN,
    INVALID_CODE,
    INVALID_TOKEN,
    KEY_MISMATCH,
    LOCKED_OUT,
    MFA_REQUIRED,
    NOT_FOUND,
    RATE_LIMITED,
    REGISTRATION_DISABLED,
    STALE_LOGIN,
    TOKEN_EXPIRED,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    VALIDATION,
    Refused,
)
from identity.instruments.limits import Policy
from identity.wire.endpoint import ENVELOPE_400, Call, Dialect, Reads, Reply
from identity.wire.fields import Body, Code, Id, Message, Names, Text, Whole

threatwinds = Dialect(
    "C: sessions, emails, key pairs, users", mounts=("", "/api/auth/v2"), shape=ENVELOPE_400, status=202
)

_ACKNOWLEDGED = {"message": "acknowledged"}
_BEARER = (UNAUTHENTICATED, INVALID_TOKEN, TOKEN_EXPIRED, FORBIDDEN, RATE_LIMITED)
_KEY = (UNAUTHENTICATED, KEY_MISMATCH, LOCKED_OUT, RATE_LIMITED)
_BEARER_OR_KEY = (*_BEARER, KEY_MISMATCH, LOCKED_OUT, TWO_CREDENTIALS)
_CODE = (INVALID_CODE, VALIDATION, RATE_LIMITED)


# What is sent.


class SessionBody(Body):
    """Who asks for a session, and what they call it."""

    email = Text(required=True, max_length=320)
    kind = Text(max_length=64)


class CodeBody(Body):
    """A code that came by mail, and what it was sent for."""

    verificationCodeID = Id(required=True)
    code = Code(required=True)


class SessionCodeBody(CodeBody):
    """The emailed code, and the second factor of a user who has one."""

    totpCode = Code()
    recoveryCode = Code()


class AddressBody(Body):
    """A mail address."""

    address = Text(required=True, max_length=320)


class PreferredBody(Body):
    """Which address to prefer."""

    emailID = Id(required=True)


class KeyPairBody(Body):
    """A key pair to make: how it is called, how long it lives, and from which networks it may be used (none: any)."""

    name = Text(required=True, max_length=200)
    days = Whole(required=True, least=1, most=keypairs.MAX_DAYS)
    cidrs = fields.List(Text(max_length=64))
    roles = Names(allow_none=True)
    tenants = Names(allow_none=True)


class RotationBody(Body):
    """How long the secret before the new one still works."""

    graceSeconds = Whole(least=0, most=keypairs.MAX_GRACE_SECONDS)


class UserBody(Body):
    """Who registers."""

    email = Text(required=True, max_length=320)
    fullName = Text(required=True, max_length=200)
    alias = Text(required=True, max_length=64)


# What is answered.


class WaitingAnswer(Schema):
    """A session that waits for its code."""

    bearer = fields.String(required=True)
    sessionID = fields.UUID(required=True)
    expireAt = fields.Integer(required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)
    kind = fields.String(required=True)
    verificationCodeID = fields.UUID(required=True)


class SessionAnswer(Schema):
    """A session, its user and what they may do."""

    sessionID = fields.UUID(required=True)
    userID = fields.UUID(required=True)
    alias = fields.String(required=True)
    fullName = fields.String(required=True)
    expireAt = fields.Integer(required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)
    kind = fields.String(required=True)
    verified = fields.Boolean(required=True)
    roles = fields.List(fields.String(), required=True)
    groups = fields.List(fields.String(), required=True)
    tenants = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), required=True)


class ListedSession(Schema):
    """A session in a list."""

    sessionID = fields.UUID(required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)
    expireAt = fields.Integer(required=True)
    kind = fields.String(required=True)
    current = fields.Boolean(required=True)


class SessionsAnswer(Schema):
    """The caller's sessions."""

    sessions = fields.List(fields.Nested(ListedSession), required=True)


class BearerToken(Schema):
    """A signed token."""

    accessToken = fields.String(required=True)
    tokenType = fields.String(required=True)
    expiresIn = fields.Integer(required=True)


class VerificationAnswer(Schema):
    """What the code that was mailed belongs to."""

    verificationCodeID = fields.UUID(required=True)


class ListedEmail(Schema):
    """An address of the caller."""

    emailID = fields.UUID(required=True)
    address = fields.String(required=True)
    verified = fields.Boolean(required=True)
    preferred = fields.Boolean(required=True)


class EmailsAnswer(Schema):
    """The caller's addresses."""

    emails = fields.List(fields.Nested(ListedEmail), required=True)


class NewKeyPairAnswer(Schema):
    """A key pair that waits for its code; the secret is shown here and never again."""

    apiKey = fields.String(required=True)
    apiSecret = fields.String(required=True)
    keyID = fields.UUID(required=True)
    keyName = fields.String(required=True)
    expireAt = fields.Integer(required=True)
    verified = fields.Boolean(required=True)
    verificationCodeID = fields.UUID(required=True)


class RotatedKeyPairAnswer(Schema):
    """A new secret of a key pair, shown here and never again, and when the one before it ends."""

    apiKey = fields.String(required=True)
    apiSecret = fields.String(required=True)
    keyID = fields.UUID(required=True)
    expireAt = fields.Integer(required=True)
    previousExpireAt = fields.Integer(required=True)


class KeyPairAnswer(Schema):
    """A proven key pair, its user and what they may do."""

    apiKey = fields.String(required=True)
    keyID = fields.UUID(required=True)
    keyName = fields.String(required=True)
    expireAt = fields.Integer(required=True)
    verified = fields.Boolean(required=True)
    userID = fields.UUID(required=True)
    userName = fields.String(required=True)
    userAlias = fields.String(required=True)
    roles = fields.List(fields.String(), required=True)
    groups = fields.List(fields.String(), required=True)
    tenants = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), required=True)


class ListedKeyPair(Schema):
    """A key pair in a list: its identifier, never its secret."""

    apiKey = fields.String(required=True)
    keyID = fields.UUID(required=True)
    keyName = fields.String(required=True)
    expireAt = fields.Integer(required=True)
    verified = fields.Boolean(required=True)
    lastUsedAt = fields.Integer(required=True, allow_none=True)
    lastUsedIp = fields.String(required=True, allow_none=True)
    cidrs = fields.List(fields.String(), required=True)
    roles = fields.List(fields.String(), required=True, allow_none=True)
    tenants = fields.List(fields.String(), required=True, allow_none=True)


class KeyPairsAnswer(Schema):
    """The caller's key pairs."""

    keys = fields.List(fields.Nested(ListedKeyPair), required=True)


class AliasAnswer(Schema):
    """How a user is called."""

    alias = fields.String(required=True)


class UserIdAnswer(Schema):
    """Who has an address."""

    userID = fields.UUID(required=True)


# Sessions.


@threatwinds.endpoint(
    "POST",
    "/session",
    limit=Policy.AUTH,
    body=SessionBody,
    answer=WaitingAnswer,
    refusals=(VALIDATION, RATE_LIMITED),
)
def create_session(call: Call) -> Reply:
    """Ask for a session: a code goes to the address, and the bearer works once it has come back."""
    waiting = by_code.begin(call.rt, call.origin, call.body["email"], kind=call.body.get("kind", by_code.KIND))
    return Reply(_waiting(waiting))


@threatwinds.endpoint(
    "PUT",
    "/session/verification",
    limit=Policy.AUTH,
    body=SessionCodeBody,
    answer=Message,
    refusals=(*_CODE, MFA_REQUIRED, ACCESS_WINDOW_EXPIRED, LOCKED_OUT),
)
def verify_session(call: Call) -> Reply:
    """Make a session usable by the emailed code; a user with TOTP sends `totpCode` or `recoveryCode` with it."""
    by_code.complete(
        call.rt,
        call.origin,
        call.body["verificationCodeID"],
        call.body["code"],
        totp_code=call.body.get("totpCode"),
        recovery_code=call.body.get("recoveryCode"),
    )
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "GET",
    "/session",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    status=200,
    hot=True,
    answer=SessionAnswer,
    refusals=_BEARER,
)
def validate_session(call: Call) -> Reply:
    """Tell whose the session is and what they may do now."""
    live = _live(call.caller)
    session = live.session
    return Reply(
        {
            "sessionID": session.id,
            "userID": live.user_id,
            "alias": live.alias,
            "fullName": live.full_name,
            "expireAt": _seconds(session.expires_at),
            "ip": session.ip,
            "userAgent": session.user_agent,
            "kind": session.kind,
            "verified": session.verified,
            **_rights(call),
        }
    )


@threatwinds.endpoint(
    "PUT", "/session/extend", reads=Reads.BEARER, limit=Policy.STANDARD, answer=Message, refusals=_BEARER
)
def extend_session(call: Call) -> Reply:
    """Slide the end of the session, never past its absolute end."""
    own.extend_session(call.rt, call.origin, _live(call.caller))
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "DELETE",
    "/session/{session_id}",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    answer=Message,
    refusals=(*_BEARER, NOT_FOUND),
)
def revoke_session(call: Call) -> Reply:
    """End a session of the caller; doing it twice is the same."""
    own.end_session(call.rt, call.origin, _live(call.caller), call.params["session_id"])
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "GET",
    "/sessions",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    status=200,
    answer=SessionsAnswer,
    refusals=_BEARER,
)
def list_sessions(call: Call) -> Reply:
    """The caller's living sessions, of every dialect, newest first."""
    live = _live(call.caller)
    listed = [
        {
            "sessionID": session.id,
            "ip": session.ip,
            "userAgent": session.user_agent,
            "expireAt": _seconds(session.expires_at),
            "kind": session.kind,
            "current": session.id == live.session.id,
        }
        for session in sessions.listing_of(call.rt, live.user_id)
    ]
    return Reply({"sessions": listed})


@threatwinds.endpoint(
    "POST",
    "/session/token",
    headers=("Origin",),
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    answer=BearerToken,
    refusals=(*_BEARER, VALIDATION),
)
def trade_session(call: Call) -> Reply:
    """Trade the bearer for a one-hour token that other services verify."""
    seconds = call.rt.settings.access_token_seconds
    return Reply(_token(sessions.token_for(call.rt, _live(call.caller), seconds=seconds, resource=_resource(call))))


# Emails.


@threatwinds.endpoint(
    "POST",
    "/email",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    body=AddressBody,
    answer=VerificationAnswer,
    refusals=(*_BEARER, VALIDATION, CONFLICT),
)
def add_email(call: Call) -> Reply:
    """Add an address to the caller's account and mail it a code."""
    verification_id = own.add_address(call.rt, call.origin, _live(call.caller), call.body["address"])
    return Reply({"verificationCodeID": verification_id})


@threatwinds.endpoint(
    "POST",
    "/email/verification",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    body=AddressBody,
    answer=VerificationAnswer,
    refusals=(*_BEARER, VALIDATION, NOT_FOUND, CONFLICT),
)
def resend_email_code(call: Call) -> Reply:
    """Mail a new code to an unverified address of the caller; the old one dies."""
    verification_id = own.resend_address_code(call.rt, call.origin, _live(call.caller), call.body["address"])
    return Reply({"verificationCodeID": verification_id})


@threatwinds.endpoint(
    "PUT", "/email/verification", limit=Policy.AUTH, body=CodeBody, answer=Message, refusals=(*_CODE, CONFLICT)
)
def verify_email(call: Call) -> Reply:
    """Prove an address by the code that was mailed to it."""
    addresses.prove(call.rt, call.origin, call.body["verificationCodeID"], call.body["code"])
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "GET", "/emails", reads=Reads.BEARER, limit=Policy.STANDARD, status=200, answer=EmailsAnswer, refusals=_BEARER
)
def list_emails(call: Call) -> Reply:
    """The caller's addresses, oldest first."""
    listed = [
        {"emailID": each.id, "address": each.address, "verified": each.verified, "preferred": each.preferred}
        for each in addresses.listing_of(call.rt, _live(call.caller).user_id)
    ]
    return Reply({"emails": listed})


@threatwinds.endpoint(
    "PUT",
    "/email/preferred",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    body=PreferredBody,
    answer=Message,
    refusals=(*_BEARER, VALIDATION, NOT_FOUND, CONFLICT),
)
def prefer_email(call: Call) -> Reply:
    """Send the caller's codes and notices to this verified address from now on."""
    own.prefer_address(call.rt, call.origin, _live(call.caller), call.body["emailID"])
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "DELETE",
    "/email/{email_id}",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    answer=Message,
    refusals=(*_BEARER, NOT_FOUND, CONFLICT),
)
def remove_email(call: Call) -> Reply:
    """Remove an address of the caller; the last verified one stays."""
    own.remove_address(call.rt, call.origin, _live(call.caller), call.params["email_id"])
    return Reply(_ACKNOWLEDGED)


# Key pairs.


@threatwinds.endpoint(
    "POST",
    "/keypair",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    body=KeyPairBody,
    answer=NewKeyPairAnswer,
    refusals=(*_BEARER, VALIDATION, CONFLICT),
)
def create_keypair(call: Call) -> Reply:
    """Make a key pair; it works once the code has come back that is mailed to the caller."""
    requested = own.request_keypair(call.rt, call.origin, _live(call.caller), **call.body)
    info = requested.info
    return Reply(
        {
            "apiKey": info.api_key,
            "apiSecret": requested.secret.reveal(),
            "keyID": info.id,
            "keyName": info.name,
            "expireAt": _seconds(info.expires_at),
            "verified": info.verified,
            "verificationCodeID": requested.verification_id,
        }
    )


@threatwinds.endpoint("PUT", "/keypair/verification", limit=Policy.AUTH, body=CodeBody, answer=Message, refusals=_CODE)
def verify_keypair(call: Call) -> Reply:
    """Switch a key pair on by the emailed code."""
    keypairs.prove(call.rt, call.origin, call.body["verificationCodeID"], call.body["code"])
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "GET",
    "/keypair",
    reads=Reads.KEY,
    limit=Policy.STANDARD,
    status=200,
    hot=True,
    answer=KeyPairAnswer,
    refusals=_KEY,
)
def validate_keypair(call: Call) -> Reply:
    """Tell whose the key pair is and what they may do now."""
    key = _key(call.caller)
    return Reply(
        {
            "apiKey": key.api_key,
            "keyID": key.id,
            "keyName": key.name,
            "expireAt": _seconds(key.expires_at),
            "verified": key.verified,
            "userID": key.user_id,
            "userName": key.full_name,
            "userAlias": key.alias,
            **_rights(call),
        }
    )


@threatwinds.endpoint(
    "GET", "/keypairs", reads=Reads.BEARER, limit=Policy.STANDARD, status=200, answer=KeyPairsAnswer, refusals=_BEARER
)
def list_keypairs(call: Call) -> Reply:
    """The caller's key pairs, oldest first."""
    listed = [
        {
            "apiKey": each.api_key,
            "keyID": each.id,
            "keyName": each.name,
            "expireAt": _seconds(each.expires_at),
            "verified": each.verified,
            "lastUsedAt": _seconds(each.last_used_at) if each.last_used_at else None,
            "lastUsedIp": each.last_used_ip,
            "cidrs": list(each.cidrs),
            "roles": None if each.rights.roles is None else list(each.rights.roles),
            "tenants": None if each.rights.tenants is None else list(each.rights.tenants),
        }
        for each in keypairs.listing_of(call.rt, _live(call.caller).user_id)
    ]
    return Reply({"keys": listed})


@threatwinds.endpoint(
    "DELETE",
    "/keypair/{key_id}",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    answer=Message,
    refusals=(*_BEARER, NOT_FOUND),
)
def revoke_keypair(call: Call) -> Reply:
    """Delete a key pair of the caller, and end what it has opened."""
    own.revoke_keypair(call.rt, call.origin, _live(call.caller), call.params["key_id"])
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "POST",
    "/keypair/{key_id}/rotate",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    body=RotationBody,
    answer=RotatedKeyPairAnswer,
    refusals=(*_BEARER, NOT_FOUND, VALIDATION),
)
def rotate_keypair(call: Call) -> Reply:
    """Give a key pair of the caller a new secret, shown once; the one before it works for `graceSeconds` more."""
    info, secret, until = own.rotate_keypair(
        call.rt,
        call.origin,
        _live(call.caller),
        call.params["key_id"],
        grace_seconds=call.body.get("graceSeconds", 0),
    )
    return Reply(
        {
            "apiKey": info.api_key,
            "apiSecret": secret.reveal(),
            "keyID": info.id,
            "expireAt": _seconds(info.expires_at),
            "previousExpireAt": _seconds(until),
        }
    )


@threatwinds.endpoint(
    "DELETE", "/keypair", reads=Reads.KEY, limit=Policy.STANDARD, ignores_body=True, answer=Message, refusals=_KEY
)
def end_keypair(call: Call) -> Reply:
    """End the key pair that asks for it, and what it has opened: for a machine that is put out of use."""
    own.end_keypair(call.rt, call.origin, _key(call.caller))
    return Reply(_ACKNOWLEDGED)


@threatwinds.endpoint(
    "POST",
    "/keypair/token",
    headers=("Origin",),
    reads=Reads.KEY,
    limit=Policy.STANDARD,
    answer=BearerToken,
    refusals=(*_KEY, FORBIDDEN, VALIDATION),
)
def trade_keypair(call: Call) -> Reply:
    """Trade the key pair for a one-hour token that other services verify."""
    return Reply(_token(keypairs.trade(call.rt, call.origin, _key(call.caller), resource=_resource(call))))


# Users.


@threatwinds.endpoint(
    "POST",
    "/user",
    limit=Policy.AUTH,
    body=UserBody,
    answer=WaitingAnswer,
    refusals=(REGISTRATION_DISABLED, VALIDATION, CONFLICT, RATE_LIMITED),
)
def register(call: Call) -> Reply:
    """Register: a code goes to the address, and account and bearer work once it has come back."""
    waiting = sign_up.register(
        call.rt,
        call.origin,
        email=call.body["email"],
        full_name=call.body["fullName"],
        alias=call.body["alias"],
    )
    return Reply(_waiting(waiting))


@threatwinds.endpoint(
    "GET",
    "/user/by-email",
    reads=Reads.BEARER_OR_KEY,
    limit=Policy.STANDARD,
    admin=True,
    status=200,
    query=("email",),
    answer=UserIdAnswer,
    refusals=(*_BEARER_OR_KEY, VALIDATION, NOT_FOUND),
)
def find_user(call: Call) -> Reply:
    """Tell administrators whose an address is."""
    given = call.query.get("email", [])
    if len(given) != 1:
        raise Refused(VALIDATION.saying("Send exactly one email query parameter"), field="email")
    user = accounts.find_by_address(call.rt, get_address(given[0]))
    if user is None:
        raise Refused(NOT_FOUND, detail="nobody has that address")
    return Reply({"userID": user.id})


def _show_user(call: Call) -> Reply:
    """Tell how a user is called."""
    return Reply({"alias": accounts.get(call.rt, call.params["user_id"]).alias})


for _path in ("/user/{user_id}", "/user/id/{user_id}"):
    threatwinds.endpoint(
        "GET",
        _path,
        reads=Reads.BEARER_OR_KEY,
        limit=Policy.STANDARD,
        status=200,
        answer=AliasAnswer,
        refusals=(*_BEARER_OR_KEY, NOT_FOUND),
    )(_show_user)


@threatwinds.endpoint(
    "DELETE",
    "/user",
    reads=Reads.BEARER,
    limit=Policy.STANDARD,
    answer=Message,
    refusals=(*_BEARER, STALE_LOGIN, CONFLICT),
)
def erase_user(call: Call) -> Reply:
    """Erase the caller and everything personal about them; needs a recent login."""
    user_id = _live(call.caller).user_id
    call.caller.require_recent_login(call.rt)
    erasure.erase_own(call.rt, call.origin, user_id)
    return Reply(_ACKNOWLEDGED)


def _live(caller: Caller) -> Live:
    """The caller's session. Raises Refused(FORBIDDEN) for an application, which has none."""
    if caller.session is None:
        raise Refused(FORBIDDEN, detail="not a user's session")
    return caller.session


def _key(caller: Caller) -> KeyInfo:
    assert caller.key is not None, "the route reads key pairs only"
    return caller.key


def _rights(call: Call) -> dict[str, Any]:
    caller = call.caller
    return {
        "roles": list(caller.roles),
        "groups": list(caller.groups),
        "tenants": {tenant: list(roles) for tenant, roles in passage.tenants_of(call.rt, caller).items()},
    }


def _resource(call: Call) -> str:
    return by_password.user_resource(call.rt, call.header("origin"))


def _waiting(waiting: Waiting) -> dict[str, Any]:
    session, bearer = waiting.opened.session, waiting.opened.bearer
    assert bearer is not None, "a waiting session is always shown as one"
    return {
        "bearer": bearer.reveal(),
        "sessionID": session.id,
        "expireAt": _seconds(session.expires_at),
        "ip": session.ip,
        "userAgent": session.user_agent,
        "kind": session.kind,
        "verificationCodeID": waiting.verification_id,
    }


def _token(token: AccessToken) -> dict[str, Any]:
    return {"accessToken": token.text, "tokenType": token.token_type, "expiresIn": token.expires_in}


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
