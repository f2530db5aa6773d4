"""Group C: sessions by emailed code."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.core.access import own
from identity.core.signin import by_code
from identity.core.tokens import sessions
from identity.errors import ACCESS_WINDOW_EXPIRED, LOCKED_OUT, MFA_REQUIRED, NOT_FOUND, RATE_LIMITED, VALIDATION
from identity.instruments.limits import Policy
from identity.wire.dialects.threatwinds_dialect import (
    ACKNOWLEDGED,
    CODE_REFUSALS,
    BearerToken,
    CodeBody,
    WaitingAnswer,
    by_bearer,
    in_seconds,
    live_of,
    resource_of,
    rights_of,
    threatwinds,
    token_answer,
    waiting_answer,
)
from identity.wire.endpoint import Call, Reply
from identity.wire.fields import Body, Code, Message, Text

# What is sent.


class SessionBody(Body):
    """Who asks for a session, and what they call it."""

    email = Text(required=True, max_length=320)
    kind = Text(max_length=64)


class SessionCodeBody(CodeBody):
    """The emailed code, and the second factor of a user who has one."""

    totpCode = Code()
    recoveryCode = Code()


# What is answered.


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
    return Reply(waiting_answer(waiting))


@threatwinds.endpoint(
    "PUT",
    "/session/verification",
    limit=Policy.AUTH,
    body=SessionCodeBody,
    answer=Message,
    refusals=(*CODE_REFUSALS, MFA_REQUIRED, ACCESS_WINDOW_EXPIRED, LOCKED_OUT),
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
    return Reply(ACKNOWLEDGED)


@by_bearer("GET", "/session", status=200, hot=True, repeats=True, answer=SessionAnswer)
def validate_session(call: Call) -> Reply:
    """Tell whose the session is and what they may do now."""
    live = live_of(call.caller)
    session = live.session
    return Reply(
        {
            "sessionID": session.id,
            "userID": live.user_id,
            "alias": live.alias,
            "fullName": live.full_name,
            "expireAt": in_seconds(session.expires_at),
            "ip": session.ip,
            "userAgent": session.user_agent,
            "kind": session.kind,
            "verified": session.verified,
            **rights_of(call),
        }
    )


@by_bearer("PUT", "/session/extend", answer=Message)
def extend_session(call: Call) -> Reply:
    """Slide the end of the session, never past its absolute end."""
    own.extend_session(call.rt, call.origin, live_of(call.caller))
    return Reply(ACKNOWLEDGED)


@by_bearer("DELETE", "/session/{session_id}", answer=Message, refusals=(NOT_FOUND,))
def revoke_session(call: Call) -> Reply:
    """End a session of the caller; doing it twice is the same."""
    own.end_session(call.rt, call.origin, live_of(call.caller), call.params["session_id"])
    return Reply(ACKNOWLEDGED)


@by_bearer("GET", "/sessions", status=200, answer=SessionsAnswer)
def list_sessions(call: Call) -> Reply:
    """The caller's living sessions, of every dialect, newest first."""
    live = live_of(call.caller)
    listed = [
        {
            "sessionID": session.id,
            "ip": session.ip,
            "userAgent": session.user_agent,
            "expireAt": in_seconds(session.expires_at),
            "kind": session.kind,
            "current": session.id == live.session.id,
        }
        for session in sessions.listing_of(call.rt, live.user_id)
    ]
    return Reply({"sessions": listed})


@by_bearer("POST", "/session/token", headers=("Origin",), answer=BearerToken, refusals=(VALIDATION,))
def trade_session(call: Call) -> Reply:
    """Trade the bearer for a one-hour token that other services verify."""
    seconds = call.rt.settings.access_token_seconds
    token = sessions.token_for(call.rt, live_of(call.caller), seconds=seconds, resource=resource_of(call))
    return Reply(token_answer(call.hand_out(token)))
