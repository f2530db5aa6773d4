"""Group A: user and application tokens, as s7risk documents them (docs/interfaces.md)."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from identity import grounds
from identity.core.clients import machine_tokens, secrets
from identity.core.clients.machine_tokens import DAY_LIMITED
from identity.core.signin import by_password
from identity.core.tokens.claims import AccessToken
from identity.errors import (
    ACCESS_WINDOW_EXPIRED,
    CLIENT_MISMATCH,
    FORBIDDEN,
    INVALID_CODE,
    INVALID_CREDENTIALS,
    LOCKED_OUT,
    MFA_REQUIRED,
    VALIDATION,
)
from identity.instruments.limits import Policy
from identity.wire.endpoint import Call, Dialect, Reply
from identity.wire.fields import Body, Code, Opaque, Text

s7risk = Dialect("A: tokens")


class UserTokenBody(Body):
    """Who asks for a user token."""

    email = Text(required=True, called="email", max_length=320)
    password = Text(required=True, called="password", max_length=4096)
    totpCode = Code(called="totpCode")


class ApplicationTokenBody(Body):
    """Who asks for an application token."""

    clientId = Opaque(required=True, missing="Missing client ID body parameter")
    secret = Opaque(required=True, missing="Missing secret body parameter")
    scope = Text(max_length=2048, min_length=0)


class TokenData(Schema):
    """A token inside the envelope."""

    accessToken = fields.String(required=True)
    tokenType = fields.String(required=True)
    expiresIn = fields.Integer(required=True)


class TokenAnswer(Schema):
    """A token, in s7risk's envelope."""

    status = fields.String(required=True, metadata={"example": "success"})
    data = fields.Nested(TokenData, required=True)


@s7risk.endpoint(
    "POST",
    "/user/token",
    headers=("Origin",),
    limit=Policy.AUTH,
    body=UserTokenBody,
    answer=TokenAnswer,
    hot=True,
    writes=True,
    refusals=(
        INVALID_CREDENTIALS,
        ACCESS_WINDOW_EXPIRED,
        MFA_REQUIRED,
        INVALID_CODE,
        FORBIDDEN,
        LOCKED_OUT,
        VALIDATION,
    ),
)
def user_token(call: Call) -> Reply:
    """Exchange an email and a password for a 24-hour user token."""
    resource = by_password.user_resource(call.rt, call.header("origin"))
    token = by_password.by_password(
        call.rt,
        call.origin,
        identifier=call.body["email"],
        password=call.body["password"],
        totp_code=call.body.get("totpCode"),
        resource=resource,
    )
    return Reply(_envelope(call.hand_out(token)))


@s7risk.endpoint(
    "POST",
    "/application/token",
    headers=("Origin",),
    limit=Policy.APPLICATION,
    limits_itself=True,
    body=ApplicationTokenBody,
    answer=TokenAnswer,
    answer_headers=("X-Token-Reused",),
    hot=True,
    repeats=True,
    refusals=(CLIENT_MISMATCH, DAY_LIMITED, FORBIDDEN, LOCKED_OUT, VALIDATION),
)
def application_token(call: Call) -> Reply:
    """Exchange a client id and its secret for an application token."""
    client_id = call.body["clientId"]
    with call.limiting_client(client_id):
        proven = secrets.authenticate(call.rt, call.origin, client_id, call.body["secret"])
    audience = machine_tokens.audience_of(call.rt, proven.application, origin=call.header("origin"))
    scope = call.body["scope"].split() if "scope" in call.body else None

    def grant(call: Call) -> Reply:
        call.proven = f"secret:{proven.secret_id}"
        token = machine_tokens.issue_token(call.rt, proven, scope=scope, audience=audience)
        return Reply(_envelope(call.hand_out(token)), headers=(("X-Token-Reused", "1"),) if token.is_reused else ())

    grounds.note_last_step(grant)
    return grant(call)


def _envelope(token: AccessToken) -> dict[str, Any]:
    return {
        "status": "success",
        "data": {"accessToken": token.text, "tokenType": token.token_type, "expiresIn": token.expires_in},
    }
