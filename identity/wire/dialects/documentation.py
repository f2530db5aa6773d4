"""The API documentation: OpenAPI 3.1 and a page, both made from the endpoints that route and validate. Nothing is described twice.

What every endpoint of a kind may answer (malformed, too large, unauthenticated, limited, down) is added here from its declaration;
`refusals` of an endpoint name only what is its own. Both are built once, and answered from memory.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from identity import __version__
from identity.errors import (
    FORBIDDEN,
    INTERNAL,
    INVALID_TOKEN,
    KEY_MISMATCH,
    MALFORMED,
    MALFORMED_REQUEST_HEAD,
    METHOD_NOT_ALLOWED,
    RATE_LIMITED,
    TOKEN_EXPIRED,
    TOO_LARGE,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNREADABLE,
    UNSUPPORTED_FORM,
    UNSUPPORTED_MEDIA,
    VALIDATION,
    Problem,
    Refused,
)
from identity.wire import pages
from identity.wire.dialects import documentation_pages as written_out
from identity.wire.dialects import vocabulary
from identity.wire.endpoint import HTML, Call, Dialect, Endpoint, Reads, Reply, Shape
from identity.wire.head import accepts_gzip, is_known

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_SECURITY: Final[dict[Reads, list[dict[str, list[str]]]]] = {
    Reads.NOTHING: [],
    Reads.BEARER: [{"bearer": []}, {"clientCredentials": []}],
    Reads.BEARER_OR_KEY: [{"bearer": []}, {"clientCredentials": []}, {"apiKey": [], "apiSecret": []}],
    Reads.KEY: [{"apiKey": [], "apiSecret": []}],
    Reads.CLIENT: [{"clientBasic": []}, {}],
}
# Where two dialects chose the same name for a schema, whose it is, by the first word of its module. (`abc`: a page, made on the fly;
# those of administrators come first.)
_WHOSE: Final = {
    "admin": "Admin",
    "tenant": "Tenant",
    "abc": "Tenant",
    "threatwinds": "Passwordless",
    "risksage": "Login",
    "oauth": "OAuth",
}
_ERROR_NAMES: Final = {
    "envelope": "Refusal",
    "envelope, validation is 400": "RefusalOfGroupsCAndH",
    "GraphQL": "GraphQLRefusal",
    "RFC 6749 section 5.2": "OAuthRefusal",
}
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A session bearer or an access token"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
    "apiSecret": {"type": "apiKey", "in": "header", "name": "api-secret"},
    "clientBasic": {
        "type": "http",
        "scheme": "basic",
        "description": "Client id and secret (client_secret_basic); or both, or a signed assertion, in the form",
    },
}
_HEADERS: Final = {
    "X-Request-Id": "The caller's own, or a fresh one",
    "x-error": "What went wrong, in one line",
    "x-error-id": "The id of this one refusal; `GET /admin/error/{id}` and `identity explain` say why it came",
    "WWW-Authenticate": "How to authenticate (RFC 6750, RFC 7617)",
    "Retry-After": "Seconds to wait",
    "X-RateLimit-Limit": "How many requests the window takes",
    "X-RateLimit-Remaining": "How many are left",
    "X-RateLimit-Reset": "When the window has room again, in Unix seconds",
}


def with_documentation(declared: Iterable[Endpoint], *, graphql: str = "") -> list[Endpoint]:
    """The given endpoints, and those that document them and themselves."""
    dialect = Dialect("I: documentation", cacheable=True, ignores_body=True)
    everything: list[Endpoint] = []
    document = functools.lru_cache(maxsize=4)(lambda issuer: build(everything, issuer) | {"x-graphql": graphql})

    # Built once for an issuer: 45 ms of work that nobody may ask for with each request.
    @functools.lru_cache(maxsize=12)
    def written(issuer: str, service: str, kind: str) -> tuple[bytes, bytes, str]:
        made = document(issuer)
        if kind == "json":
            text = json.dumps(made, separators=(",", ":"))
        else:
            text = written_out.html(made, service) if kind == "html" else written_out.markdown(made)
        raw = text.encode()
        return raw, gzip.compress(raw, mtime=0), f'"{hashlib.sha256(raw).hexdigest()[:32]}"'

    def answer(call: Call, kind: str, content_type: str, *more: tuple[str, str]) -> Reply:
        raw, zipped, etag = written(call.rt.settings.issuer, pages.name_of(call.rt), kind)
        # Weak, since it is the same for both forms (RFC 9110 section 8.8.1).
        headers = (("Cache-Control", "public, max-age=300"), ("ETag", f"W/{etag}"), ("Vary", "Accept-Encoding"), *more)
        if is_known(call.header("if-none-match"), etag):
            return Reply(raw=b"", status=304, headers=headers)
        if accepts_gzip(call.header("accept-encoding")):
            return Reply(raw=zipped, content_type=content_type, headers=(*headers, ("Content-Encoding", "gzip")))
        return Reply(raw=raw, content_type=content_type, headers=headers)

    @dialect.endpoint("GET", "/openapi.json", is_page=True, any_origin=True, ignores_query=True)
    def openapi(call: Call) -> Reply:
        """This API as an OpenAPI 3.1 document."""
        return answer(call, "json", "application/json")

    @dialect.endpoint("GET", "/docs", is_page=True, ignores_query=True, produces=HTML)
    def docs(call: Call) -> Reply:
        """This API as a page to read."""
        return answer(call, "html", HTML, *pages.headers(holds_token=False))

    @dialect.endpoint("GET", "/docs.md", is_page=True, ignores_query=True, produces="text/markdown; charset=utf-8")
    def docs_as_text(call: Call) -> Reply:
        """This API as text to read, for people and machines."""
        return answer(call, "md", "text/markdown; charset=utf-8")

    everything.extend([*declared, *dialect.endpoints])
    return everything


def build(endpoints: Sequence[Endpoint], issuer: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `endpoints`, each once; `x-also-at` names its other mounts."""
    spec = APISpec(
        title="identity",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=_Names().of)],
        info={"description": "Tokens, sessions, keys and the people and machines behind them."},
        servers=[{"url": issuer}],
        tags=[
            {"name": name, "description": name.partition(": ")[2].capitalize()}
            for name in dict.fromkeys(tag for endpoint in endpoints for tag in endpoint.tags)
        ],
    )
    flow: dict[str, Any] = {"tokenUrl": f"{issuer}/oauth/token", "scopes": {}}
    machine: dict[str, Any] = {
        "type": "oauth2",
        "description": "A machine's token",
        "flows": {"clientCredentials": flow},
    }
    for name, scheme in {**_SCHEMES, "clientCredentials": machine}.items():
        spec.components.security_scheme(name, scheme)
    for name, meaning in {
        **_HEADERS,
        **{name: vocabulary.HEADERS[name] for each in endpoints for name in each.answer_headers},
    }.items():
        kind = "integer" if name.startswith(("X-RateLimit", "Retry")) else "string"
        spec.components.header(name, {"description": meaning, "schema": {"type": kind}})
    for shape in {endpoint.shape.name: endpoint.shape for endpoint in endpoints}.values():
        spec.components.schema(_error_name(shape), _error_schema(shape))
    share = _Shared(spec)
    names = _operation_ids(endpoints)
    for endpoint, name in zip(endpoints, names, strict=True):
        path = endpoint.mounts[0] + endpoint.path
        spec.path(path, operations={_method(endpoint): _operation(endpoint, name, share)})
    document: dict[str, Any] = spec.to_dict()
    _describe(document)
    return document


def _describe(document: dict[str, Any]) -> None:
    """Give every field that says nothing of its own the sentence of the vocabulary."""
    for schema in document["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            meaning = vocabulary.FIELDS.get(name)
            if meaning and "description" not in field:
                # Beside a reference a description is allowed since 3.1, but most generators drop one of the two.
                target = field if "$ref" not in field else {"allOf": [dict(field)]}
                schema["properties"][name] = target | {"description": meaning}


def _operation_ids(endpoints: Sequence[Endpoint]) -> list[str]:
    """A name for each operation that reads well in a generated client: its handler's, with whose it is where two have the same."""
    found: list[str] = []
    for endpoint in endpoints:
        own = endpoint.handler.__name__.strip("_")
        first = re.sub(r"[^a-z]+", "_", endpoint.path.strip("/").partition("/")[0])
        last = re.sub(r"[^a-z]+", "_", endpoint.path).strip("_")
        name = next(name for name in (own, f"{first}_{own}", f"{own}_{last}") if _camel(name) not in found)
        found.append(_camel(name))
    return found


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


class _Names:
    """A name for each schema class: its own, and where two dialects chose the same one, with the module's."""

    def __init__(self) -> None:
        self._taken: dict[str, type[Schema]] = {}

    def of(self, schema: type[Schema] | Schema) -> str:
        kind = schema if isinstance(schema, type) else type(schema)
        name = kind.__name__
        if self._taken.setdefault(name, kind) is not kind:
            name = _WHOSE.get(kind.__module__.rpartition(".")[2].partition("_")[0], "Other") + name
        return name


class _Shared:
    """Refusals that many endpoints have in common, each written down once: without this, the document is six times as long."""

    def __init__(self, spec: APISpec) -> None:
        self._spec = spec
        self._names: dict[str, str] = {}

    def name_of(self, status: int, response: dict[str, Any]) -> str:
        spelled = json.dumps(response, sort_keys=True)
        phrase = re.sub(r"[^A-Za-z]", "", HTTPStatus(status).phrase.title())
        same = sum(known.rstrip("0123456789") == phrase for known in self._names.values())
        name = self._names.setdefault(spelled, phrase if not same else f"{phrase}{same + 1}")
        if name not in self._spec.components.responses:
            self._spec.components.response(name, response)
        return name


def _method(endpoint: Endpoint) -> str:
    return "get" if endpoint.any_method else endpoint.method.lower()


def _operation(endpoint: Endpoint, name: str, share: _Shared) -> dict[str, Any]:
    path = endpoint.mounts[0] + endpoint.path
    description = (endpoint.handler.__doc__ or "").strip().partition("\n")[2]
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": endpoint.summary.rstrip("."),
        "description": " ".join(description.split())
        + (" Every method is answered alike." if endpoint.any_method else ""),
        "tags": list(endpoint.tags),
        "security": _SECURITY[endpoint.reads],
        "parameters": _parameters(endpoint, path),
        "responses": _responses(endpoint, share),
    }
    aliases = [prefix + endpoint.path for prefix in endpoint.mounts[1:]]
    if aliases:
        operation["x-also-at"] = aliases
    if endpoint.body is not None:
        media = "application/x-www-form-urlencoded" if endpoint.form else "application/json"
        operation["requestBody"] = {
            "required": endpoint.requires_body,
            "content": {media: {"schema": endpoint.body}},
        }
    return operation


def _parameters(endpoint: Endpoint, path: str) -> list[dict[str, Any]]:
    text = {"type": "string"}
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {**text, "minLength": 1},
            "description": vocabulary.PATH.get(name, ""),
        }
        for name in _PARAMETER.findall(path)
    ]
    for name in endpoint.query:
        schema, meaning = vocabulary.parameter(f"{endpoint.method} {endpoint.path}", name)
        found.append({"name": name, "in": "query", "schema": dict(schema), "description": meaning})
    headers = [*endpoint.headers, *(("X-Tenant-Id",) if endpoint.reads not in (Reads.NOTHING, Reads.CLIENT) else ())]
    found += [
        {"name": name, "in": "header", "schema": text, "description": vocabulary.HEADERS[name]} for name in headers
    ]
    return found


def _responses(endpoint: Endpoint, share: _Shared) -> dict[str, Any]:
    success: dict[str, Any] = {
        "description": HTTPStatus(endpoint.status).phrase,
        "headers": _header_references(
            ["X-Request-Id", *endpoint.answer_headers, *(_RATE_HEADERS if endpoint.limit else ())]
        ),
        "content": {endpoint.produces: {"schema": endpoint.answer or {}}},
    }
    responses: dict[str, Any] = {str(endpoint.status): success}
    if endpoint.cacheable:
        responses["304"] = {"description": HTTPStatus(304).phrase}
    by_status: dict[int, dict[str, Problem]] = {}
    for problem in _problems(endpoint):
        by_status.setdefault(endpoint.shape.status(Refused(problem)), {})[problem.message] = problem
    for status, problems in sorted(by_status.items()):
        if status == endpoint.status:
            # A dialect that refuses with its success status says so in the same schema.
            success["description"] += "; or a refusal: " + "; ".join(problems)
            continue
        examples = {
            f"{problem.code} {number}": {
                "summary": message,
                "value": endpoint.shape.render(Refused(problem), status),
            }
            for number, (message, problem) in enumerate(problems.items(), 1)
        }
        content = {"schema": {"$ref": f"#/components/schemas/{_error_name(endpoint.shape)}"}, "examples": examples}
        refusal = {
            "description": "; ".join(problems),
            "headers": _header_references(["X-Request-Id", "x-error", "x-error-id", *_EXTRA_HEADERS.get(status, ())]),
            "content": {"text/html" if endpoint.shape.is_page else "application/json": content},
        }
        responses[str(status)] = share.name_of(status, refusal)
    if endpoint.query or "{" in endpoint.path:
        responses["414"] = share.name_of(414, _TOO_LONG)
    return responses


#: Told before anybody knows which route is meant, so in one shape for all.
_TOO_LONG: Final = {
    "description": f"{UNREADABLE.message}: its first line is too long",
    "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", "x-error", "x-error-id")},
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{_ERROR_NAMES['envelope']}"}}},
}
_RATE_HEADERS: Final = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_EXTRA_HEADERS: Final = {401: ("WWW-Authenticate",), 429: ("Retry-After", *_RATE_HEADERS), 503: ("Retry-After",)}


def _header_references(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problems(endpoint: Endpoint) -> list[Problem]:
    """Every problem that the pipeline or the handler of an endpoint may answer with."""
    problems = [*endpoint.refusals, MALFORMED_REQUEST_HEAD, METHOD_NOT_ALLOWED, INTERNAL, UNAVAILABLE]
    if not endpoint.form:
        problems.append(VALIDATION)  # an unknown parameter in the query
    if not endpoint.ignores_body:
        problems += [TOO_LARGE, MALFORMED, UNSUPPORTED_FORM if endpoint.form else UNSUPPORTED_MEDIA]
    if endpoint.limit is not None or endpoint.limits_itself:
        problems.append(RATE_LIMITED)
    if endpoint.reads in (Reads.BEARER, Reads.BEARER_OR_KEY):
        problems += [UNAUTHENTICATED, INVALID_TOKEN, TOKEN_EXPIRED, TWO_CREDENTIALS]
    if endpoint.reads in (Reads.KEY, Reads.BEARER_OR_KEY):
        problems += [UNAUTHENTICATED, KEY_MISMATCH, RATE_LIMITED]
    if endpoint.admin:
        problems.append(FORBIDDEN)
    return problems


def _error_name(shape: Shape) -> str:
    return _ERROR_NAMES.get(shape.name) or re.sub(r"[^A-Za-z0-9]", "", shape.name.title()) + "Refusal"


def _error_schema(shape: Shape) -> dict[str, Any]:
    """The schema of a dialect's refusals, read off what it renders."""
    bare, blaming = (shape.render(Refused(VALIDATION, field=field), 422) for field in (None, "email"))
    schema = _schema_of(blaming)
    if not isinstance(bare, dict):
        return {"type": "string"}  # A page.
    schema["required"] = sorted(bare)
    if "status" in schema["properties"]:
        schema["properties"]["error"]["enum"] = vocabulary.CODES
    return schema


def _schema_of(value: Any) -> dict[str, Any]:
    match value:
        case dict():
            return {"type": "object", "properties": {name: _schema_of(member) for name, member in value.items()}}
        case list():
            return {"type": "array", "items": _schema_of(value[0]) if value else {}}
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case str():
            return {"type": "string"}
        case _:
            return {}
