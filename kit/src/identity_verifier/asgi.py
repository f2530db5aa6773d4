"""The guard for any ASGI application, as a middleware around all of it.

    app = Guard(app, verifier, role="analyst", public=("/health",))

The caller is in `scope["identity_caller"]`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from identity_verifier.demands import TenantFrom, Words, demand, joined
from identity_verifier.refusals import Answer, Refused, answer
from identity_verifier.verifier import Verifier

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Lets nothing through without a good token, websockets included; `public` are the exact paths that need none."""

    def __init__(
        self,
        app: App,
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in self._public:
            try:
                options = self._demand.options(_header(scope, b"x-tenant-id"))
                caller = await self._verifier.averify(_header(scope, b"authorization"), **options)
            except Refused as refused:
                where = f"{scope.get('method', 'WEBSOCKET')} {scope['path']}"
                said = answer(refused, request_id=_header(scope, b"x-request-id"), where=where)
                return await (_refuse(said, send) if scope["type"] == "http" else _close(receive, send))
            scope = {**scope, "identity_caller": caller}
        return await self._app(scope, receive, send)


def _header(scope: Scope, name: bytes) -> str | None:
    return joined([value.decode("latin-1") for each, value in scope["headers"] if each.lower() == name])


async def _refuse(said: Answer, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in said.headers]
    headers.append((b"content-length", str(len(said.body)).encode()))
    await send({"type": "http.response.start", "status": said.status, "headers": headers})
    await send({"type": "http.response.body", "body": said.body})


async def _close(receive: Receive, send: Send) -> None:
    # Closed before it was accepted, which the server tells as 403.
    await receive()
    await send({"type": "websocket.close", "code": 1008})
