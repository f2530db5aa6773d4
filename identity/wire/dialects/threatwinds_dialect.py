"""What the modules of group C have in common: their one `Dialect`, and what more than one of them sends, answers and refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from marshmallow import Schema, fields

from identity.core.access import passage
from identity.core.access.callers import Caller
from identity.core.signin import by_password
from identity.core.signin.by_code import Waiting
from identity.core.tokens.claims import AccessToken
from identity.core.tokens.sessions import Live
from identity.errors import (
    FORBIDDEN,
    INVALID_CODE,
    INVALID_TOKEN,
    RATE_LIMITED,
    TOKEN_EXPIRED,
    UNAUTHENTICATED,
    VALIDATION,
    Problem,
    Refused,
)
from identity.instruments.limits import Policy
from identity.wire.endpoint import ENVELOPE_400, Call, Dialect, Reads, Reply
from identity.wire.fields import Body, Code, Id

threatwinds = Dialect(
    "C: sessions, emails, key pairs, users", mounts=("", "/api/auth/v2"), shape=ENVELOPE_400, status=202
)

ACKNOWLEDGED = {"message": "acknowledged"}
BEARER_REFUSALS = (UNAUTHENTICATED, INVALID_TOKEN, TOKEN_EXPIRED, FORBIDDEN, RATE_LIMITED)
CODE_REFUSALS = (INVALID_CODE, VALIDATION, RATE_LIMITED)


def by_bearer(
    method: str, path: str, *, refusals: Sequence[Problem] = (), **options: Any
) -> Callable[[Callable[[Call], Reply]], Callable[[Call], Reply]]:
    """An endpoint for whoever shows a bearer, within the usual budget; `refusals` beside those of every bearer."""
    every = (*BEARER_REFUSALS, *refusals)
    return threatwinds.endpoint(method, path, reads=Reads.BEARER, limit=Policy.STANDARD, refusals=every, **options)


class CodeBody(Body):
    """A code that came by mail, and what it was sent for."""

    verificationCodeID = Id(required=True)
    code = Code(required=True)


class WaitingAnswer(Schema):
    """A session that waits for its code."""

    bearer = fields.String(required=True)
    sessionID = fields.UUID(required=True)
    expireAt = fields.Integer(required=True)
    ip = fields.String(required=True)
    userAgent = fields.String(required=True)
    kind = fields.String(required=True)
    verificationCodeID = fields.UUID(required=True)


class BearerToken(Schema):
    """A signed token."""

    accessToken = fields.String(required=True)
    tokenType = fields.String(required=True)
    expiresIn = fields.Integer(required=True)


def live_of(caller: Caller) -> Live:
    """The caller's session. Raises Refused(FORBIDDEN) for an application, which has none."""
    if caller.session is None:
        raise Refused(FORBIDDEN, detail="not a user's session")
    return caller.session


def rights_of(call: Call) -> dict[str, Any]:
    """What the caller may do now."""
    caller = call.caller
    return {
        "roles": list(caller.roles),
        "groups": list(caller.groups),
        "tenants": {tenant: list(roles) for tenant, roles in passage.tenants_of(call.rt, caller).items()},
    }


def resource_of(call: Call) -> str:
    """For whom a token is that this request is answered with."""
    return by_password.user_resource(call.rt, call.header("origin"))


def waiting_answer(waiting: Waiting) -> dict[str, Any]:
    """A `WaitingAnswer`."""
    session, bearer = waiting.opened.session, waiting.opened.bearer
    assert bearer is not None, "a waiting session is always shown as one"
    return {
        "bearer": bearer.reveal(),
        "sessionID": session.id,
        "expireAt": in_seconds(session.expires_at),
        "ip": session.ip,
        "userAgent": session.user_agent,
        "kind": session.kind,
        "verificationCodeID": waiting.verification_id,
    }


def token_answer(token: AccessToken) -> dict[str, Any]:
    """A `BearerToken`."""
    return {"accessToken": token.text, "tokenType": token.token_type, "expiresIn": token.expires_in}


def in_seconds(moment: datetime) -> int:
    """A moment as this group writes it: Unix seconds."""
    return int(moment.timestamp())
