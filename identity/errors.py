"""Every way this service says no.

A `Problem` is an entry of the public catalogue: its code, status and text are constants and part of the contract.
`Refused` is how any code says that a request ends with one; what only operators may know travels in its `detail` and
`evidence`. Nothing here knows HTTP libraries: the edge renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the error table.

    `keeps_writes`: the unit of work that is refused with this problem commits all the same, because the refusal itself
    is worth remembering (a counted failure, a session ended by reuse).
    `oauth`: the RFC 6749 section 5.2 code that group E renders instead.
    `bearer`: the RFC 6750 section 3.1 code of the `WWW-Authenticate` challenge, on routes that read a bearer.
    """

    code: str
    status: int
    message: str
    keeps_writes: bool = False
    oauth: str = "invalid_request"
    bearer: str | None = None

    def saying(self, message: str, **changes: Any) -> Problem:
        """The same problem in other constant words."""
        return replace(self, message=message, **changes)


class Refused(Exception):
    """This request ends here with `problem`.

    `field` blames one input field. `detail` is one line for the log and for `identity explain`; `evidence` is what the
    failed check expected and saw. Neither ever holds a secret, and neither ever reaches the client.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        detail: str = "",
        field: str | None = None,
        evidence: Mapping[str, Any] | None = None,
        retry_after_seconds: int | None = None,
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(f"{problem.code}: {detail or problem.message}")
        self.problem = problem
        self.detail = detail
        self.field = field
        self.evidence = dict(evidence or {})
        self.retry_after_seconds = retry_after_seconds
        if cause is not None:
            self.__cause__ = cause


# What the reader of a request can get wrong.
MALFORMED = Problem("MALFORMED_REQUEST", 400, "The request body is not a well-formed JSON object")
MALFORMED_REQUEST_HEAD = MALFORMED.saying("The request line or a header is malformed")
UNREADABLE = MALFORMED.saying("This is not an HTTP request that we can read")  # 408, 414, 431, 501: HTTP's own statuses
TWO_CREDENTIALS = MALFORMED.saying("The request carries credentials of two different subjects")
MISSING_TENANT = Problem("MISSING_TENANT", 400, "X-Tenant-Id header is required")
VALIDATION = Problem("VALIDATION_ERROR", 422, "The request failed validation", oauth="invalid_request")
TOO_LARGE = Problem("PAYLOAD_TOO_LARGE", 413, "The request body is too large")
UNSUPPORTED_MEDIA = Problem("UNSUPPORTED_MEDIA_TYPE", 415, "Send application/json in UTF-8")
UNSUPPORTED_FORM = UNSUPPORTED_MEDIA.saying("Send application/x-www-form-urlencoded in UTF-8")
NOT_FOUND = Problem("NOT_FOUND", 404, "There is nothing here, or nothing that this caller may know of")
METHOD_NOT_ALLOWED = Problem("METHOD_NOT_ALLOWED", 405, "This path does not answer that method")

# Who the caller is.
UNAUTHENTICATED = Problem("UNAUTHENTICATED", 401, "This route needs a credential", oauth="invalid_client")
INVALID_CREDENTIALS = Problem(
    "INVALID_CREDENTIALS", 401, "Email and password do not match", keeps_writes=True, oauth="invalid_client"
)
CLIENT_MISMATCH = INVALID_CREDENTIALS.saying("Client ID and secret do not match")
KEY_MISMATCH = INVALID_CREDENTIALS.saying("API key and secret do not match")
ACCESS_WINDOW_EXPIRED = Problem("ACCESS_WINDOW_EXPIRED", 401, "User access window has expired")
MFA_REQUIRED = Problem("MFA_REQUIRED", 401, "This user signs in with a second factor")
INVALID_CODE = Problem("INVALID_CODE", 401, "That code is not right or no longer valid", keeps_writes=True)
INVALID_TOKEN = Problem(
    "INVALID_TOKEN", 401, "The token is not valid", keeps_writes=True, oauth="invalid_grant", bearer="invalid_token"
)
TOKEN_EXPIRED = Problem("TOKEN_EXPIRED", 401, "The token has expired", oauth="invalid_grant", bearer="invalid_token")
STALE_LOGIN = Problem(
    "UNAUTHENTICATED",
    401,
    "This action needs a login younger than 15 minutes",
    bearer="insufficient_user_authentication",  # RFC 9470 section 3
)

# What the caller may do.
FORBIDDEN = Problem("FORBIDDEN", 403, "The caller may not do this", oauth="unauthorized_client")
REGISTRATION_DISABLED = Problem("REGISTRATION_DISABLED", 403, "Self-registration is switched off")
CONFLICT = Problem("CONFLICT", 409, "That conflicts with what exists already")
STALE = Problem("PRECONDITION_FAILED", 412, "It has changed in between; read it again")
RATE_LIMITED = Problem("RATE_LIMITED", 429, "Too many requests", oauth="temporarily_unavailable")
LOCKED_OUT = RATE_LIMITED.saying("Too many authentication attempts. Try again in 5 minutes")
MAIL_LIMITED = RATE_LIMITED.saying("Too many codes were mailed to this address. Try again in a few minutes")

# What the service cannot do now.
INTERNAL = Problem("INTERNAL_ERROR", 500, "Something went wrong on our side", oauth="server_error")
UNAVAILABLE = Problem(
    "UNAVAILABLE", 503, "A part that this needs is down, try again soon", oauth="temporarily_unavailable"
)

CATALOGUE: tuple[tuple[Problem, str], ...] = (
    (MALFORMED, "not JSON, not an object, a duplicate key, NaN, a lone surrogate, NUL, nested deeper than 20"),
    (MISSING_TENANT, "a route that needs a tenant got none"),
    (UNAUTHENTICATED, "no credential on a route that needs one, or a login that is too old for the deed"),
    (
        INVALID_CREDENTIALS,
        "wrong email or password, client id or secret, key or secret; unknown and disabled look alike",
    ),
    (ACCESS_WINDOW_EXPIRED, "right password, outside the user's access window"),
    (MFA_REQUIRED, "right password, but this user has a second factor and this route got none"),
    (INVALID_CODE, "wrong, spent, expired or unknown code, challenge or verification id"),
    (INVALID_TOKEN, "forged, malformed, revoked or of the wrong type"),
    (TOKEN_EXPIRED, "genuine signature, past its time"),
    (FORBIDDEN, "authenticated, not allowed; foreign and unknown tenants look alike"),
    (REGISTRATION_DISABLED, "self-registration is switched off"),
    (NOT_FOUND, "no such route or object, or one that this caller must not know of"),
    (METHOD_NOT_ALLOWED, "the path exists, the method does not; see `Allow`"),
    (CONFLICT, "an address, alias or id is in use, or the last administrator would go"),
    (STALE, "`If-Match` names another version than the present one"),
    (TOO_LARGE, "the body is over its limit"),
    (UNSUPPORTED_MEDIA, "the body is not of the media type that the route reads"),
    (VALIDATION, "body or header fails its schema (400 in groups C and H)"),
    (RATE_LIMITED, "a rate limit or a lockout; see `Retry-After`"),
    (INTERNAL, "a fault of ours; the id finds the log line"),
    (UNAVAILABLE, "the database or another needed part is down; see `Retry-After`"),
)
"""The public error table: each code with the reason that a reader of it needs."""
