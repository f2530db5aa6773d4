"""The guard for any WSGI application, as a middleware around all of it.

    application = Guard(application, verifier, role="analyst", public=("/health",))

The caller is in `environ["identity.caller"]`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from identity_verifier.demands import TenantFrom, Words, demand
from identity_verifier.refusals import Refused, answer
from identity_verifier.verifier import Verifier

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication


class Guard:
    """Lets nothing through without a good token; `public` are the exact paths that need none."""

    def __init__(
        self,
        app: WSGIApplication,
        verifier: Verifier,
        *,
        role: Words = None,
        scope: Words = None,
        tenant: TenantFrom = None,
        fresh: bool = False,
        public: Collection[str] = (),
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._public = frozenset(public)
        self._demand = demand(verifier, role=role, scope=scope, tenant=tenant, fresh=fresh)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if environ.get("PATH_INFO", "") not in self._public:
            try:
                options = self._demand.options(environ.get("HTTP_X_TENANT_ID"))
                environ["identity.caller"] = self._verifier.verify(environ.get("HTTP_AUTHORIZATION"), **options)
            except Refused as refused:
                where = f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}"
                said = answer(refused, request_id=environ.get("HTTP_X_REQUEST_ID"), where=where)
                headers = [*said.headers, ("Content-Length", str(len(said.body)))]
                start_response(f"{said.status} {HTTPStatus(said.status).phrase}", headers)
                return [said.body]
        return self._app(environ, start_response)
