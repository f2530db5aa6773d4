"""What the routes of group H about machines read and answer: secrets, trusts and what else proves an application."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.wire.dialects.admin_schemas import NewSecretAnswer, Seconds
from identity.wire.fields import Body, Flag, Text, Whole


class TrustBody(Body):
    """Whose tokens an application may prove itself with: an issuer, and a subject or claims, or both."""

    name = Text(required=True, max_length=200)
    issuer = Text(required=True, max_length=500)
    subject = Text(max_length=500)
    claims = fields.Dict(keys=fields.String())
    audience = Text(max_length=200)
    jwks = fields.Dict(keys=fields.String())
    expiresIn = Whole(least=1, most=315_360_000)


class SecretBody(Body):
    """A second live secret, and what becomes of the first."""

    expiresIn = Whole(least=1, most=315_360_000)
    retireOldAfterQuiet = Whole(least=1, most=315_360_000)
    force = Flag()


class PreviousSecret(Schema):
    """The secret before the new one: when it ends, or after how much quiet."""

    secretID = fields.String(required=True)
    expireAt = Seconds(required=True, allow_none=True)
    retireAfterQuietSeconds = fields.Integer(required=True, allow_none=True)


class ReplacedSecretAnswer(NewSecretAnswer):
    """A further client secret, which is shown once, and when the one before it ends."""

    previous = fields.Nested(PreviousSecret, required=True, allow_none=True)


class SecretAnswer(Schema):
    """A client secret, without itself."""

    secretID = fields.String(required=True)
    createdAt = Seconds(required=True)
    expireAt = Seconds(required=True, allow_none=True)
    lastUsedAt = Seconds(required=True, allow_none=True)
    lastUsedIp = fields.String(required=True, allow_none=True)
    callers = fields.List(fields.String(), required=True)
    retireAfterQuietSeconds = fields.Integer(required=True, allow_none=True)


class TrustAnswer(Schema):
    """A trust, and what to think about: `warnings`."""

    trustID = fields.String(required=True)
    name = fields.String(required=True)
    issuer = fields.String(required=True)
    subject = fields.String(required=True, allow_none=True)
    claims = fields.Dict(required=True)
    audience = fields.String(required=True, allow_none=True)
    jwks = fields.Dict(required=True, allow_none=True)
    createdAt = Seconds(required=True)
    expireAt = Seconds(required=True, allow_none=True)
    lastUsedAt = Seconds(required=True, allow_none=True)
    lastUsedIp = fields.String(required=True, allow_none=True)
    callers = fields.List(fields.String(), required=True)
    warnings = fields.List(fields.String(), required=True)


class EndingAnswer(Schema):
    """Something that ends by itself: a secret, a key pair, a trust, an access window or an invitation."""

    kind = fields.String(required=True)
    id = fields.String(required=True)
    name = fields.String(required=True)
    expireAt = Seconds(required=True)
    userID = fields.String(required=True, allow_none=True)
    clientId = fields.String(required=True, allow_none=True)
    tenant = fields.String(required=True, allow_none=True)
