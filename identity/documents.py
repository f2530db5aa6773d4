"""How administrators see things: documents with the field names of group H, for its answers and for `--json` alike.

Moments are Unix seconds. No document ever holds a hash, a seed or a stored secret; `secret` and `apiSecret` stand only in the one
answer that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from identity.core.admin import causes
from identity.core.admin.export import Person
from identity.core.admin.importing import Outcome, Taken
from identity.core.admin.owners import TenantMember
from identity.core.admin.roles import RoleInfo
from identity.core.admin.tenants import Member
from identity.core.admin.users import CreatedUser, UserDetail
from identity.core.clients import issuers
from identity.core.clients.applications import ApplicationInfo
from identity.core.clients.expiry import Ending
from identity.core.clients.issuers import TrustInfo, Verdict
from identity.core.clients.keypairs import KeyPairInfo, Requested
from identity.core.clients.secrets import MadeSecret, SecretInfo
from identity.core.mail.outbox import MailInfo
from identity.core.people import attributes
from identity.core.people.invitations import InvitationInfo
from identity.core.people.tenancy import TenantInfo
from identity.core.record.audit import Event
from identity.core.record.explain import Counted, Explanation
from identity.core.signin.by_code import Waiting
from identity.core.tokens.session_rows import SessionInfo
from identity.errors import VALIDATION, Refused
from identity.instruments.keyring import KeyInfo
from identity.paging import Listed

Document = dict[str, Any]
T = TypeVar("T")


def page(plural: str, listed: Listed[T], document: Callable[[T], Document], *, limit: int) -> Document:
    """A part of a list. Behind a cursor nothing is counted, so `pages` and `items` are left out; `next` is the cursor of what follows."""
    counted = {} if listed.total is None else {"pages": -(-listed.total // limit), "items": listed.total}
    following = {} if listed.next is None else {"next": listed.next}
    return counted | following | {plural: [document(one) for one in listed.items]}


def user(detail: UserDetail) -> Document:
    """A user."""
    info = detail.info
    return {
        "userID": info.id,
        "alias": info.alias,
        "fullName": info.full_name,
        "email": info.email,
        "emails": [
            {"emailID": one.id, "address": one.address, "verified": one.verified, "preferred": one.preferred}
            for one in detail.emails
        ],
        "enabled": info.enabled,
        "verified": info.verified,
        "roles": list(info.roles),
        "groups": list(info.groups),
        "tenants": {tenant: list(roles) for tenant, roles in detail.tenants.items()},
        "accessWindow": {"startsAt": seconds(info.starts_at), "endsAt": seconds(info.ends_at)},
        "password": info.has_password,
        "mfa": {"totp": detail.has_totp, "fixedOtp": detail.has_fixed_otp},
        "attributes": dict(detail.attributes),
        "externalID": detail.external_id,
        "createdAt": seconds(info.created_at),
        "lastLoginAt": seconds(detail.last_login_at),
    }


def person(held: Person) -> Document:
    """Everything that is held about somebody."""
    return {
        "user": user(held.user),
        "sessions": [session(one) for one in held.sessions],
        "keypairs": [keypair(one) for one in held.keypairs],
        "mails": [mail(one) for one in held.mails],
        "events": [event(one) for one in held.events],
        "refusals": [explanation(one) for one in held.refusals],
        "uses": [
            {
                "credential": one.credential,
                "hour": seconds(one.hour),
                "route": one.route,
                "status": one.status,
                "address": one.address or None,
                "uses": one.uses,
            }
            for one in held.uses
        ],
    }


def imported(lines: Sequence[Taken | Refused]) -> Document:
    """What became of the lines of an import."""
    counts = dict.fromkeys((Outcome.CREATED, Outcome.UPDATED, Outcome.UNCHANGED), 0)
    rejected = []
    for number, line in enumerate(lines, 1):
        if isinstance(line, Refused):
            rejected.append(_reject(number, line.problem.code, line.problem.message, line.field))
        elif line.outcome is Outcome.REJECTED:
            rejected.append(_reject(number, line.error, line.message, line.field))
        else:
            counts[line.outcome] += 1
    return {str(outcome): count for outcome, count in counts.items()} | {"rejected": rejected}


def _reject(line: int, error: str, message: str, field: str | None) -> Document:
    return {"line": line, "error": error, "message": message, "field": field}


def created_user(made: CreatedUser) -> Document:
    """A user that was just made, with the key pair that is shown once."""
    document: Document = {"userID": made.user_id, "email": made.email}
    if made.key is None or made.secret is None:
        return document
    return document | {
        "apiKey": made.key.api_key,
        "apiSecret": made.secret.reveal(),
        "keyID": made.key.id,
        "expireAt": seconds(made.key.expires_at),
    }


def session(info: SessionInfo) -> Document:
    """A session."""
    return {
        "sessionID": info.id,
        "userID": info.user_id,
        "kind": info.kind,
        "verified": info.verified,
        "amr": list(info.amr),
        "ip": info.ip,
        "userAgent": info.user_agent,
        "createdAt": seconds(info.created_at),
        "expireAt": seconds(info.expires_at),
    }


def keypair(info: KeyPairInfo) -> Document:
    """A key pair, without its secret."""
    return {
        "keyID": info.id,
        "userID": info.user_id,
        "apiKey": info.api_key,
        "keyName": info.name,
        "verified": info.verified,
        "createdAt": seconds(info.created_at),
        "expireAt": seconds(info.expires_at),
        "lastUsedAt": seconds(info.last_used_at),
        "lastUsedIp": info.last_used_ip,
        "cidrs": list(info.cidrs),
        "roles": None if info.rights.roles is None else list(info.rights.roles),
        "tenants": None if info.rights.tenants is None else list(info.rights.tenants),
        "decoy": info.decoy,
    }


def waiting_session(waiting: Waiting) -> Document:
    """A session that was just opened, with the bearer that is shown once and works once its code has come back."""
    info, bearer = waiting.opened.session, waiting.opened.bearer
    assert bearer is not None, "a waiting session has a bearer"
    return {
        "bearer": bearer.reveal(),
        "sessionID": info.id,
        "expireAt": seconds(info.expires_at),
        "ip": info.ip,
        "userAgent": info.user_agent,
        "kind": info.kind,
        "verificationCodeID": waiting.verification_id,
    }


def requested_keypair(made: Requested) -> Document:
    """A key pair that was just made, with the secret that is shown once and works once its code has come back."""
    return {
        "apiKey": made.info.api_key,
        "apiSecret": made.secret.reveal(),
        "keyID": made.info.id,
        "keyName": made.info.name,
        "expireAt": seconds(made.info.expires_at),
        "verified": made.info.verified,
        "verificationCodeID": made.verification_id,
    }


def application(info: ApplicationInfo) -> Document:
    """An application."""
    return {
        "clientId": info.id,
        "appId": info.app_id,
        "name": info.name,
        "tenant": info.tenant,
        "scopes": list(info.scopes),
        "roles": list(info.roles),
        "audiences": list(info.audiences),
        "tokenSeconds": info.token_seconds,
        "tokenReuseSeconds": info.token_reuse_seconds,
        "tokensPerDay": info.tokens_per_day,
        "jwks": info.jwks,
        "attributes": attributes.read(info.attributes),
        "tokenClaims": attributes.read(info.token_claims),
        "enabled": info.enabled,
        "decoy": info.decoy,
        "createdAt": seconds(info.created_at),
    }


def created_application(info: ApplicationInfo, made: MadeSecret) -> Document:
    """An application that was just made, with the secret that is shown once."""
    return {"clientId": info.id, "appId": info.app_id} | _plain_secret(made)


def created_secret(made: MadeSecret) -> Document:
    """A client secret that was just made and is shown once; and when the one before it ends."""
    previous = made.previous
    if previous is None:
        return _plain_secret(made) | {"previous": None}
    ends = {"secretID": previous.id, "expireAt": seconds(previous.expires_at)}
    return _plain_secret(made) | {
        "previous": ends | {"retireAfterQuietSeconds": previous.retire_after_quiet_seconds},
    }


def _plain_secret(made: MadeSecret) -> Document:
    info = made.info
    return {"secret": made.secret.reveal(), "secretID": info.id, "expireAt": seconds(info.expires_at)}


def secret(info: SecretInfo) -> Document:
    """A client secret, without itself: what tells who still uses the old one."""
    return {
        "secretID": info.id,
        "createdAt": seconds(info.created_at),
        "expireAt": seconds(info.expires_at),
        "lastUsedAt": seconds(info.last_used_at),
        "lastUsedIp": info.last_used_ip,
        "callers": list(info.callers),
        "retireAfterQuietSeconds": info.retire_after_quiet_seconds,
    }


def trust(info: TrustInfo) -> Document:
    """Whose tokens an application may prove itself with."""
    return {
        "trustID": info.id,
        "name": info.name,
        "issuer": info.issuer,
        "subject": info.subject,
        "claims": dict(info.claims),
        "audience": info.audience,
        "jwks": info.jwks,
        "createdAt": seconds(info.created_at),
        "expireAt": seconds(info.expires_at),
        "lastUsedAt": seconds(info.last_used_at),
        "lastUsedIp": info.last_used_ip,
        "callers": list(info.callers),
        "warnings": list(issuers.warnings_of(info)),
    }


def ending(one: Ending) -> Document:
    """Something that ends by itself."""
    return {
        "kind": one.kind,
        "id": one.id,
        "name": one.name,
        "expireAt": seconds(one.expires_at),
        "userID": one.user,
        "clientId": one.application,
        "tenant": one.tenant,
    }


def verdict(found: Verdict) -> Document:
    """What a trust makes of a token, rule by rule."""
    return {
        "trustID": found.trust.id,
        "name": found.trust.name,
        "passes": found.passes,
        "rules": [
            {"rule": rule, "holds": holds, "expected": expected, "seen": seen}
            for rule, holds, expected, seen in found.rules
        ],
    }


def tenant(info: TenantInfo) -> Document:
    """A tenant."""
    return {
        "id": info.id,
        "name": info.name,
        "enabled": info.enabled,
        "limits": dict(info.limits),
        "scopes": list(info.scopes),
        "attributes": dict(info.attributes),
        "policy": dict(info.policy),
        "createdAt": seconds(info.created_at),
    }


def tenant_member(info: TenantMember) -> Document:
    """A member as the owners of the tenant see one."""
    return {
        "userID": info.user_id,
        "alias": info.alias,
        "fullName": info.full_name,
        "email": info.email,
        "roles": list(info.roles),
    }


def invitation(info: InvitationInfo) -> Document:
    """An invitation, without its link; nor does it tell whether anybody has the address."""
    return {
        "invitationID": info.id,
        "tenant": info.tenant,
        "email": info.address,
        "roles": list(info.roles),
        "state": info.state,
        "invitedBy": info.invited_by,
        "createdAt": seconds(info.created_at),
        "expireAt": seconds(info.expires_at),
    }


def tenant_event(info: Event) -> Document:
    """An event as the owners of the tenant read it: who did what, not from where."""
    kept = ("eventID", "at", "action", "actor", "target", "data", "genuine")
    return {name: value for name, value in event(info).items() if name in kept}


def member(info: Member) -> Document:
    """A member of a tenant."""
    return {"userID": info.user_id, "alias": info.alias, "roles": list(info.roles)}


def role(info: RoleInfo) -> Document:
    """A role and who holds it."""
    return {
        "name": info.name,
        "tenant": info.tenant,
        "description": info.description,
        "declared": info.declared,
        "count": info.count,
        "holders": [{"kind": one.kind, "id": one.id, "name": one.name} for one in info.holders],
    }


def signing_key(info: KeyInfo) -> Document:
    """A signing key, as far as it is public."""
    return {
        "kid": info.kid,
        "state": info.state,
        "algorithm": info.algorithm,
        "bits": info.bits,
        "publishedAt": seconds(info.published_at),
        "signsFrom": seconds(info.signs_from),
    }


def event(info: Event) -> Document:
    """An audit event. `genuine` is false for a row that was edited after it was written."""
    return {
        "eventID": info.id,
        "at": seconds(info.at),
        "action": info.action,
        "actor": info.actor,
        "target": info.target,
        "address": info.address,
        "requestID": info.request_id,
        "errorID": info.error_id or None,
        "credential": info.credential or None,
        "tenant": info.tenant or None,
        "data": dict(info.data),
        "genuine": info.genuine,
    }


def explanation(info: Explanation) -> Document:
    """Why a request was refused: the check that failed, what it expected and saw, and what would have passed."""
    rest, cause = dict(info.evidence), causes.of(info)
    return {
        "errorID": info.error_id,
        "at": seconds(info.at),
        "route": info.route,
        "status": info.status,
        "error": info.error,
        "message": info.message,
        "field": info.field,
        "check": info.detail,
        "cause": cause.sentence,
        "advice": cause.tell,
        "expected": rest.pop("expected", None),
        "seen": rest.pop("seen", None),
        "clockSkewSeconds": rest.pop("skew_seconds", None),
        "nearMiss": rest.pop("near_miss", None),
        "evidence": rest,
        "caller": info.caller,
        "address": info.address,
        "requestID": info.request_id,
    }


def counted_refusals(info: Counted) -> Document:
    """How often one check refused."""
    return {
        "error": info.error,
        "check": info.detail,
        "cause": causes.cause_of(info.error, info.detail, info.detail).sentence,
        "count": info.count,
        "lastAt": seconds(info.last_at),
        "addresses": info.addresses,
        "address": info.most_from,
        "caller": info.most_caller or None,
    }


def mail(info: MailInfo) -> Document:
    """A mail, without what it says."""
    return {
        "mailID": info.id,
        "to": info.recipient,
        "template": info.template,
        "state": info.state,
        "attempts": info.attempts,
        "lastError": info.last_error,
        "createdAt": seconds(info.created_at),
        "nextAt": seconds(info.next_at),
        "sentAt": seconds(info.sent_at),
    }


def seconds(moment: datetime | None) -> int | None:
    """A moment as Unix seconds."""
    return None if moment is None else int(moment.timestamp())


def moment(text: str, *, field: str) -> datetime:
    """The moment that RFC 3339 text or Unix seconds name. Raises Refused(VALIDATION); a time without a zone names none."""
    wrong = Refused(VALIDATION.saying("A time is RFC 3339, like 2026-01-31T12:00:00Z, or Unix seconds"), field=field)
    if not text.isascii():
        raise wrong
    try:
        # Python reads more than RFC 3339, which always has a date, a time and a zone; nothing before 1970 is meant by anybody.
        read = datetime.fromtimestamp(int(text), UTC) if text.isdigit() else datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError) as exc:
        raise wrong from exc
    if read.tzinfo is None or read.year < 1970 or len(text) > 40:
        raise wrong
    return read.astimezone(UTC)
