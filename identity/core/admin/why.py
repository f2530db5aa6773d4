"""Why was this refused: from what somebody pastes (an `x-error-id`, a whole response, a token) to one sentence and the thing at fault.

Who was refused is told nothing of this: it is for whoever operates the service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from identity.canonical import canonical_id, decode_base64url
from identity.core.access import callers
from identity.core.access.callers import Caller, Presented
from identity.core.admin import causes, naming
from identity.core.admin.by import By
from identity.core.admin.causes import Cause
from identity.core.admin.naming import Named
from identity.core.record import audit, explain
from identity.core.record.audit import Event
from identity.core.record.explain import Counted, Explanation
from identity.errors import VALIDATION, Refused
from identity.instruments.opaque import Kind
from identity.runtime import Runtime

_NOTHING: Final = VALIDATION.saying("There is no x-error-id and no token in this")
_HEADER_ID: Final = re.compile(r"x-error-id\W{1,8}([0-9A-Fa-f-]{36})", re.IGNORECASE | re.ASCII)
_ANY_ID: Final = re.compile(
    r"(?<![0-9A-Za-z-])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Za-z-])", re.ASCII
)
_JWT: Final = re.compile(r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*", re.ASCII)
_SECRET: Final = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(Kind)})_[0-9A-Za-z]+", re.ASCII)
_HOUR: Final = timedelta(hours=1)
_SECRET_EVENTS: Final = "secret."
_KINDS: Final[Mapping[str, str]] = {
    Kind.REFRESH: "This is a refresh token: it is good at POST /auth/refresh alone, and is no bearer.",
    Kind.API_KEY: "This is the api-key of a key pair: it goes into the header api-key, with its secret in api-secret.",
    Kind.API_SECRET: "This is the secret of a key pair: it goes into the header api-secret. Rotate it: it was pasted here.",
    Kind.CLIENT_SECRET: "This is a client secret: it earns tokens, and is no bearer. Rotate it: it was pasted here.",
    Kind.INVITATION: "This is the token of an invitation's link, and no bearer.",
    Kind.RESET: "This is the token of a password link, and no bearer.",
    Kind.CONSOLE: "This is the bearer of a console session: it opens the console and nothing else.",
    Kind.LINK: "This is the token of a console link, and no bearer.",
}


@dataclass(frozen=True, slots=True)
class Why:
    """A refusal explained: the sentence, what the check expected and saw, who it was, and what is at fault."""

    explanation: Explanation
    cause: Cause
    expected: Any
    seen: Any
    near_miss: str | None
    rest: Mapping[str, Any]
    caller: Named | None
    at_fault: tuple[Named, ...]
    #: The newest change of the secrets of the application at fault.
    changed: Event | None
    #: The same check within the hour around it; None: nobody else.
    alike: Counted | None
    #: How many more refusals that address had in that hour.
    more_from_address: int


@dataclass(frozen=True, slots=True)
class TokenVerdict:
    """What a pasted token is, and whether it is good now. The token itself is not part of it."""

    is_good: bool
    cause: Cause
    error: str
    check: str
    expected: Any
    seen: Any
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    caller: Named | None
    ends_at: datetime | None


def error_id_in(pasted: str) -> str | None:
    """The x-error-id in a pasted text: of a whole response, or standing alone; None where there is none."""
    found = _HEADER_ID.search(pasted)
    if found is not None:
        return canonical_id(found[1])
    # A token holds no id, and a body may hold several; the one that stands alone is meant.
    alone = _ANY_ID.findall(pasted) if not _JWT.search(pasted) else []
    return canonical_id(alone[0]) if alone else None


def refusal(rt: Runtime, by: By, error_id: str) -> Why:
    """Why the request that was answered with this id was refused. Raises Refused(NOT_FOUND), Refused(FORBIDDEN) for an owner."""
    by.require_everything()
    kept = explain.get(rt, error_id)
    rest = dict(kept.evidence)
    expected, seen = rest.pop("expected", None), rest.pop("seen", None)
    near_miss = rest.pop("near_miss", None)
    rest.pop("skew_seconds", None)
    since, until = kept.at - _HOUR, kept.at + _HOUR
    same = explain.counted(rt, since=since, until=until, error=kept.error, check=kept.detail)
    named = naming.names(rt, [one for one in (kept.caller, *_ids(kept.evidence)) if one])
    at_fault = tuple(one for one in named.values() if one.kind and one.id != kept.caller)
    caller = named.get(kept.caller)
    machine = next((one.id for one in (*at_fault, *((caller,) if caller else ())) if one.kind == "application"), None)
    return Why(
        explanation=kept,
        cause=causes.of(kept),
        expected=expected,
        seen=seen,
        near_miss=near_miss,
        rest=rest,
        caller=caller,
        at_fault=at_fault,
        changed=_newest_change(rt, machine) if machine else None,
        alike=same[0] if same and same[0].count > 1 else None,
        more_from_address=explain.count(rt, address=kept.address, since=since, until=until) - 1,
    )


def token(rt: Runtime, by: By, pasted: str) -> TokenVerdict:
    """What a pasted token is and whether it is good now, by the checks of every route. Raises Refused(VALIDATION) where there is none."""
    by.require_everything()
    found = _JWT.search(pasted)
    secret = _SECRET.search(pasted)
    if found is None and secret is None:
        raise Refused(_NOTHING, field="pasted")
    if found is None and secret is not None and secret[1] in _KINDS:
        return _another_kind(secret[1])
    text = found[0] if found is not None else secret[0] if secret is not None else ""
    parts = text.split(".")
    header, claims = (_json_in(part) for part in (parts[0], parts[1] if len(parts) > 1 else ""))
    try:
        caller = callers.read(rt, by.origin, Presented(text), own_routes=False)
    except Refused as refused:
        return _not_good(refused, header, claims)
    named = naming.names(rt, [caller.subject])[caller.subject]
    good = Cause(
        "This token is good now.",
        "The token is good: what refused it asked for something more, so please send the x-error-id.",
    )
    return TokenVerdict(True, good, "", "", None, None, header, claims, named, _end_of(caller))


def _another_kind(kind: str) -> TokenVerdict:
    """What is no bearer at all, and not looked at."""
    cause = Cause(_KINDS[kind], "Your program sends another credential where the token should be.")
    return TokenVerdict(False, cause, "", "", None, None, {}, {}, None, None)


def _not_good(refused: Refused, header: Mapping[str, Any], claims: Mapping[str, Any]) -> TokenVerdict:
    problem, evidence = refused.problem, refused.evidence
    check = refused.detail or problem.message
    cause = causes.cause_of(problem.code, check, problem.message)
    expected, seen = evidence.get("expected"), evidence.get("seen")
    return TokenVerdict(False, cause, problem.code, check, expected, seen, header, claims, None, None)


def _end_of(caller: Caller) -> datetime | None:
    return caller.session.session.expires_at if caller.session is not None else None


def _newest_change(rt: Runtime, client_id: str) -> Event | None:
    events = audit.about(rt, client_id, limit=50)
    return next((one for one in events if one.action.startswith(_SECRET_EVENTS)), None)


def _ids(evidence: Mapping[str, Any]) -> list[str]:
    """The ids of users and applications that a check named."""
    return [str(evidence[name]) for name in ("user", "client") if canonical_id(str(evidence.get(name, "")))]


def _json_in(part: str) -> Mapping[str, Any]:
    try:
        found = json.loads(decode_base64url(part) or b"null")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
