"""Signing a user in: from a proven password (and second factor) to a session, for every dialect.

The rule that no route accepts less than a user's factors is kept here and nowhere else.
"""

from __future__ import annotations

from identity.core import accounts, applications, mfa, sessions
from identity.core.applications import STANDARD_APP_ID
from identity.core.tokens import AccessToken, resource_of
from identity.errors import MFA_REQUIRED, Refused
from identity.runtime import Origin, Runtime


def user_resource(rt: Runtime, origin: str | None) -> str:
    """The audience that a login's `Origin` header names, or the default. Raises Refused(VALIDATION) or Refused(FORBIDDEN)."""
    settings = rt.settings
    return resource_of(
        origin, allowed=settings.origins, required=settings.require_origin, fallback=settings.default_audience
    )


def by_password(
    rt: Runtime, origin: Origin, *, identifier: str, password: str, totp_code: str | None, resource: str
) -> AccessToken:
    """A day's token for a right password, and a right TOTP code where the user has TOTP (else MFA_REQUIRED)."""
    proof = accounts.check_password(rt, origin, identifier, password)
    enrolled = mfa.is_enrolled(rt, proof.user.id)
    if enrolled and totp_code is None:
        accounts.waste(rt, origin, proof)
        raise Refused(MFA_REQUIRED, detail="enrolled in TOTP, no code given")
    seconds = rt.settings.user_token_seconds
    with rt.unit(origin) as unit:
        user = accounts.admit(rt, unit, proof)
        if enrolled:
            mfa.consume_totp(rt, unit, user.id, totp_code or "")
        opened = sessions.open_session(
            rt,
            unit,
            user,
            kind="token",
            amr=("pwd", "otp") if enrolled else ("pwd",),
            client_id=standard_client(rt),
            resource=resource,
            idle_seconds=seconds,
            absolute_seconds=seconds,
        )
    return sessions.token_for(rt, sessions.live_of(user, opened.session), seconds=seconds)


def standard_client(rt: Runtime) -> str:
    """The client id that stands in a user's token when no application asked for it."""
    app = applications.find_by_app_id(rt, STANDARD_APP_ID)
    assert app is not None, "made at first start, never deleted"
    return app.id
