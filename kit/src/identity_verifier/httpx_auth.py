"""`Machine` as an `httpx.Auth`; imported by `Machine.httpx_auth` only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import httpx

from identity_verifier.client import Machine


class MachineAuth(httpx.Auth):
    """Puts the token into requests; a 401 is tried once more with a new one."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The flow of `httpx.Client`."""
        token = self._machine.token()
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if _may_repeat(request, response) and self._machine.give_up(token):
            request.headers["Authorization"] = self._machine.authorization()
            yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The flow of `httpx.AsyncClient`."""
        token = await self._machine.atoken()
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if _may_repeat(request, response) and self._machine.give_up(token):
            request.headers["Authorization"] = f"Bearer {await self._machine.atoken()}"
            yield request


def _may_repeat(request: httpx.Request, response: httpx.Response) -> bool:
    # A body that is streamed is gone once it was sent.
    return response.status_code == 401 and isinstance(request.stream, httpx.ByteStream)
