"""The guard for Flask.

guard = Guard(verifier)

@app.get("/reports")
@guard(role="analyst", tenant="header")
def reports():
    return {"for": current_caller().subject}
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flask

from identity_verifier.caller import Caller
from identity_verifier.demands import TenantFrom, Words, demand
from identity_verifier.refusals import Refused, answer
from identity_verifier.verifier import Verifier

View = TypeVar("View", bound=Callable[..., Any])


class Guard:
    """Decorates views: none is called without a good token that meets the demand."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def __call__(
        self, *, role: Words = None, scope: Words = None, tenant: TenantFrom = None, fresh: bool = False
    ) -> Callable[[View], View]:
        """The decorator for a view with that demand; it goes below the route."""
        needed = demand(self._verifier, role=role, scope=scope, tenant=tenant, fresh=fresh)

        def decorate(view: View) -> View:
            @functools.wraps(view)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                headers = flask.request.headers
                try:
                    options = needed.options(headers.get("X-Tenant-Id"))
                    flask.g.identity_caller = self._verifier.verify(headers.get("Authorization"), **options)
                except Refused as refused:
                    return refusal(refused)
                return flask.current_app.ensure_sync(view)(*args, **kwargs)

            return guarded  # type: ignore[return-value]

        return decorate


def current_caller() -> Caller:
    """Who calls the guarded view that runs now."""
    caller: Caller = flask.g.identity_caller
    return caller


def refusal(refused: Refused) -> flask.Response:
    """A refusal as a response; also fit as `app.register_error_handler(Refused, refusal)` for `Caller.require` in a view."""
    request = flask.request
    said = answer(refused, request_id=request.headers.get("X-Request-Id"), where=f"{request.method} {request.path}")
    return flask.Response(said.body, said.status, said.headers)
