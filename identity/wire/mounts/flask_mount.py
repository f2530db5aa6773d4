"""The mount of every endpoint on Flask: complete under any WSGI server.

It translates a WSGI environment into a `Request` and an `Answer` into a response. Two things are Flask's own here: routing, and
Flask-Limiter's guard over the pages that no policy of the pipeline counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from flask import Flask, Response, request
from flask_limiter import Limiter as FlaskLimiter
from flask_limiter import RateLimitExceeded
from limits.errors import StorageError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from identity.errors import INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, RATE_LIMITED, UNAVAILABLE, Refused
from identity.instruments.limits import address_key
from identity.runtime import Runtime
from identity.wire.endpoint import ENVELOPE, ENVELOPE_400, MAX_BODY, Answer, Endpoint, Request, Shape
from identity.wire.exchange import BODILESS, Exchange, answer_preflight, refuse_outside
from identity.wire.head import Networks, client_address, networks_of

_ALL_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PAGE_BUDGET: Final = "600/minute"


def mount(app: Flask, rt: Runtime, endpoints: Iterable[Endpoint]) -> None:
    """Add every endpoint at each of its mounts, and the refusals of everything else."""
    networks = networks_of(rt.settings.trusted_proxies)
    shapes: dict[str, Shape] = {}
    mounted: dict[str, Endpoint] = {}
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    guard = FlaskLimiter(
        lambda: address_key(client_address(read_request(request.environ, 0), networks)),
        app=app,
        storage_uri=rt.limiter.storage_uri,
        storage_options={"wrap_exceptions": True},
        strategy="moving-window",
    )
    for endpoint in endpoints:
        view = _view(rt, endpoint, networks)
        if endpoint.is_page:
            view = guard.shared_limit(_PAGE_BUDGET, "pages")(view)
        methods = _ALL_METHODS if endpoint.any_method else (endpoint.method,)
        for prefix in endpoint.mounts:
            shapes[prefix + endpoint.path] = endpoint.shape
            rule = prefix + endpoint.path.replace("{", "<").replace("}", ">")
            mounted[f"{endpoint.method} {rule}"] = endpoint
            app.add_url_rule(rule, f"{endpoint.method} {rule}", view, methods=methods, provide_automatic_options=False)
    fixed = _guard_fixed_paths(app)

    @app.errorhandler(Exception)
    def _outside(exc: Exception) -> Response:
        read = read_request(request.environ, 0)
        methods = fixed.get(read.path) or getattr(exc, "valid_methods", None) or ()
        refused, headers = _refusal_of(exc, methods)
        if isinstance(exc, MethodNotAllowed) and read.method == "OPTIONS":
            wanted = read.headers.get("access-control-request-method", "")
            endpoint = _endpoint_at(app, mounted, read.path, wanted)
            allowed = endpoint and answer_preflight(rt, read, endpoint, sorted(methods), networks)
            if allowed:
                return _response(allowed, read.method)
        return _response(
            refuse_outside(rt, read, refused, shapes.get(read.path) or _shape_of(read.path), networks, headers=headers),
            read.method,
        )


def _guard_fixed_paths(app: Flask) -> dict[str, set[str]]:
    """Answer 405 where a fixed path would be taken for an id: `GET /user/token` asks for no user called `token`.

    Gives the methods of every fixed path: Flask would name those of the ids too.
    """
    fixed: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        if not rule.arguments:
            fixed.setdefault(rule.rule, set()).update(rule.methods or ())

    def refuse() -> Response:
        raise MethodNotAllowed

    adapter = app.url_map.bind("")
    for path, methods in fixed.items():
        for method in set(_ALL_METHODS) - methods:
            try:
                adapter.match(path, method)
            except HTTPException:
                continue
            app.add_url_rule(path, f"no {method} {path}", refuse, methods=[method], provide_automatic_options=False)
    return fixed


def _endpoint_at(app: Flask, mounted: Mapping[str, Endpoint], path: str, method: str) -> Endpoint | None:
    try:
        rule, _ = app.url_map.bind("").match(path, method, return_rule=True)
    except HTTPException:
        return None
    return mounted.get(rule.endpoint)


def read_request(environ: dict[str, Any], max_body: int) -> Request:
    """A WSGI request; its body is read up to one byte over the limit, and is None where it is longer."""
    headers = {}
    for name, value in environ.items():
        if name.startswith("HTTP_"):
            headers[name[5:].replace("_", "-").lower()] = value
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
    return Request(
        method=environ["REQUEST_METHOD"],
        target=environ.get("RAW_URI") or environ.get("REQUEST_URI") or path,
        path=path,
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        body=_read_body(environ, max_body),
        peer=environ.get("REMOTE_ADDR") or "",
        version=environ.get("SERVER_PROTOCOL", "HTTP/1.1").removeprefix("HTTP/"),
    )


def _view(rt: Runtime, endpoint: Endpoint, networks: Networks) -> Callable[..., Response]:
    def view(**params: str) -> Response:
        if endpoint.max_body > MAX_BODY:
            unread = read_request({**request.environ, "CONTENT_LENGTH": ""}, 0)
            refusal = Exchange(rt, endpoint, unread, params, networks).turn_away()
            if refusal is not None:
                return _response(refusal, unread.method)
        read = read_request(request.environ, 0 if endpoint.ignores_body else endpoint.max_body)
        return _response(Exchange(rt, endpoint, read, params, networks).run(), read.method)

    view.__doc__ = endpoint.summary
    return view


def _read_body(environ: dict[str, Any], max_body: int) -> bytes | None:
    declared = environ.get("CONTENT_LENGTH") or ""
    if declared.isdigit() and int(declared) > max_body:
        return None
    if max_body == 0 or not (declared or environ.get("wsgi.input_terminated")):
        return b""
    body: bytes = environ["wsgi.input"].read(int(declared) if declared.isdigit() else max_body + 1)
    return body if len(body) <= max_body else None


def _response(answer: Answer, method: str) -> Response:
    response = Response(b"" if method == "HEAD" else answer.body, answer.status)
    response.headers.clear()
    for name, value in answer.headers:
        response.headers.add(name, value)
    if answer.status not in BODILESS:
        response.headers["Content-Length"] = str(len(answer.body))
    return response


def _refusal_of(exc: Exception, methods: Iterable[str]) -> tuple[Refused, list[tuple[str, str]]]:
    if isinstance(exc, MethodNotAllowed):
        refused = Refused(METHOD_NOT_ALLOWED, detail="the path exists, this method of it does not")
        return refused, [("Allow", ", ".join(sorted(methods)))]
    if isinstance(exc, RateLimitExceeded):
        return Refused(RATE_LIMITED, detail="pages", retry_after_seconds=60), []
    if isinstance(exc, StorageError):
        return Refused(UNAVAILABLE, detail="rate limits", retry_after_seconds=1, cause=exc), []
    if isinstance(exc, HTTPException):
        return Refused(NOT_FOUND, detail=f"no route ({exc.code})"), []
    return Refused(INTERNAL, detail=type(exc).__name__, cause=exc), []


def _shape_of(path: str) -> Shape:
    return ENVELOPE_400 if path.startswith(("/api/auth/v2", "/admin")) else ENVELOPE
