"""Group C: registration, and who a user is."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.canonical import get_address
from identity.core.admin import erasure
from identity.core.people import accounts
from identity.core.signin import sign_up
from identity.errors import (
    CONFLICT,
    KEY_MISMATCH,
    LOCKED_OUT,
    NOT_FOUND,
    RATE_LIMITED,
    REGISTRATION_DISABLED,
    STALE_LOGIN,
    TWO_CREDENTIALS,
    VALIDATION,
    Refused,
)
from identity.instruments.limits import Policy
from identity.wire.dialects.threatwinds_dialect import (
    ACKNOWLEDGED,
    BEARER_REFUSALS,
    WaitingAnswer,
    by_bearer,
    live_of,
    threatwinds,
    waiting_answer,
)
from identity.wire.endpoint import Call, Reads, Reply
from identity.wire.fields import Body, Message, Text

_BEARER_OR_KEY = (*BEARER_REFUSALS, KEY_MISMATCH, LOCKED_OUT, TWO_CREDENTIALS)


# What is sent.


class UserBody(Body):
    """Who registers."""

    email = Text(required=True, max_length=320)
    fullName = Text(required=True, max_length=200)
    alias = Text(required=True, max_length=64)


# What is answered.


class AliasAnswer(Schema):
    """How a user is called."""

    alias = fields.String(required=True)


class UserIdAnswer(Schema):
    """Who has an address."""

    userID = fields.UUID(required=True)


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
    return Reply(waiting_answer(waiting))


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


@by_bearer("DELETE", "/user", answer=Message, refusals=(STALE_LOGIN, CONFLICT))
def erase_user(call: Call) -> Reply:
    """Erase the caller and everything personal about them; needs a recent login."""
    user_id = live_of(call.caller).user_id
    call.caller.require_recent_login(call.rt)
    erasure.erase_own(call.rt, call.origin, user_id)
    return Reply(ACKNOWLEDGED)
