"""The API documentation: OpenAPI 3.1 and a page, both made from the endpoints that route and validate. Nothing is described twice.

What every endpoint of a kind may answer (malformed, too large, unauthenticated, limited, down) is added here from its declaration;
`refusals` of an endpoint name only what is its own. The page needs nothing from elsewhere: no script, no font, no picture.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from http import HTTPStatus
from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from identity import __version__
from identity.errors import (
    CATALOGUE,
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
    UNSUPPORTED_FORM,
    UNSUPPORTED_MEDIA,
    VALIDATION,
    Problem,
    Refused,
)
from identity.wire.endpoint import Call, Dialect, Endpoint, Reads, Reply, Shape

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_ADDRESS_OF_A_SEED: Final = "otpauth://totp/identity:ada%40acme.example?secret=JBSWY3DPEHPK3PXP&issuer=identity&algorithm=SHA1&digits=6&period=30"
_SECURITY: Final[dict[Reads, list[dict[str, list[str]]]]] = {
    Reads.NOTHING: [],
    Reads.BEARER: [{"bearer": []}],
    Reads.BEARER_OR_KEY: [{"bearer": []}, {"apiKey": [], "apiSecret": []}],
    Reads.KEY: [{"apiKey": [], "apiSecret": []}],
    Reads.CLIENT: [{"clientBasic": []}, {}],
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


def with_documentation(declared: Iterable[Endpoint]) -> list[Endpoint]:
    """The given endpoints, and the two that document them and themselves."""
    dialect = Dialect("I: documentation", cacheable=True, ignores_body=True)
    everything: list[Endpoint] = []
    document = functools.lru_cache(maxsize=4)(lambda issuer: build(everything, issuer))
    headers = (("Cache-Control", "public, max-age=300"),)

    @dialect.endpoint("GET", "/openapi.json", is_page=True, any_origin=True, ignores_query=True)
    def openapi(call: Call) -> Reply:
        """This API as an OpenAPI 3.1 document."""
        return Reply(document(call.rt.settings.issuer), headers=headers)

    @dialect.endpoint("GET", "/docs", is_page=True, ignores_query=True, produces="text/html; charset=utf-8")
    def docs(call: Call) -> Reply:
        """This API as a page to read."""
        page = _page(document(call.rt.settings.issuer)).encode()
        return Reply(raw=page, content_type="text/html; charset=utf-8", headers=(*headers, _POLICY))

    everything.extend([*declared, *dialect.endpoints])
    return everything


def build(endpoints: Sequence[Endpoint], issuer: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `endpoints`, at each of their mounts."""
    spec = APISpec(
        title="identity",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=_Names().of)],
        info={"description": "Tokens, sessions, keys and the people and machines behind them."},
        servers=[{"url": issuer}],
        tags=[{"name": name} for name in dict.fromkeys(tag for endpoint in endpoints for tag in endpoint.tags)],
    )
    for name, scheme in _SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    for name, meaning in _HEADERS.items():
        kind = "integer" if name.startswith(("X-RateLimit", "Retry")) else "string"
        spec.components.header(name, {"description": meaning, "schema": {"type": kind}})
    for shape in {endpoint.shape.name: endpoint.shape for endpoint in endpoints}.values():
        spec.components.schema(_error_name(shape), _error_schema(shape))
    share = _Shared(spec)
    for endpoint in endpoints:
        for prefix in endpoint.mounts:
            spec.path(prefix + endpoint.path, operations={_method(endpoint): _operation(endpoint, prefix, share)})
    document: dict[str, Any] = spec.to_dict()
    return document


class _Names:
    """A name for each schema class: its own, and where two dialects chose the same one, with the module's."""

    def __init__(self) -> None:
        self._taken: dict[str, type[Schema]] = {}

    def of(self, schema: type[Schema] | Schema) -> str:
        kind = schema if isinstance(schema, type) else type(schema)
        name = kind.__name__
        if self._taken.setdefault(name, kind) is not kind:
            name = f"{kind.__module__.rpartition('.')[2].title()}{name}"
        return name


class _Shared:
    """Refusals that many endpoints have in common, each written down once: without this, the document is six times as long."""

    def __init__(self, spec: APISpec) -> None:
        self._spec = spec
        self._names: dict[str, str] = {}

    def name_of(self, status: int, response: dict[str, Any]) -> str:
        spelled = json.dumps(response, sort_keys=True)
        name = self._names.setdefault(spelled, f"Refused_{status}_{len(self._names) + 1}")
        if name not in self._spec.components.responses:
            self._spec.components.response(name, response)
        return name


def _method(endpoint: Endpoint) -> str:
    return "get" if endpoint.any_method else endpoint.method.lower()


def _operation(endpoint: Endpoint, prefix: str, share: _Shared) -> dict[str, Any]:
    path = prefix + endpoint.path
    description = (endpoint.handler.__doc__ or "").strip().partition("\n")[2]
    operation: dict[str, Any] = {
        "operationId": f"{_method(endpoint)}{re.sub(r'[^a-zA-Z0-9]+', '_', path).rstrip('_')}",
        "summary": endpoint.summary.rstrip("."),
        "description": " ".join(description.split())
        + (" Every method is answered alike." if endpoint.any_method else ""),
        "tags": list(endpoint.tags),
        "security": _SECURITY[endpoint.reads],
        "parameters": _parameters(endpoint, path),
        "responses": _responses(endpoint, share),
    }
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
        {"name": name, "in": "path", "required": True, "schema": {**text, "minLength": 1}}
        for name in _PARAMETER.findall(path)
    ]
    found += [{"name": name, "in": "query", "schema": text} for name in endpoint.query]
    if endpoint.reads not in (Reads.NOTHING, Reads.CLIENT):
        found.append({"name": "X-Tenant-Id", "in": "header", "schema": text, "description": "The tenant to act in"})
    return found


def _responses(endpoint: Endpoint, share: _Shared) -> dict[str, Any]:
    success: dict[str, Any] = {
        "description": HTTPStatus(endpoint.status).phrase,
        "headers": _header_references(["X-Request-Id", *(_RATE_HEADERS if endpoint.limit else ())]),
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
            "content": {"application/json": content},
        }
        responses[str(status)] = share.name_of(status, refusal)
    return responses


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
    return "Error_" + re.sub(r"[^A-Za-z0-9]+", "_", shape.name).strip("_")


def _error_schema(shape: Shape) -> dict[str, Any]:
    """The schema of a dialect's refusals, read off what it renders."""
    bare, blaming = (shape.render(Refused(VALIDATION, field=field), 422) for field in (None, "email"))
    schema = _schema_of(blaming)
    schema["required"] = sorted(bare)
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


# The page.

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
nav{columns:2;font-size:.9rem}
details{border:1px solid #ccc;border-radius:4px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}
code,pre{font:.9em ui-monospace,monospace}
pre{background:#f4f4f4;padding:.6rem;overflow:auto}
b.method{display:inline-block;min-width:4.2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0;font-size:.9rem}
td,th{border:1px solid #ddd;padding:.25rem .5rem;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#181818}pre{background:#242424}
a{color:#8ab4f8}td,th,details{border-color:#444}svg{background:#fff}}
""".strip()
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    "Content-Security-Policy",
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


@functools.lru_cache(maxsize=1)
def _seed_picture() -> str:
    import segno  # noqa: PLC0415 -- only who reads the documentation needs a picture

    picture: str = segno.make(_ADDRESS_OF_A_SEED, micro=False).svg_inline(scale=3, title="A TOTP seed as a QR code")
    return picture


def _page(document: dict[str, Any]) -> str:
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for tag in operation["tags"]:
                groups[tag].append((method.upper(), path, operation))
    links = "".join(f'<a href="#g{number}">{escape(tag)}</a><br>' for number, tag in enumerate(groups))
    sections = "".join(
        f'<h2 id="g{number}">{escape(tag)}</h2>' + "".join(_entry(document, *operation) for operation in operations)
        for number, (tag, operations) in enumerate(groups.items())
    )
    info, errors = (
        document["info"],
        _table(
            ("error", "status", "when"),
            [
                (f"<code>{escape(problem.code)}</code>", str(problem.status), escape(reason))
                for problem, reason in CATALOGUE
            ],
        ),
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f'The same as a document for machines: <a href="/openapi.json">/openapi.json</a>.</p>'
        f'<nav>{links}<a href="#errors">Errors</a></nav>{sections}'
        f'<h2 id="errors">Errors</h2><p>Every refusal carries <code>x-error</code> (what) and <code>x-error-id</code> '
        f"(which one, for those who operate the service).</p>{errors}</body></html>"
    )


def _entry(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{escape(operation['description'])}</p>" if operation["description"].strip() else ""]
    credentials = " or ".join(" with ".join(names) or "in the body" for names in operation["security"]) or "none"
    parts.append(f"<p>Credential: {escape(credentials)}</p>")
    rows = [(f"<code>{escape(one['name'])}</code>", one["in"], "") for one in operation["parameters"]]
    for media, content in operation.get("requestBody", {"content": {}})["content"].items():
        rows += [(name, f"body ({media})", kind) for name, kind in _fields(document, content["schema"])]
    if rows:
        parts.append(_table(("parameter", "in", "type"), rows))
    answers = []
    for status, given in operation["responses"].items():
        response, shown = _resolved(document, given), ""
        for content in response.get("content", {}).values():
            shown = "".join(f"{name} <i>{kind}</i><br>" for name, kind in _fields(document, content["schema"]))
            shown = "" if "examples" in content else shown
        answers.append((status, escape(response["description"]), shown))
    parts.append(_table(("status", "meaning", "fields"), answers))
    if path.endswith("/auth/mfa/totp") and method == "POST":
        parts.append(
            f"<p>Show <code>otpauthUri</code> as a QR code; the example below holds "
            f"<code>{escape(_ADDRESS_OF_A_SEED)}</code>.</p>{_seed_picture()}"
        )
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><b class="method">{method}</b>'
        f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>{''.join(parts)}</details>"
    )


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields of an object schema as (name, type in words), already escaped."""
    resolved = _resolved(document, schema)
    required = resolved.get("required", ())
    return [
        (f"<code>{escape(name)}</code>", escape(_type_of(document, field)) + ("" if name in required else ", optional"))
        for name, field in resolved.get("properties", {}).items()
    ]


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    _, kind, name = reference.rsplit("/", 2)
    found: dict[str, Any] = document["components"][kind][name]
    return found


def _type_of(document: dict[str, Any], field: dict[str, Any]) -> str:
    if "$ref" in field:
        inner = ", ".join(_resolved(document, field).get("properties", {}))
        return f"object {{{inner}}}"
    kind = field.get("type", "anything")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if words == "array":
        return f"list of {_type_of(document, field.get('items', {}))}"
    if "enum" in field:
        return f"{words}: {', '.join(map(json.dumps, field['enum']))}"
    if "maxLength" in field:
        return f"{words}, {field.get('minLength', 0)} to {field['maxLength']} characters"
    if "maximum" in field:
        return f"{words}, {field.get('minimum', 0)} to {field['maximum']}"
    return words


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
