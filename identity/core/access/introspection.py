"""What a token of ours stands for at this moment, told to machines, and ended by them (RFC 7662, RFC 7009).

Whose a token is decides: a machine hears of its own tokens, and of everybody's only with the scope `introspect`; it ends its own and no
others. Whatever it may not hear of, like whatever is forged, expired or revoked, is simply not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from identity.ambient import Origin
from identity.core.access import callers, passage
from identity.core.access.callers import Caller, Presented
from identity.core.clients import machine_tokens
from identity.core.clients.applications import INTROSPECT_SCOPE, ApplicationInfo
from identity.core.tokens import claims, custom_claims, refresh, sessions
from identity.core.tokens.claims import Claims
from identity.core.tokens.session_rows import SessionInfo
from identity.errors import INVALID_TOKEN, TOKEN_EXPIRED, Refused
from identity.instruments.opaque import Kind
from identity.runtime import Runtime


def find(rt: Runtime, origin: Origin, asking: ApplicationInfo, token: str) -> dict[str, Any] | None:
    """What a living token says, with the rights of its subject as of now; or None where there is nothing for `asking` to hear.

    Access tokens and session bearers are known here. A refresh token is not: whoever asks is about to accept what was presented, and a
    refresh token opens nothing.
    """
    try:
        caller = callers.identify(rt, origin, Presented(token), own_routes=False)
        facts = _facts(rt, caller)
    except Refused as refused:
        _require_verdict(refused)
        return None
    may_hear = facts["client_id"] == asking.id or INTROSPECT_SCOPE in asking.scopes
    return facts if may_hear else None


def revoke(rt: Runtime, origin: Origin, asking: ApplicationInfo, token: str) -> None:
    """End a token of `asking`: an application's by its `jti`; a user's token, bearer or refresh token with the session behind it.

    Anything else is left alone without a word: a stranger must not learn whether a token is real, let alone end it.
    """
    claims, session = _ownership(rt, token)
    if session is not None and session.client_id == asking.id:
        with rt.unit(origin) as unit:
            sessions.revoke(rt, unit, session.id, actor=asking.id, reason="revoked by its application")
    elif session is None and claims is not None and claims.client_id == asking.id:
        with rt.unit(origin) as unit:
            machine_tokens.revoke(rt, unit, claims, actor=asking.id)


def _facts(rt: Runtime, caller: Caller) -> dict[str, Any]:
    rights: dict[str, Any] = {
        "roles": sorted(caller.roles),
        "groups": sorted(caller.groups),
        "tenants": {tenant: sorted(roles) for tenant, roles in passage.tenants_of(rt, caller).items()},
    }
    # Nothing is left out here, whatever did not fit into the token.
    said: Mapping[str, Any] = custom_claims.without(caller.claims.raw) if caller.claims else {}
    rights |= passage.claims_of(rt, caller)
    if caller.session is None:
        return {
            **said,
            **rights,
            "scope": " ".join(sorted(caller.scopes)),
            "token_type": "Bearer",
        }
    session, issuer = caller.session.session, rt.settings.issuer
    if caller.claims is None:
        said = {
            "iss": issuer,
            "sub": session.user_id,
            "client_id": session.client_id,
            "aud": claims.audience_claim(session.resource, issuer),
            "iat": int(session.created_at.timestamp()),
            "exp": int(session.expires_at.timestamp()),
            "auth_time": int(session.auth_time.timestamp()),
            "amr": list(session.amr),
            "sid": session.id,
        }
    return {**said, **rights, "username": caller.alias, "token_type": "Bearer"}


def _ownership(rt: Runtime, token: str) -> tuple[Claims | None, SessionInfo | None]:
    """The claims of an application's token, or the session behind a user's; neither for what is not ours or over."""
    if token.startswith(f"{Kind.REFRESH}_"):
        return None, refresh.find_session(rt, token)
    try:
        if token.startswith(f"{Kind.SESSION}_"):
            return None, sessions.find_live_bearer(rt, token).session
        said = claims.read(rt, token)
    except Refused as refused:
        _require_verdict(refused)
        return None, None
    return said, sessions.find(rt, said.session_id) if said.is_user else None


def _require_verdict(refused: Refused) -> None:
    """Raise `refused` again unless it judges the token: not to know is no reason to call it dead, nor to claim that it was ended."""
    if refused.problem.code not in (INVALID_TOKEN.code, TOKEN_EXPIRED.code):
        raise refused
