"""Group B: login in two steps, refresh, second factors and passwords, as RiskSage documents them (docs/interfaces.md)."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from identity.core.access import own, passage
from identity.core.people import accounts
from identity.core.people.accounts import UserInfo
from identity.core.signin import by_password, factors, new_password
from identity.core.signin.by_password import Grant, Handout
from identity.core.signin.factors import Factor
from identity.core.tokens.claims import AccessToken
from identity.core.tokens.sessions import Live
from identity.errors import (
    ACCESS_WINDOW_EXPIRED,
    CONFLICT,
    FORBIDDEN,
    INVALID_CODE,
    INVALID_CREDENTIALS,
    INVALID_TOKEN,
    LOCKED_OUT,
    RATE_LIMITED,
    STALE_LOGIN,
    TOKEN_EXPIRED,
    UNAUTHENTICATED,
    VALIDATION,
    Refused,
)
from identity.instruments.limits import Policy
from identity.instruments.opaque import Secret
from identity.wire.endpoint import ENVELOPE, Call, Dialect, Reads, Reply
from identity.wire.fields import Body, Code, Id, Message, Opaque, Text

risksage = Dialect("B: login with a second factor", mounts=("", "/api/v1"), shape=ENVELOPE)

_ANSWERS = {"totpCode": Factor.TOTP, "emailCode": Factor.EMAIL, "recoveryCode": Factor.RECOVERY}
_BEARER: dict[str, Any] = {"reads": Reads.BEARER, "limit": Policy.STANDARD}
_REFUSED_BEARER = (UNAUTHENTICATED, INVALID_TOKEN, TOKEN_EXPIRED, FORBIDDEN)
_ACKNOWLEDGED = {"message": "acknowledged"}


class LoginBody(Body):
    """Who signs in."""

    email = Text(required=True, called="email", max_length=320)
    password = Text(required=True, called="password", max_length=4096)


class ChallengeBody(Body):
    """A challenge and the one code that answers it."""

    mfaChallengeToken = Opaque(required=True)
    totpCode = Code()
    emailCode = Code()
    recoveryCode = Code()


class RefreshBody(Body):
    """A refresh token to exchange."""

    refreshToken = Opaque(required=True)


class TotpBody(Body):
    """A code of the authenticator."""

    totpCode = Code(required=True)


class RemoveTotpBody(Body):
    """The one code that proves whose authenticator goes."""

    totpCode = Code()
    recoveryCode = Code()


class ChangePasswordBody(Body):
    """The old password and the new one."""

    currentPassword = Text(required=True, max_length=4096)
    newPassword = Text(required=True, max_length=4096)


class ForgotBody(Body):
    """Whose password is forgotten."""

    email = Text(required=True, called="email", max_length=320)


class ResetBody(Body):
    """A code from the mail, and the new password."""

    verificationCodeID = Id(required=True)
    code = Code(required=True)
    newPassword = Text(required=True, max_length=4096)


class TokensAnswer(Schema):
    """An hour's token and the refresh token behind it."""

    accessToken = fields.String(required=True)
    refreshToken = fields.String(required=True)
    expiresIn = fields.Integer(required=True, metadata={"example": 3600})
    tokenType = fields.String(required=True, metadata={"example": "Bearer"})


class ChallengeAnswer(Schema):
    """A login that waits for its second step."""

    mfaChallengeToken = fields.String(required=True)
    mfaMethod = fields.String(required=True, metadata={"enum": ["TOTP", "EMAIL"]})
    expiresIn = fields.Integer(required=True, metadata={"example": 300})


class Factors(Schema):
    """Which second factors a user has."""

    totp = fields.Boolean(required=True)


class MeAnswer(Schema):
    """The caller, and how they signed in."""

    userID = fields.UUID(required=True)
    alias = fields.String(required=True)
    fullName = fields.String(required=True)
    email = fields.String(required=True)
    roles = fields.List(fields.String(), required=True)
    groups = fields.List(fields.String(), required=True)
    tenants = fields.Dict(keys=fields.String(), values=fields.List(fields.String()), required=True)
    amr = fields.List(fields.String(), required=True)
    authTime = fields.Integer(required=True)
    sessionID = fields.UUID(required=True)
    mfa = fields.Nested(Factors, required=True)


class EnrolAnswer(Schema):
    """A new authenticator's seed, for the app or as a QR code of the URI."""

    secret = fields.String(required=True)
    otpauthUri = fields.String(required=True)
    expiresIn = fields.Integer(required=True, metadata={"example": 600})


class RecoveryCodesAnswer(Schema):
    """Ten codes that each stand in for the authenticator once; they are shown only here."""

    recoveryCodes = fields.List(fields.String(), required=True)


class VerificationAnswer(Schema):
    """What the code from the mail belongs to."""

    verificationCodeID = fields.UUID(required=True)


# Signing in.


@risksage.endpoint(
    "POST",
    "/auth/login",
    headers=("Origin",),
    limit=Policy.AUTH,
    body=LoginBody,
    answer=ChallengeAnswer,
    refusals=(INVALID_CREDENTIALS, ACCESS_WINDOW_EXPIRED, FORBIDDEN, LOCKED_OUT, RATE_LIMITED, VALIDATION),
)
def login(call: Call) -> Reply:
    """Exchange an email and a password for a challenge, which a second factor answers.

    Where `IDENTITY_SECOND_FACTOR=enrolled`, a user without TOTP gets the tokens of `/auth/mfa/challenge` at once.
    """
    resource = by_password.user_resource(call.rt, call.header("origin"))
    outcome = by_password.sign_in(
        call.rt, call.origin, identifier=call.body["email"], password=call.body["password"], resource=resource
    )
    if isinstance(outcome, Grant):
        return Reply(_tokens(call.hand_out(outcome.access), outcome.refresh))
    return Reply(
        {
            "mfaChallengeToken": outcome.token.reveal(),
            "mfaMethod": outcome.factor,
            "expiresIn": outcome.expires_in,
        }
    )


@risksage.endpoint(
    "POST",
    "/auth/mfa/challenge",
    limit=Policy.AUTH,
    body=ChallengeBody,
    answer=TokensAnswer,
    refusals=(INVALID_CODE, LOCKED_OUT, VALIDATION),
)
def answer_challenge(call: Call) -> Reply:
    """Answer a challenge with a TOTP, emailed or recovery code, for an hour's token and a refresh token."""
    factor, code = _one_code(call, *_ANSWERS)
    grant = by_password.complete(
        call.rt,
        call.origin,
        token=call.body["mfaChallengeToken"],
        handout=Handout.REFRESHABLE,
        code=code,
        factor=factor,
    )
    return Reply(_tokens(call.hand_out(grant.access), grant.refresh))


@risksage.endpoint(
    "POST",
    "/auth/refresh",
    limit=Policy.AUTH,
    body=RefreshBody,
    answer=TokensAnswer,
    refusals=(INVALID_TOKEN, TOKEN_EXPIRED, VALIDATION),
)
def refresh(call: Call) -> Reply:
    """Exchange a refresh token for a new token and the refresh token's successor."""
    access, successor = by_password.refresh(call.rt, call.origin, call.body["refreshToken"])
    return Reply(_tokens(call.hand_out(access), successor))


@risksage.endpoint("POST", "/auth/logout", answer=Message, refusals=_REFUSED_BEARER, **_BEARER)
def logout(call: Call) -> Reply:
    """End the session of the caller."""
    own.log_out(call.rt, call.origin, _session(call))
    return Reply(_ACKNOWLEDGED)


@risksage.endpoint("GET", "/auth/me", answer=MeAnswer, refusals=_REFUSED_BEARER, **_BEARER)
def me(call: Call) -> Reply:
    """Tell who the caller is and how they signed in."""
    live = _session(call)
    user = accounts.get(call.rt, live.user_id)
    return Reply(
        {
            "userID": user.id,
            "alias": user.alias,
            "fullName": user.full_name,
            "email": user.email,
            "roles": sorted(live.roles),
            "groups": sorted(live.groups),
            "tenants": {tenant: sorted(roles) for tenant, roles in passage.tenants_of(call.rt, call.caller).items()},
            "amr": sorted(live.session.amr),
            "authTime": int(live.session.auth_time.timestamp()),
            "sessionID": live.session.id,
            "mfa": {"totp": factors.is_enrolled(call.rt, user.id)},
        }
    )


# Second factors.


@risksage.endpoint(
    "POST", "/auth/mfa/totp", answer=EnrolAnswer, refusals=(*_REFUSED_BEARER, STALE_LOGIN, CONFLICT), **_BEARER
)
def enrol_totp(call: Call) -> Reply:
    """Begin to add an authenticator app; it counts once confirmed with its first code."""
    enrolment = factors.enrol(call.rt, call.origin, _recent_user(call))
    return Reply(
        {
            "secret": enrolment.seed.reveal(),
            "otpauthUri": enrolment.uri.reveal(),
            "expiresIn": enrolment.expires_in,
        }
    )


@risksage.endpoint(
    "POST",
    "/auth/mfa/totp/confirm",
    body=TotpBody,
    answer=RecoveryCodesAnswer,
    refusals=(*_REFUSED_BEARER, STALE_LOGIN, INVALID_CODE, LOCKED_OUT, VALIDATION),
    **_BEARER,
)
def confirm_totp(call: Call) -> Reply:
    """Switch the new authenticator app on with its first code, and get ten recovery codes."""
    return _recovery_codes(factors.confirm(call.rt, call.origin, _recent_user(call), call.body["totpCode"]))


@risksage.endpoint(
    "DELETE",
    "/auth/mfa/totp",
    body=RemoveTotpBody,
    answer=Message,
    refusals=(*_REFUSED_BEARER, STALE_LOGIN, INVALID_CODE, LOCKED_OUT, VALIDATION),
    **_BEARER,
)
def remove_totp(call: Call) -> Reply:
    """Remove the authenticator app and its recovery codes, with a code of either."""
    user = _recent_user(call)
    factor, code = _one_code(call, "totpCode", "recoveryCode")
    factors.remove_own(call.rt, call.origin, user, factor=factor, code=code)
    return Reply(_ACKNOWLEDGED)


@risksage.endpoint(
    "POST",
    "/auth/mfa/recovery-codes",
    body=TotpBody,
    answer=RecoveryCodesAnswer,
    refusals=(*_REFUSED_BEARER, STALE_LOGIN, INVALID_CODE, LOCKED_OUT, VALIDATION),
    **_BEARER,
)
def renew_recovery_codes(call: Call) -> Reply:
    """Make ten new recovery codes; the old ones are void."""
    return _recovery_codes(
        factors.renew_recovery_codes(call.rt, call.origin, _recent_user(call), call.body["totpCode"])
    )


# Passwords.


@risksage.endpoint(
    "PUT",
    "/auth/password",
    body=ChangePasswordBody,
    answer=Message,
    refusals=(*_REFUSED_BEARER, STALE_LOGIN, INVALID_CREDENTIALS, LOCKED_OUT, VALIDATION),
    **_BEARER,
)
def change_password(call: Call) -> Reply:
    """Replace the caller's password; every other session of theirs ends."""
    user = _recent_user(call)
    new_password.change(
        call.rt,
        call.origin,
        user,
        session_id=call.caller.session_id,
        current_password=call.body["currentPassword"],
        new_password=call.body["newPassword"],
    )
    return Reply(_ACKNOWLEDGED)


@risksage.endpoint(
    "POST",
    "/auth/password/forgot",
    limit=Policy.AUTH,
    body=ForgotBody,
    answer=VerificationAnswer,
    status=202,
    refusals=(RATE_LIMITED, VALIDATION),
)
def forgot_password(call: Call) -> Reply:
    """Mail a code that resets the password of this address; whether anybody has it is not told."""
    return Reply({"verificationCodeID": new_password.forgot(call.rt, call.origin, call.body["email"])})


@risksage.endpoint(
    "PUT",
    "/auth/password/reset",
    limit=Policy.AUTH,
    body=ResetBody,
    answer=Message,
    refusals=(INVALID_CODE, LOCKED_OUT, VALIDATION),
)
def reset_password(call: Call) -> Reply:
    """Choose a new password with the code from the mail; every session of the user ends, and nobody is signed in."""
    new_password.reset(
        call.rt,
        call.origin,
        verification_id=call.body["verificationCodeID"],
        code=call.body["code"],
        new_password=call.body["newPassword"],
    )
    return Reply(_ACKNOWLEDGED)


def _session(call: Call) -> Live:
    """The session of the caller. An application's token has none: these routes are for users (FORBIDDEN)."""
    if call.caller.session is None:
        raise Refused(FORBIDDEN, detail="no user behind this token")
    return call.caller.session


def _recent_user(call: Call) -> UserInfo:
    """The caller, who signed in a short while ago. Raises Refused(STALE_LOGIN)."""
    live = _session(call)
    call.caller.require_recent_login(call.rt)
    return accounts.get(call.rt, live.user_id)


def _one_code(call: Call, *names: str) -> tuple[Factor, str]:
    """The one code that the body carries, of these fields."""
    given = [name for name in names if name in call.body]
    if len(given) != 1:
        allowed = f"{', '.join(names[:-1])} or {names[-1]}"
        raise Refused(VALIDATION.saying(f"Send exactly one of {allowed}"), field=given[1] if given else names[0])
    return _ANSWERS[given[0]], call.body[given[0]]


def _recovery_codes(codes: list[Secret]) -> Reply:
    return Reply({"recoveryCodes": [code.reveal() for code in codes]})


def _tokens(access: AccessToken, successor: Secret | None) -> dict[str, Any]:
    assert successor is not None, "a refreshable login has a refresh token"
    return {
        "accessToken": access.text,
        "refreshToken": successor.reveal(),
        "expiresIn": access.expires_in,
        "tokenType": access.token_type,
    }
