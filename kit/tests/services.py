"""The same small service behind each guard: `/reports` needs the role analyst in a tenant, `/plain` any caller, `/fresh` the truth of now.

Each takes a request and gives back status, headers and document, so that one set of tests holds for all.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from identity_verifier import Caller, Verifier

Headers = Sequence[tuple[str, str]]


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


Client = Callable[[str, Headers], Answered]


def over_wsgi(app: Any) -> Client:
    """Calls a WSGI application as a server does: repeated headers are joined."""

    def call(path: str, headers: Headers) -> Answered:
        path, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "SERVER_NAME": "test", "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
            "wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
            "SCRIPT_NAME": "",
        }  # fmt: skip
        for name, value in headers:
            key = "HTTP_" + name.upper().replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        started: list[Any] = []
        answer = app(environ, lambda status, said, _exc=None: started.append((status, said)))
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        status, said = started[0]
        return Answered(int(status[:3]), {k.lower(): v for k, v in said}, _document(body))

    return call


def over_asgi(app: Any) -> Client:
    """Calls an ASGI application as a server does."""

    def call(path: str, headers: Headers) -> Answered:
        sent: list[Any] = []
        asked: list[bool] = []
        path, _, query = path.partition("?")

        async def receive() -> dict[str, Any]:
            if asked:
                await asyncio.Event().wait()  # The client stays.
            asked.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "server": ("test", 80),
            "client": ("127.0.0.1", 1), "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in headers],
        }  # fmt: skip
        asyncio.run(app(scope, receive, send))
        body = b"".join(each.get("body", b"") for each in sent[1:])
        said = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
        return Answered(sent[0]["status"], said, _document(body))

    return call


def _document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


def _shown(caller: Caller) -> dict[str, Any]:
    return {"subject": caller.subject, "roles": sorted(caller.roles), "tenant": caller.tenant}


def flask_service(verifier: Verifier) -> Client:
    from flask import Flask

    from identity_verifier.flask import Guard, current_caller

    app = Flask("service")
    guard = Guard(verifier)

    @app.get("/reports")
    @guard(role="analyst", tenant="header")
    def reports() -> dict[str, Any]:
        return _shown(current_caller())

    @app.get("/plain")
    @guard(tenant="optional")
    def plain() -> dict[str, Any]:
        return _shown(current_caller())

    @app.get("/scoped")
    @guard(scope=(each for each in ("read", "write")))
    def scoped() -> dict[str, Any]:
        return _shown(current_caller())

    @app.get("/fresh")
    @guard(fresh=True)
    def fresh() -> dict[str, Any]:
        return _shown(current_caller())

    return over_wsgi(app)


def fastapi_service(verifier: Verifier) -> Client:
    from fastapi import Depends, FastAPI

    from identity_verifier.fastapi import Guard

    app = FastAPI()
    guard = Guard(app, verifier)

    def route(path: str, **demands: Any) -> None:
        needed = guard(**demands)

        async def shown(caller: Any = Depends(needed)) -> dict[str, Any]:  # noqa: B008 -- FastAPI's way
            return _shown(caller)

        app.get(path)(shown)

    route("/reports", role="analyst", tenant="header")
    route("/plain", tenant="optional")
    route("/scoped", scope=("read", "write"))
    route("/fresh", fresh=True)
    return over_asgi(app)


def wsgi_service(verifier: Verifier) -> Client:
    from identity_verifier.wsgi import Guard

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(_shown(environ["identity.caller"]) if "identity.caller" in environ else {}).encode()]

    apps = {
        "/reports": Guard(app, verifier, role="analyst", tenant="header"),
        "/scoped": Guard(app, verifier, scope=["read", "write"]),
        "/fresh": Guard(app, verifier, fresh=True),
    }
    other = Guard(app, verifier, tenant="optional", public=["/health"])
    return over_wsgi(lambda environ, start: apps.get(environ["PATH_INFO"], other)(environ, start))


def asgi_service(verifier: Verifier) -> Client:
    from identity_verifier.asgi import Guard

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        shown = _shown(scope["identity_caller"]) if "identity_caller" in scope else {}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(shown).encode()})

    apps = {
        "/reports": Guard(app, verifier, role="analyst", tenant="header"),
        "/scoped": Guard(app, verifier, scope=["read", "write"]),
        "/fresh": Guard(app, verifier, fresh=True),
    }
    other = Guard(app, verifier, tenant="optional", public=["/health"])

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        await apps.get(scope["path"], other)(scope, receive, send)

    return over_asgi(routed)


def _django(verifier: Verifier) -> None:
    """Django's settings are the process's own: made once, the verifier replaced."""
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], ROOT_URLCONF="django_urls", SECRET_KEY="x" * 50, IDENTITY_VERIFIER=verifier,
            IDENTITY_PUBLIC_PATHS=["/health"], MIDDLEWARE=["identity_verifier.django.Middleware"], LOGGING_CONFIG=None,
        )  # fmt: skip
        django.setup()
    settings.IDENTITY_VERIFIER = verifier
    from identity_verifier.django import the_verifier

    the_verifier.cache_clear()
    sys.modules.pop("django_urls", None)
    from django.urls import clear_url_caches

    clear_url_caches()


def django_service(verifier: Verifier) -> Client:
    _django(verifier)
    from django.core.wsgi import get_wsgi_application

    return over_wsgi(get_wsgi_application())


def django_asgi_service(verifier: Verifier) -> Client:
    _django(verifier)
    from django.core.asgi import get_asgi_application

    return over_asgi(get_asgi_application())


SERVICES: dict[str, Callable[[Verifier], Client]] = {
    "flask": flask_service,
    "fastapi": fastapi_service,
    "wsgi": wsgi_service,
    "asgi": asgi_service,
    "django": django_service,
    "django-asgi": django_asgi_service,
}
