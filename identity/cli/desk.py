"""Where commands send what is asked of them: group H, in this process over the database, or over the network.

A command knows routes, not tables: it asks for `POST /admin/user` with a body, and gets the document that the route answers. So the same
command says and refuses the same, whichever way it takes, and whoever adds a route has added it for both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, unquote, urlencode

from identity.errors import NOT_FOUND, VALIDATION, Refused

if TYPE_CHECKING:
    from identity.runtime import Runtime
    from identity.wire.endpoint import Endpoint

Document = dict[str, Any]
ACTOR: Final = "command line"


class Desk(Protocol):
    """Answers what commands ask."""

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        raw: bytes | None = None,
    ) -> Document:
        """The document that a route of group H answers. Raises Refused.

        `query`: parameters, of which None is not sent. `body`: JSON. `raw`: lines of JSON, for routes that read those.
        """
        ...


def path_of(*segments: str) -> str:
    """A path whose segments may hold anything."""
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def sent(query: Mapping[str, Any] | None) -> dict[str, str]:
    """The parameters that are sent, as text."""
    spelled = {True: "true", False: "false"}
    return {
        name: spelled[value] if isinstance(value, bool) else str(value)
        for name, value in (query or {}).items()
        if value is not None
    }


class OverDatabase:
    """The routes of group H in this process, for whoever holds the host: nobody signs in, nothing is limited."""

    def __init__(self, rt: Runtime) -> None:
        from identity.wire.dialects.admin import admin

        self._rt = rt
        self._routes = [(endpoint, _pattern(endpoint.path)) for endpoint in admin.endpoints]

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        raw: bytes | None = None,
    ) -> Document:
        from identity.ambient import Origin
        from identity.core.access.callers import Caller, CallerKind
        from identity.core.people.accounts import ADMIN_ROLE
        from identity.wire.endpoint import Call, Request

        endpoint, params = self._find(method, path)
        asked = sent(query)
        unknown = next((name for name in asked if name not in endpoint.query), None)
        if unknown is not None:
            raise Refused(VALIDATION.saying("The query has a parameter that this route does not know"))
        caller = Caller(CallerKind.USER, ACTOR, (ADMIN_ROLE,), auth_time=self._rt.clock.now())
        request = Request(method, path, path, urlencode(asked), {}, raw or b"", "")
        call = Call(self._rt, request, Origin.command_line(), endpoint, params, identified=caller)
        call.query = {name: [text] for name, text in asked.items()}
        if endpoint.lines:
            from identity.wire.reading import read_lines

            call.body = {"lines": read_lines(raw or b"", "application/x-ndjson")}
        elif not endpoint.ignores_body:
            call.body = endpoint.load(body or {})
        answered: Document = endpoint.handler(call).payload
        return answered

    def _find(self, method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
        for endpoint, pattern in self._routes:
            if endpoint.method == method and (found := pattern.fullmatch(path)):
                return endpoint, {name: unquote(value) for name, value in found.groupdict().items()}
        raise Refused(NOT_FOUND, detail=f"no such route: {method} {path}")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
