"""Every way the kit says no, and how a refusal looks on the wire.

Codes, statuses and words are those of the service (docs/interfaces.md), so that a client meets one envelope whoever refuses it.
What only operators may know stands in `reason`; it never holds a token, and never reaches the caller.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

log: Final = logging.getLogger("identity_verifier")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of refusal. `bearer` is the error code of RFC 6750 section 3.1, None where no token was presented."""

    code: str
    status: int
    message: str
    bearer: str | None = None


NO_TOKEN: Final = Problem("UNAUTHENTICATED", 401, "This route needs a credential")
TWO_TOKENS: Final = Problem("MALFORMED_REQUEST", 400, "The request carries more than one credential", "invalid_request")
BAD_TOKEN: Final = Problem("INVALID_TOKEN", 401, "The token is not valid", "invalid_token")
EXPIRED: Final = Problem("TOKEN_EXPIRED", 401, "The token has expired", "invalid_token")
CHANGED: Final = Problem(
    "INVALID_TOKEN", 401, "The rights of this caller have changed: get a new token and try again", "invalid_token"
)
NO_TENANT: Final = Problem("MISSING_TENANT", 400, "X-Tenant-Id header is required", "invalid_request")
FORBIDDEN: Final = Problem("FORBIDDEN", 403, "The caller may not do this", "insufficient_scope")
TENANTS_UNTOLD: Final = Problem(
    "FORBIDDEN", 403, "The token does not name its tenants, and this service has nobody to ask", "insufficient_scope"
)
UNAVAILABLE: Final = Problem("UNAVAILABLE", 503, "A part that this needs is down, try again soon")


class Refused(Exception):
    """The request ends here. `status` is its HTTP status, `code` the word for programs, `reason` the line for the log."""

    def __init__(
        self, problem: Problem, reason: str, *, retry_after_seconds: int | None = None, scope: Iterable[str] = ()
    ) -> None:
        super().__init__(f"{problem.code}: {reason}")
        self.problem = problem
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.scope = tuple(scope)

    @property
    def status(self) -> int:
        """The HTTP status to answer with."""
        return self.problem.status

    @property
    def code(self) -> str:
        """The constant that programs compare."""
        return self.problem.code

    @property
    def message(self) -> str:
        """Constant text that the caller may read."""
        return self.problem.message


class Unreachable(Exception):
    """The issuer gave no answer that can be used; what follows from that is decided by who asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A refusal as a response."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)


def answer(refused: Refused, *, request_id: str | None = None, where: str = "") -> Answer:
    """The response for a refusal; the log gets its reason, with the `x-error-id` that the response carries.

    `where` names the request for the log (method and path, never its headers).
    """
    problem = refused.problem
    error_id = str(uuid.uuid4())
    level = logging.WARNING if problem.status >= 500 else logging.INFO
    log.log(
        level, "refused %s %s: %s (x-error-id %s) %s", problem.status, problem.code, refused.reason, error_id, where
    )
    headers = [
        ("Content-Type", "application/json"),
        ("Cache-Control", "no-store"),
        ("x-error", problem.message),
        ("x-error-id", error_id),
        ("X-Request-Id", request_id if request_id and _REQUEST_ID.fullmatch(request_id) else str(uuid.uuid4())),
    ]
    if problem.status in (400, 401, 403):
        headers.append(("WWW-Authenticate", _challenge(refused)))
    if problem.status == 503:
        headers.append(("Retry-After", str(refused.retry_after_seconds or 5)))
    body = {"error": problem.code, "message": problem.message, "status": problem.status}
    return Answer(problem.status, json.dumps(body).encode(), headers)


def _challenge(refused: Refused) -> str:
    problem = refused.problem
    if problem.bearer is None:
        return "Bearer"
    parts = [f'error="{problem.bearer}"', f'error_description="{problem.message}"']
    if refused.scope:
        parts.append(f'scope="{" ".join(refused.scope)}"')
    return "Bearer " + ", ".join(parts)
