"""What group H reads and answers about what happened: events, refusals, mails, and what is held about a person."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.wire.dialects.admin_schemas import Seconds
from identity.wire.fields import Body, Id


class MailBody(Body):
    """The mail to send again; none: all."""

    mailID = Id()


class EndedAnswer(Schema):
    """How many sessions ended."""

    ended = fields.Integer(required=True)


class UnlockedAnswer(Schema):
    """How many counters of failures were forgotten."""

    forgotten = fields.Integer(required=True)


class RetriedAnswer(Schema):
    """How many mails are sent again."""

    retried = fields.Integer(required=True)


class MailAnswer(Schema):
    """A mail, without what it says."""

    mailID = fields.String(required=True)
    to = fields.String(required=True)
    template = fields.String(required=True)
    state = fields.String(required=True, metadata={"enum": ["pending", "sent", "dead", "void"]})
    attempts = fields.Integer(required=True)
    lastError = fields.String(required=True)
    createdAt = Seconds(required=True)
    nextAt = Seconds(required=True)
    sentAt = Seconds(required=True, allow_none=True)


class ExportAnswer(Schema):
    """Everything that is held about a person."""

    user = fields.Dict(required=True)
    sessions = fields.List(fields.Dict(), required=True)
    keypairs = fields.List(fields.Dict(), required=True)
    mails = fields.List(fields.Dict(), required=True)
    events = fields.List(
        fields.Dict(), required=True, metadata={"description": "what they did, and what was done to them"}
    )
    refusals = fields.List(fields.Dict(), required=True)
    uses = fields.List(
        fields.Dict(), required=True, metadata={"description": "how often their key pairs were used, by hour"}
    )


class EventAnswer(Schema):
    """An audit event; `genuine` is false for a row that was edited after it was written."""

    eventID = fields.String(required=True)
    at = Seconds(required=True)
    action = fields.String(required=True)
    actor = fields.String(required=True)
    target = fields.String(required=True)
    address = fields.String(required=True)
    requestID = fields.String(required=True)
    errorID = fields.String(
        required=True, allow_none=True, metadata={"description": "the x-error-id, of a refusal only"}
    )
    credential = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "what proved the actor: session:ID, key:ID or secret:ID"},
    )
    tenant = fields.String(required=True, allow_none=True)
    data = fields.Dict(required=True)
    genuine = fields.Boolean(required=True)


class ExplanationAnswer(Schema):
    """Why a request was refused."""

    errorID = fields.String(required=True)
    at = Seconds(required=True)
    route = fields.String(required=True)
    status = fields.Integer(required=True)
    error = fields.String(required=True)
    message = fields.String(required=True)
    field = fields.String(required=True, allow_none=True)
    check = fields.String(required=True, metadata={"description": "the check that failed"})
    cause = fields.String(required=True, metadata={"description": "why, in one sentence"})
    advice = fields.String(required=True, metadata={"description": "what to tell whoever was refused"})
    expected = fields.Raw(required=True, allow_none=True, metadata={"description": "what it expected, if it tells"})
    seen = fields.Raw(required=True, allow_none=True, metadata={"description": "what it saw; never a secret"})
    clockSkewSeconds = fields.Integer(
        required=True, allow_none=True, metadata={"description": "how far past its time it was; negative: before it"}
    )
    nearMiss = fields.String(required=True, allow_none=True, metadata={"description": "what would have passed"})
    evidence = fields.Dict(required=True, metadata={"description": "whatever else the check knew"})
    caller = fields.String(required=True)
    address = fields.String(required=True)
    requestID = fields.String(required=True)


class CountedAnswer(Schema):
    """How often one check refused in the time that was asked for."""

    error = fields.String(required=True)
    check = fields.String(required=True, metadata={"description": "the check that failed"})
    cause = fields.String(required=True, metadata={"description": "why, in one sentence"})
    count = fields.Integer(required=True, metadata={"description": "how many refusals"})
    lastAt = Seconds(required=True)
    addresses = fields.Integer(required=True, metadata={"description": "from how many client addresses"})
    address = fields.String(required=True, metadata={"description": "the address that most came from"})
    caller = fields.String(
        required=True, allow_none=True, metadata={"description": "who was refused most often, where that is known"}
    )


class HourAnswer(Schema):
    """The refusals of an hour."""

    at = Seconds(required=True)
    count = fields.Integer(required=True, metadata={"description": "how many refusals"})


class CountsAnswer(Schema):
    """Refusals by error and check, and by hour."""

    checks = fields.List(fields.Nested(CountedAnswer), required=True)
    hours = fields.List(fields.Nested(HourAnswer), required=True)


class RejectAnswer(Schema):
    """A line that was not taken, and why."""

    line = fields.Integer(required=True, metadata={"description": "from 1, blank lines left out"})
    error = fields.String(required=True)
    message = fields.String(required=True)
    field = fields.String(required=True, allow_none=True)


class ImportAnswer(Schema):
    """What became of an import."""

    created = fields.Integer(required=True)
    updated = fields.Integer(required=True)
    unchanged = fields.Integer(required=True)
    rejected = fields.List(fields.Nested(RejectAnswer), required=True)
