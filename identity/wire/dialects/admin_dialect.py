"""What the modules of group H have in common: their one `Dialect`, how its routes are declared, and how requests are read.

Who may call is decided before anything else of a request is read: a user with the role `users_admin`, their key pair, or an
application's token with the scope `admin`. Every deed answers 202. `ETag` and `If-Match` keep two administrators from overwriting each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from marshmallow import Schema

from identity import documents
from identity.core.admin.by import By
from identity.core.admin.importing import Taken
from identity.errors import (
    CONFLICT,
    FORBIDDEN,
    INVALID_TOKEN,
    KEY_MISMATCH,
    LOCKED_OUT,
    NOT_FOUND,
    RATE_LIMITED,
    STALE,
    TOKEN_EXPIRED,
    TOO_LARGE,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    VALIDATION,
    Problem,
    Refused,
)
from identity.instruments.limits import Policy
from identity.runtime import Runtime
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects.lists import PAGING, one
from identity.wire.endpoint import ENVELOPE_400, Call, Dialect, Reads, Reply

admin = Dialect(
    "H: administration",
    mounts=("", "/api/auth/v2"),
    shape=ENVELOPE_400,
    reads=Reads.BEARER_OR_KEY,
    admin=True,
    limit=Policy.STANDARD,
)

ACKNOWLEDGED: Final = {"message": "acknowledged"}
ALWAYS: Final = (
    UNAUTHENTICATED,
    INVALID_TOKEN,
    TOKEN_EXPIRED,
    KEY_MISMATCH,
    LOCKED_OUT,
    RATE_LIMITED,
    TWO_CREDENTIALS,
    FORBIDDEN,
    VALIDATION,
)
IMPORT_BYTES: Final = 8 * 1024 * 1024
_IMPORT_LINES: Final = 10_000
_Handler = Callable[[Call], Reply]


def show(path: str, answer: type[Schema]) -> Callable[[_Handler], _Handler]:
    """Declare a route that shows one thing."""
    return admin.endpoint("GET", path, answer=answer, ignores_body=True, refusals=(*ALWAYS, NOT_FOUND))


def listing(
    path: str, plural: str, item: type[Schema], *, filters: tuple[str, ...] = (), refusals: tuple[Problem, ...] = ()
) -> Callable[[_Handler], _Handler]:
    """Declare a route that lists a page of things."""
    return admin.endpoint(
        "GET",
        path,
        answer=schemas.page_of(plural, item),
        query=(*PAGING, *filters),
        ignores_body=True,
        refusals=(*ALWAYS, *refusals),
    )


def deed(
    method: str,
    path: str,
    *,
    body: type[Schema] | None = None,
    answer: type[Schema] = schemas.Acknowledged,
    query: tuple[str, ...] = (),
) -> Callable[[_Handler], _Handler]:
    """Declare a route that changes something."""
    refusals = (*ALWAYS, NOT_FOUND, CONFLICT, *((STALE,) if method == "PATCH" else ()))
    return admin.endpoint(method, path, body=body, answer=answer, query=query, status=202, refusals=refusals)


def by_of(call: Call) -> By:
    """Who administers, and from where. Raises Refused(FORBIDDEN) for a key pair that would change its owner."""
    caller, path = call.caller, call.endpoint.path
    by = By(caller.subject, call.origin, by_key=caller.is_by_key)
    if path.startswith("/admin/user/{id}"):
        # An administrator's pair administers others. What it could do to its owner would outlive its own end.
        by.require_other(call.params["id"].lower())
    return by


def sought(call: Call, name: str, find: Callable[[Runtime, str], str]) -> str | None:
    """The id of whoever a query parameter names, or None where it is absent. Raises Refused(VALIDATION) for nobody."""
    text = one(call, name)
    return None if text is None else find(call.rt, text)


def imported(call: Call, take: Callable[[list[Any]], list[Taken]]) -> Reply:
    """What became of each line of an import, whose well-formed ones `take` takes. Raises Refused(TOO_LARGE) for too many at once."""
    lines: list[Any] = call.body["lines"]
    if len(lines) > _IMPORT_LINES:
        raise Refused(TOO_LARGE.saying(f"At most {_IMPORT_LINES} lines at once"), detail=f"{len(lines)} lines")
    taken = iter(take([line for line in lines if not isinstance(line, Refused)]))
    return Reply(documents.imported([line if isinstance(line, Refused) else next(taken) for line in lines]))
