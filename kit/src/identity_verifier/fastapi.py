"""The guard for FastAPI.

guard = Guard(app, verifier)

@app.get("/reports")
async def reports(caller: Annotated[Caller, Depends(guard(role="analyst", tenant="header"))]):
    return {"for": caller.subject}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.security import HTTPBearer

from identity_verifier.caller import Caller
from identity_verifier.demands import TenantFrom, Words, demand, joined
from identity_verifier.refusals import Refused, answer
from identity_verifier.verifier import Verifier

# For the OpenAPI document only: it refuses nothing by itself.
_bearer = HTTPBearer(auto_error=False, description="An access token of the issuer")


class Guard:
    """Makes dependencies that yield the `Caller`. Teaches `app` to answer its refusals in the issuer's envelope."""

    def __init__(self, app: FastAPI, verifier: Verifier) -> None:
        self._verifier = verifier
        app.add_exception_handler(Refused, refusal)

    def __call__(
        self, *, role: Words = None, scope: Words = None, tenant: TenantFrom = None, fresh: bool = False
    ) -> Callable[..., Awaitable[Caller]]:
        """The dependency of a route with that demand; it never blocks the loop."""
        needed = demand(self._verifier, role=role, scope=scope, tenant=tenant, fresh=fresh)

        async def caller(request: Request, _documented: Annotated[Any, Security(_bearer)]) -> Caller:
            options = needed.options(joined(request.headers.getlist("x-tenant-id")))
            return await self._verifier.averify(joined(request.headers.getlist("authorization")), **options)

        return caller


async def refusal(request: Request, refused: Exception) -> Response:
    """The handler of refusals; `Guard` installs it."""
    assert isinstance(refused, Refused)
    said = answer(refused, request_id=request.headers.get("x-request-id"), where=f"{request.method} {request.url.path}")
    return Response(said.body, said.status, dict(said.headers))
