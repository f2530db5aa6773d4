"""Group C: key pairs."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.core.access import own
from identity.core.access.callers import Caller
from identity.core.clients import keypair_proof, keypairs
from identity.core.clients.keypair_proof import KeyInfo
from identity.errors import (
    CONFLICT,
    FORBIDDEN,
    KEY_MISMATCH,
    LOCKED_OUT,
    NOT_FOUND,
    RATE_LIMITED,
    UNAUTHENTICATED,
    VALIDATION,
)
from identity.instruments.limits import Policy
from identity.wire.dialects.threatwinds_dialect import (
    ACKNOWLEDGED,
    CODE_REFUSALS,
    BearerToken,
    CodeBody,
    by_bearer,
    in_seconds,
    live_of,
    resource_of,
    rights_of,
    threatwinds,
    token_answer,
)
from identity.wire.endpoint import Call, Reads, Reply
from identity.wire.fields import Body, Message, Names, Text, Whole

_KEY = (UNAUTHENTICATED, KEY_MISMATCH, LOCKED_OUT, RATE_LIMITED)


# What is sent.


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


# What is answered.


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


# Key pairs.


@by_bearer("POST", "/keypair", body=KeyPairBody, answer=NewKeyPairAnswer, refusals=(VALIDATION, CONFLICT))
def create_keypair(call: Call) -> Reply:
    """Make a key pair; it works once the code has come back that is mailed to the caller."""
    requested = own.request_keypair(call.rt, call.origin, live_of(call.caller), **call.body)
    info = requested.info
    return Reply(
        {
            "apiKey": info.api_key,
            "apiSecret": requested.secret.reveal(),
            "keyID": info.id,
            "keyName": info.name,
            "expireAt": in_seconds(info.expires_at),
            "verified": info.verified,
            "verificationCodeID": requested.verification_id,
        }
    )


@threatwinds.endpoint(
    "PUT", "/keypair/verification", limit=Policy.AUTH, body=CodeBody, answer=Message, refusals=CODE_REFUSALS
)
def verify_keypair(call: Call) -> Reply:
    """Switch a key pair on by the emailed code."""
    keypairs.prove(call.rt, call.origin, call.body["verificationCodeID"], call.body["code"])
    return Reply(ACKNOWLEDGED)


@threatwinds.endpoint(
    "GET",
    "/keypair",
    reads=Reads.KEY,
    limit=Policy.STANDARD,
    status=200,
    hot=True,
    repeats=True,
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
            "expireAt": in_seconds(key.expires_at),
            "verified": key.verified,
            "userID": key.user_id,
            "userName": key.full_name,
            "userAlias": key.alias,
            **rights_of(call),
        }
    )


@by_bearer("GET", "/keypairs", status=200, answer=KeyPairsAnswer)
def list_keypairs(call: Call) -> Reply:
    """The caller's key pairs, oldest first."""
    listed = [
        {
            "apiKey": each.api_key,
            "keyID": each.id,
            "keyName": each.name,
            "expireAt": in_seconds(each.expires_at),
            "verified": each.verified,
            "lastUsedAt": in_seconds(each.last_used_at) if each.last_used_at else None,
            "lastUsedIp": each.last_used_ip,
            "cidrs": list(each.cidrs),
            "roles": None if each.rights.roles is None else list(each.rights.roles),
            "tenants": None if each.rights.tenants is None else list(each.rights.tenants),
        }
        for each in keypairs.listing_of(call.rt, live_of(call.caller).user_id)
    ]
    return Reply({"keys": listed})


@by_bearer("DELETE", "/keypair/{key_id}", answer=Message, refusals=(NOT_FOUND,))
def revoke_keypair(call: Call) -> Reply:
    """Delete a key pair of the caller, and end what it has opened."""
    own.revoke_keypair(call.rt, call.origin, live_of(call.caller), call.params["key_id"])
    return Reply(ACKNOWLEDGED)


@by_bearer(
    "POST", "/keypair/{key_id}/rotate", body=RotationBody, answer=RotatedKeyPairAnswer, refusals=(NOT_FOUND, VALIDATION)
)
def rotate_keypair(call: Call) -> Reply:
    """Give a key pair of the caller a new secret, shown once; the one before it works for `graceSeconds` more."""
    info, secret, until = own.rotate_keypair(
        call.rt,
        call.origin,
        live_of(call.caller),
        call.params["key_id"],
        grace_seconds=call.body.get("graceSeconds", 0),
    )
    return Reply(
        {
            "apiKey": info.api_key,
            "apiSecret": secret.reveal(),
            "keyID": info.id,
            "expireAt": in_seconds(info.expires_at),
            "previousExpireAt": in_seconds(until),
        }
    )


@threatwinds.endpoint(
    "DELETE", "/keypair", reads=Reads.KEY, limit=Policy.STANDARD, ignores_body=True, answer=Message, refusals=_KEY
)
def end_keypair(call: Call) -> Reply:
    """End the key pair that asks for it, and what it has opened: for a machine that is put out of use."""
    own.end_keypair(call.rt, call.origin, _key(call.caller))
    return Reply(ACKNOWLEDGED)


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
    token = keypair_proof.trade(call.rt, call.origin, _key(call.caller), resource=resource_of(call))
    return Reply(token_answer(call.hand_out(token)))


def _key(caller: Caller) -> KeyInfo:
    assert caller.key is not None, "the route reads key pairs only"
    return caller.key
