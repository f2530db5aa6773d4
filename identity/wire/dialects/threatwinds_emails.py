"""Group C: the addresses of a user."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.core.access import own
from identity.core.people import addresses
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION
from identity.instruments.limits import Policy
from identity.wire.dialects.threatwinds_dialect import (
    ACKNOWLEDGED,
    CODE_REFUSALS,
    CodeBody,
    by_bearer,
    live_of,
    threatwinds,
)
from identity.wire.endpoint import Call, Reply
from identity.wire.fields import Body, Id, Message, Text

# What is sent.


class AddressBody(Body):
    """A mail address."""

    address = Text(required=True, max_length=320)


class PreferredBody(Body):
    """Which address to prefer."""

    emailID = Id(required=True)


# What is answered.


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


# Emails.


@by_bearer("POST", "/email", body=AddressBody, answer=VerificationAnswer, refusals=(VALIDATION, CONFLICT))
def add_email(call: Call) -> Reply:
    """Add an address to the caller's account and mail it a code."""
    verification_id = own.add_address(call.rt, call.origin, live_of(call.caller), call.body["address"])
    return Reply({"verificationCodeID": verification_id})


@by_bearer(
    "POST",
    "/email/verification",
    body=AddressBody,
    answer=VerificationAnswer,
    refusals=(VALIDATION, NOT_FOUND, CONFLICT),
)
def resend_email_code(call: Call) -> Reply:
    """Mail a new code to an unverified address of the caller; the old one dies."""
    verification_id = own.resend_address_code(call.rt, call.origin, live_of(call.caller), call.body["address"])
    return Reply({"verificationCodeID": verification_id})


@threatwinds.endpoint(
    "PUT", "/email/verification", limit=Policy.AUTH, body=CodeBody, answer=Message, refusals=(*CODE_REFUSALS, CONFLICT)
)
def verify_email(call: Call) -> Reply:
    """Prove an address by the code that was mailed to it."""
    addresses.prove(call.rt, call.origin, call.body["verificationCodeID"], call.body["code"])
    return Reply(ACKNOWLEDGED)


@by_bearer("GET", "/emails", status=200, answer=EmailsAnswer)
def list_emails(call: Call) -> Reply:
    """The caller's addresses, oldest first."""
    listed = [
        {"emailID": each.id, "address": each.address, "verified": each.verified, "preferred": each.preferred}
        for each in addresses.listing_of(call.rt, live_of(call.caller).user_id)
    ]
    return Reply({"emails": listed})


@by_bearer("PUT", "/email/preferred", body=PreferredBody, answer=Message, refusals=(VALIDATION, NOT_FOUND, CONFLICT))
def prefer_email(call: Call) -> Reply:
    """Send the caller's codes and notices to this verified address from now on."""
    own.prefer_address(call.rt, call.origin, live_of(call.caller), call.body["emailID"])
    return Reply(ACKNOWLEDGED)


@by_bearer("DELETE", "/email/{email_id}", answer=Message, refusals=(NOT_FOUND, CONFLICT))
def remove_email(call: Call) -> Reply:
    """Remove an address of the caller; the last verified one stays."""
    own.remove_address(call.rt, call.origin, live_of(call.caller), call.params["email_id"])
    return Reply(ACKNOWLEDGED)
