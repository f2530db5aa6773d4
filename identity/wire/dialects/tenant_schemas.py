"""What group H and a tenant's owners read and answer about tenants: members, invitations, roles."""

from __future__ import annotations

from marshmallow import Schema, fields

from identity.wire.dialects.admin_schemas import Attributes, Seconds, Table
from identity.wire.fields import Body, Change, Flag, Names, Text, Whole


class NewTenant(Body):
    """A tenant to make."""

    id = Text(required=True, max_length=64)
    name = Text(required=True, max_length=200)


class TenantChange(Change):
    """What of a tenant to change; `limits` are its own budgets by tier, `scopes` what its owners may give to its applications."""

    name = Text(max_length=200)
    limits = Table(Text(max_length=32), most=10)
    scopes = Names()
    attributes = Attributes()
    policy = fields.Dict(
        keys=fields.String(),
        metadata={
            "description": "requireSecondFactor, tokenSeconds, sessionSeconds, emailDomains, networks; all of it"
        },
    )


class MemberBody(Body):
    """The roles of a member: exactly these."""

    roles = Names(required=True)
    newRole = Flag()


class InvitationBody(Body):
    """Whom to invite, and with which roles."""

    email = Text(required=True, max_length=320)
    roles = Names(required=True)
    expiresIn = Whole(least=60, most=2_592_000)
    portalURL = Text(max_length=1000)
    newRole = Flag()


class NewRole(Body):
    """A role to declare, everywhere or in one tenant."""

    name = Text(required=True, max_length=64)
    description = Text(required=True, max_length=200)
    tenant = Text(max_length=64)


class TenantAnswer(Schema):
    """A tenant."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    enabled = fields.Boolean(required=True)
    limits = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    scopes = fields.List(fields.String(), required=True)
    attributes = fields.Dict(required=True)
    policy = fields.Dict(required=True)
    createdAt = Seconds(required=True)


class MemberAnswer(Schema):
    """A member of a tenant."""

    userID = fields.String(required=True)
    alias = fields.String(required=True)
    roles = fields.List(fields.String(), required=True)


class InvitationAnswer(Schema):
    """An invitation, without its link."""

    invitationID = fields.String(required=True)
    tenant = fields.String(required=True, allow_none=True)
    email = fields.String(required=True)
    roles = fields.List(fields.String(), required=True)
    state = fields.String(required=True, metadata={"enum": ["pending", "accepted", "withdrawn"]})
    invitedBy = fields.String(required=True)
    createdAt = Seconds(required=True)
    expireAt = Seconds(required=True)


class HolderAnswer(Schema):
    """Who holds a role."""

    kind = fields.String(required=True, metadata={"enum": ["user", "application"]})
    id = fields.String(required=True)
    name = fields.String(required=True, metadata={"description": "alias of a user, name of an application"})


class RoleAnswer(Schema):
    """A role; `holders` are the first of those that hold it."""

    name = fields.String(required=True)
    tenant = fields.String(required=True, allow_none=True)
    description = fields.String(required=True)
    declared = fields.Boolean(required=True)
    count = fields.Integer(required=True, metadata={"description": "how many hold it"})
    holders = fields.List(fields.Nested(HolderAnswer), required=True)
