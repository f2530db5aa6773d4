"""What group H reads and answers, field by field. The documents themselves are made by `documents`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields

from identity.core.clients.applications import MOST_TOKENS_PER_DAY
from identity.documents import moment
from identity.errors import Refused
from identity.wire.fields import Body, Change, Flag, Id, Message, Names, SaidAgain, Text, Whole


class Seconds(fields.Integer):
    """A moment in an answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(metadata={"description": "Unix seconds"}, **options)


class Moment(fields.Field[Any]):
    """A moment: Unix seconds, or RFC 3339 text; null is none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_none=True, metadata={"oneOf": [{"type": "integer"}, {"type": "string"}]}, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValidationError("A time is RFC 3339 text or Unix seconds")
        try:
            return moment(str(value), field=attr or "")
        except Refused as refused:
            raise ValidationError(refused.problem.message) from refused


class Table(fields.Dict):
    """An object with a bounded number of members of one kind."""

    def __init__(self, values: fields.Field[Any], *, most: int = 100, **options: Any) -> None:
        super().__init__(keys=Text(max_length=64), values=values, **options)
        self.most = most

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, dict) or len(value) > self.most:
            raise ValidationError(f"It must be an object with at most {self.most} members")
        return super()._deserialize(value, attr, data, **kwargs)  # type: ignore[no-untyped-call]  # marshmallow's own gap


class Attributes(fields.Dict):
    """Attributes of one's own, all of them: names with text, a number, a truth or a list of texts; the domain checks them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(keys=fields.String(), metadata={"description": "at most 4 KiB; replaces all"}, **options)


# Bodies.


class NewUser(Body):
    """A user to make."""

    email = Text(required=True, max_length=320)
    fullName = Text(required=True, max_length=200)
    alias = Text(required=True, max_length=64)
    roles = Names()
    groups = Names()
    tenants = Table(Names())
    password = Text(max_length=4096)
    passwordHash = Text(max_length=1024)
    notify = Flag()
    portalURL = Text(max_length=1000)
    newRole = Flag()


class UserChange(Change):
    """What of a user to change."""

    fullName = Text(max_length=200)
    alias = Text(max_length=64)
    roles = Names()
    groups = Names()
    attributes = Attributes()
    newRole = Flag()


class RoleBody(Body):
    """A global role."""

    userID = SaidAgain(of="id")
    role = Text(required=True, max_length=64)
    newRole = Flag()


class AccessWindowBody(Body):
    """When a user may come in: an absent bound stays as it is, null is none."""

    userID = SaidAgain(of="id")
    startsAt = Moment()
    endsAt = Moment()


class FixedOtpBody(Body):
    """The one-time code to fix."""

    userID = SaidAgain(of="id")
    otp = Text(required=True, max_length=64)


class SessionBody(Body):
    """A session to open for a user."""

    userID = SaidAgain(of="id")
    kind = Text(max_length=64)


class KeyPairBody(Body):
    """A key pair to make for a user."""

    userID = SaidAgain(of="id")
    name = Text(required=True, max_length=200)
    days = Whole(required=True, least=1, most=3650)
    cidrs = fields.List(Text(max_length=64))
    roles = Names(allow_none=True)
    tenants = Names(allow_none=True)
    decoy = Flag()


class AddressBody(Body):
    """An address to add to a user."""

    userID = SaidAgain(of="id")
    address = Text(required=True, max_length=320)


class PreferredBody(Body):
    """The address to prefer."""

    emailID = Id(required=True)


class NewApplication(Body):
    """An application to register."""

    name = Text(required=True, max_length=200)
    tenant = Text(max_length=64)
    scopes = Names(required=True)
    roles = Names()
    audiences = Names()
    tokenSeconds = Whole(least=60, most=86_400)
    tokenReuseSeconds = Whole(least=0, most=43_200)
    tokensPerDay = Whole(least=1, most=MOST_TOKENS_PER_DAY)
    jwks = fields.Dict(keys=fields.String())
    decoy = Flag()
    newRole = Flag()


class ApplicationChange(Change):
    """What of an application to change; null takes its own token life, its tokens per day or its key set away."""

    name = Text(max_length=200)
    scopes = Names()
    roles = Names()
    audiences = Names()
    tokenSeconds = Whole(least=60, most=86_400, allow_none=True)
    tokenReuseSeconds = Whole(least=0, most=43_200)
    tokensPerDay = Whole(least=1, most=MOST_TOKENS_PER_DAY, allow_none=True)
    jwks = fields.Dict(keys=fields.String(), allow_none=True)
    enabled = Flag()
    attributes = Attributes()
    tokenClaims = Table(Text(max_length=200), most=20)
    newRole = Flag()


# Answers.


class EmailAnswer(Schema):
    """An address of a user."""

    emailID = fields.String(required=True)
    address = fields.String(required=True)
    verified = fields.Boolean(required=True)
    preferred = fields.Boolean(required=True)


class AccessWindowAnswer(Schema):
    """When a user may come in."""

    startsAt = Seconds(required=True, allow_none=True)
    endsAt = Seconds(required=True, allow_none=True)


class FactorsAnswer(Schema):
    """The second factors of a user."""

    totp = fields.Boolean(required=True)
    fixedOtp = fields.Boolean(required=True)


class UserAnswer(Schema):
    """A user."""

    userID = fields.String(required=True)
    alias = fields.String(required=True)
    fullName = fields.String(required=True)
    email = fields.String(required=True)
    emails = fields.List(fields.Nested(EmailAnswer), required=True)
    enabled = fields.Boolean(required=True)
    verified = fields.Boolean(required=True)
    roles = fields.List(fields.String(), required=True)
    groups = fields.List(fields.String(), required=True)
    tenants = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), required=True)
    accessWindow = fields.Nested(AccessWindowAnswer, required=True)
    password = fields.Boolean(required=True, metadata={"description": "whether the user has one"})
    mfa = fields.Nested(FactorsAnswer, required=True)
    attributes = fields.Dict(required=True)
    createdAt = Seconds(required=True)
    lastLoginAt = Seconds(required=True, allow_none=True)
    externalID = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "what the system that they were imported from calls them"},
    )


class NewUserAnswer(Schema):
    """A new user; the key pair is shown once, and left out where an invitation was mailed."""

    userID = fields.String(required=True)
    email = fields.String(required=True)
    apiKey = fields.String()
    apiSecret = fields.String()
    keyID = fields.String()
    expireAt = Seconds()


class RolesAnswer(Schema):
    """The global roles of a user."""

    roles = fields.List(fields.String(), required=True)


class CodeAnswer(Schema):
    """A code was mailed."""

    verificationCodeID = fields.String(required=True)


class NewEmailAnswer(CodeAnswer):
    """An address that waits for its code."""

    emailID = fields.String(required=True)
    address = fields.String(required=True)


class NewSessionAnswer(CodeAnswer):
    """A session that waits for its code."""

    bearer = fields.String(required=True)
    sessionID = fields.String(required=True)
    expireAt = Seconds(required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)
    kind = fields.String(required=True)


class NewKeyPairAnswer(CodeAnswer):
    """A key pair that waits for its code; the secret is shown once."""

    apiKey = fields.String(required=True)
    apiSecret = fields.String(required=True)
    keyID = fields.String(required=True)
    keyName = fields.String(required=True)
    expireAt = Seconds(required=True)
    verified = fields.Boolean(required=True)
    verificationCodeID = fields.String(required=True, allow_none=True)


class SessionAnswer(Schema):
    """A session."""

    sessionID = fields.String(required=True)
    userID = fields.String(required=True)
    kind = fields.String(required=True)
    verified = fields.Boolean(required=True)
    amr = fields.List(fields.String(), required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)
    createdAt = Seconds(required=True)
    expireAt = Seconds(required=True)


class KeyPairAnswer(Schema):
    """A key pair, without its secret."""

    keyID = fields.String(required=True)
    userID = fields.String(required=True)
    apiKey = fields.String(required=True)
    keyName = fields.String(required=True)
    decoy = fields.Boolean(required=True)
    verified = fields.Boolean(required=True)
    createdAt = Seconds(required=True)
    expireAt = Seconds(required=True)
    lastUsedAt = Seconds(required=True, allow_none=True)
    lastUsedIp = fields.String(required=True, allow_none=True)
    cidrs = fields.List(fields.String(), required=True)
    roles = fields.List(fields.String(), required=True, allow_none=True)
    tenants = fields.List(fields.String(), required=True, allow_none=True)


class ApplicationAnswer(Schema):
    """An application."""

    clientId = fields.String(required=True)
    appId = fields.Integer(required=True)
    name = fields.String(required=True)
    tenant = fields.String(required=True, allow_none=True)
    scopes = fields.List(fields.String(), required=True)
    roles = fields.List(fields.String(), required=True)
    audiences = fields.List(fields.String(), required=True)
    tokenSeconds = fields.Integer(required=True, allow_none=True)
    tokenReuseSeconds = fields.Integer(required=True)
    tokensPerDay = fields.Integer(required=True, allow_none=True)
    jwks = fields.Dict(required=True, allow_none=True)
    attributes = fields.Dict(required=True)
    tokenClaims = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    decoy = fields.Boolean(required=True)
    enabled = fields.Boolean(required=True)
    createdAt = Seconds(required=True)


class NewSecretAnswer(Schema):
    """A new client secret, which is shown once."""

    secret = fields.String(required=True)
    secretID = fields.String(required=True)
    expireAt = Seconds(required=True, allow_none=True)


class NewApplicationAnswer(NewSecretAnswer):
    """A new application and its first secret."""

    clientId = fields.String(required=True)
    appId = fields.Integer(required=True)


class SigningKeyAnswer(Schema):
    """A signing key."""

    kid = fields.String(required=True)
    state = fields.String(required=True, metadata={"enum": ["next", "active", "retired"]})
    algorithm = fields.String(required=True, metadata={"enum": ["RS256", "ES256"]})
    bits = fields.Integer(required=True)
    publishedAt = Seconds(required=True)
    signsFrom = Seconds(required=True, allow_none=True)


def page_of(plural: str, item: type[Schema]) -> type[Schema]:
    """The schema of a page of a list, whose items stand under `plural`."""
    members: dict[str, fields.Field[Any]] = {
        "pages": fields.Integer(metadata={"description": "left out behind a cursor, where nothing is counted"}),
        "items": fields.Integer(metadata={"description": "how many there are in all; left out behind a cursor"}),
        "next": fields.String(metadata={"description": "what `after` takes to go on; left out at the end"}),
        plural: fields.List(fields.Nested(item), required=True),
    }
    page = Schema.from_dict(members, name=f"{item.__name__.removesuffix('Answer')}Page")
    page.__doc__ = f"A page of {plural}."
    return page


Acknowledged = Message
