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


class RotatingSecretBody(SecretBody):
    """The same, or when the first ends."""

    oldExpiresIn = Whole(least=0, most=315_360_000)


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


class RotationBody(Body):
    """For how long the secret that is replaced still works."""

    graceSeconds = Whole(least=0, most=604_800)


class RotatedKeyPairAnswer(Schema):
    """A new secret of a key pair, shown here and never again, and when the one before it ends."""

    apiKey = fields.String(required=True)
    apiSecret = fields.String(required=True)
    keyID = fields.String(required=True)
    expireAt = Seconds(required=True)
    previousExpireAt = Seconds(required=True)


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


class IncidentBody(Body):
    """A credential that leaked: one of `secret`, `key`, `trust` or `kid`."""

    secret = Text(max_length=200, metadata={"description": "The id of a client secret"})
    key = Text(max_length=200, metadata={"description": "The id of a key pair, or its api-key"})
    trust = Text(max_length=200, metadata={"description": "The id of a trust"})
    kid = Text(max_length=200, metadata={"description": "The id of a signing key"})
    since = Text(max_length=40, metadata={"description": "From this moment on: Unix seconds or RFC 3339"})
    contain = Flag(metadata={"description": "End it, and all that it earned"})
    made = Flag(metadata={"description": "With `contain`: end the credentials that it made, too"})


class EarnedAnswer(Schema):
    """The tokens that a credential was given in an hour at an address."""

    hour = Seconds(required=True)
    address = fields.String(required=True, allow_none=True)
    tokens = fields.Integer(required=True)


class RouteAnswer(Schema):
    """How often a route answered a credential so."""

    route = fields.String(required=True)
    status = fields.Integer(required=True)
    uses = fields.Integer(required=True)
    lastHour = Seconds(required=True)


class CallerAnswer(Schema):
    """An address that a credential was used from; null: so many that they are told together."""

    address = fields.String(required=True, allow_none=True)
    uses = fields.Integer(required=True)
    firstHour = Seconds(required=True)
    lastHour = Seconds(required=True)


class OpenedAnswer(Schema):
    """A session that a key pair opened."""

    sessionID = fields.String(required=True)
    userID = fields.String(required=True, allow_none=True)
    createdAt = Seconds(required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)


class DeedAnswer(Schema):
    """An event of the audit that a credential is behind."""

    eventID = fields.String(required=True)
    at = Seconds(required=True)
    action = fields.String(required=True)
    actor = fields.String(required=True)
    target = fields.String(required=True)
    address = fields.String(required=True)


class MadeAnswer(Schema):
    """A credential that another one has made, or an account; `of`: its application or tenant."""

    kind = fields.String(
        required=True, metadata={"enum": ["key", "secret", "trust", "keySet", "invitation", "user", "kid"]}
    )
    id = fields.String(required=True)
    of = fields.String(required=True, allow_none=True)
    lives = fields.Boolean(required=True)


class TouchedAnswer(Schema):
    """What a credential has touched; lists tell the newest, `counts` how many there are in all."""

    since = Seconds(required=True)
    until = Seconds(required=True)
    counts = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    earned = fields.List(fields.Nested(EarnedAnswer), required=True)
    routes = fields.List(fields.Nested(RouteAnswer), required=True)
    addresses = fields.List(fields.Nested(CallerAnswer), required=True)
    sessions = fields.List(fields.Nested(OpenedAnswer), required=True)
    deeds = fields.List(fields.Nested(DeedAnswer), required=True)


class ContainmentAnswer(Schema):
    """When a leak was contained and by whom, to how many a mail was sent, and what was known then."""

    at = Seconds(required=True)
    by = fields.String(required=True)
    told = fields.Integer(required=True)
    report = fields.Nested(TouchedAnswer, required=True)


class IncidentAnswer(TouchedAnswer):
    """A credential that may have leaked: whose it is, what it has touched, and whether that was contained."""

    kind = fields.String(required=True, metadata={"enum": ["secret", "key", "trust", "kid"]})
    id = fields.String(required=True)
    name = fields.String(required=True)
    lives = fields.Boolean(required=True)
    userID = fields.String(required=True, allow_none=True)
    clientId = fields.String(required=True, allow_none=True)
    tenant = fields.String(required=True, allow_none=True)
    made = fields.List(fields.Nested(MadeAnswer), required=True)
    contained = fields.Nested(ContainmentAnswer, required=True, allow_none=True)
