"""The documentation as pages: HTML that needs nothing from elsewhere (no script, no font, no picture), and the same as text."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from identity.errors import CATALOGUE

_ADDRESS_OF_A_SEED: Final = "otpauth://totp/identity:ada%40acme.example?secret=JBSWY3DPEHPK3PXP&issuer=identity&algorithm=SHA1&digits=6&period=30"

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
POLICY: Final = (
    "Content-Security-Policy",
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


@functools.lru_cache(maxsize=1)
def _seed_picture() -> str:
    import segno  # noqa: PLC0415 -- only who reads the documentation needs a picture

    picture: str = segno.make(_ADDRESS_OF_A_SEED, micro=False).svg_inline(scale=3, title="A TOTP seed as a QR code")
    return picture


TASKS: Final = (
    "Get a token",
    "Verify a token",
    "Sign a person in",
    "Sessions and key pairs",
    "Administer",
    "Operate",
)
# By the letter of the group that an operation belongs to.
_TASK_OF: Final = {"A": 0, "E": 0, "F": 1, "G": 1, "J": 1, "B": 2, "D": 2, "C": 3, "H": 4, "K": 4, "L": 4}
_EXAMPLES: Final = {
    "email": "ada@acme.example",
    "address": "ada@acme.example",
    "username": "ada@acme.example",
    "password": "four words that nobody guesses",
    "newPassword": "a different battery staple",
    "totpCode": "123456",
    "emailCode": "123456",
    "code": "123456",
    "days": 90,
    "grant_type": "client_credentials",
    "query": 'mutation { login(username: "ada", password: "...") { code message sessionID } }',
}

_EVERYWHERE: Final = (
    "MALFORMED_REQUEST",
    "METHOD_NOT_ALLOWED",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    "INTERNAL_ERROR",
    "UNAVAILABLE",
)

Operation = tuple[str, str, dict[str, Any]]


def html(document: dict[str, Any]) -> str:
    """The page: every route once, by task, with the command that calls it."""
    sections = list(_by_task(document))
    links = "".join(f'<a href="#task-{number}">{task}</a><br>' for number, (task, _) in enumerate(sections))
    body = "".join(
        f'<h2 id="task-{number}">{task}</h2>' + "".join(_entry(document, *operation) for operation in operations)
        for number, (task, operations) in enumerate(sections)
    )
    errors = _table(
        ("error", "status", "when"),
        [
            (f'<code id="error-{problem.code}">{problem.code}</code>', str(problem.status), escape(reason))
            for problem, reason in CATALOGUE
        ],
    )
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f'The same for machines: <a href="/openapi.json">/openapi.json</a>; as text: <a href="/docs.md">/docs.md</a>.</p>'
        f'<nav>{links}<a href="#graphql">GraphQL</a><br><a href="#errors">Errors</a></nav>{body}'
        f'<h2 id="graphql">GraphQL</h2><pre>{escape(document["x-graphql"])}</pre>'
        f'<h2 id="errors">Errors</h2><p>Every refusal carries <code>x-error</code> (what) and <code>x-error-id</code> '
        f"(which one, for those who operate the service).</p>{errors}</body></html>"
    )


def markdown(document: dict[str, Any]) -> str:
    """The same as text."""
    info, lines = document["info"], []
    lines += [f"# {info['title']} {info['version']}", "", info["description"], ""]
    for task, operations in _by_task(document):
        lines += [f"## {task}", ""]
        for method, path, operation in operations:
            lines += [f"### {method} {path}", "", f"{operation['summary']}. {operation['description']}".strip(), ""]
            lines += ["```sh", _curl(document, method, path, operation), "```", ""]
            lines += [f"- `{name}`: {words}" for name, words in _plain_fields(document, operation)]
            codes = ", ".join(f"[{code}](#errors)" for code in _codes(document, operation))
            lines += ["", f"Refusals of its own: {codes or 'none'}.", ""]
    lines += ["## GraphQL", "", "```graphql", document["x-graphql"].strip(), "```", "", "## Errors", ""]
    lines += [f"- `{problem.code}` ({problem.status}): {reason}" for problem, reason in CATALOGUE]
    return "\n".join(lines) + "\n"


def _by_task(document: dict[str, Any]) -> Iterable[tuple[str, list[Operation]]]:
    found: dict[str, list[Operation]] = {task: [] for task in TASKS}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            number = _TASK_OF.get(operation["tags"][0][0], len(TASKS) - 1)
            task = TASKS[-1] if path.startswith("/health") else TASKS[number]
            found[task].append((method.upper(), path, operation))
    return found.items()


def _curl(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    """The command that calls an operation, with what it cannot do without."""
    implied = "POST" if "requestBody" in operation else "GET"
    words = ["curl"] + ([f"-X {method}"] if method != implied else [])
    schemes: dict[str, Any] = next(iter(operation["security"]), {})
    words += [_AS.get(scheme, '-H "Authorization: Bearer $TOKEN"') for scheme in schemes]
    for media, content in operation.get("requestBody", {"content": {}})["content"].items():
        schema = _resolved(document, content["schema"])
        wanted = {name: _example(name, schema["properties"][name]) for name in schema.get("required", ())}
        if media == "application/json":
            words.append(f"-H 'Content-Type: {media}' -d '{json.dumps(wanted)}'")
        else:
            words += [f"-d {name}={value}" for name, value in wanted.items()]
    words.append(f'"{document["servers"][0]["url"]}{path}"')
    return " ".join(words)


_AS: Final = {
    "apiKey": '-H "api-key: $API_KEY"',
    "apiSecret": '-H "api-secret: $API_SECRET"',
    "clientBasic": '-u "$CLIENT_ID:$CLIENT_SECRET"',
}


def _example(name: str, field: dict[str, Any]) -> Any:
    kinds: dict[str, Any] = {"integer": field.get("minimum", 1), "boolean": True, "array": [], "object": {}}
    return _EXAMPLES.get(name, kinds.get(field.get("type", "string"), "..."))


def _codes(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    """The codes of the refusals that are an operation's own, each once; what every route may answer says the table of errors."""
    found: dict[str, None] = {}
    for given in operation["responses"].values():
        for content in _resolved(document, given).get("content", {}).values():
            found |= dict.fromkeys(name.partition(" ")[0] for name in content.get("examples", {}))
    return [code for code in found if code not in _EVERYWHERE]


def _plain_fields(document: dict[str, Any], operation: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for one in operation["parameters"]:
        yield one["name"], f"{one['in']}, {_type_of(document, one['schema'])}. {one.get('description', '')}"
    for content in operation.get("requestBody", {"content": {}})["content"].values():
        for name, field in _resolved(document, content["schema"]).get("properties", {}).items():
            yield name, f"{_type_of(document, field)}. {field.get('description', '')}"


def _entry(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{escape(operation['description'])}</p>" if operation["description"].strip() else ""]
    aliases = operation.get("x-also-at")
    if aliases:
        parts.append(f"<p>Also at {', '.join(f'<code>{escape(alias)}</code>' for alias in aliases)}.</p>")
    parts.append(f"<pre>{escape(_curl(document, method, path, operation))}</pre>")
    rows = [
        (
            f"<code>{escape(one['name'])}</code>",
            one["in"],
            escape(_type_of(document, one["schema"])),
            escape(one.get("description", "")),
        )
        for one in operation["parameters"]
    ]
    for content in operation.get("requestBody", {"content": {}})["content"].values():
        rows += [(name, "body", kind, meaning) for name, kind, meaning in _fields(document, content["schema"])]
    if rows:
        parts.append(_table(("parameter", "in", "type", "meaning"), rows))
    answers = [
        (name, kind, meaning)
        for status, given in operation["responses"].items()
        if status.startswith("2")
        for content in _resolved(document, given).get("content", {}).values()
        for name, kind, meaning in _fields(document, content["schema"])
    ]
    if answers:
        parts.append(_table(("answer", "type", "meaning"), answers))
    codes = ", ".join(f'<a href="#error-{code}">{code}</a>' for code in _codes(document, operation))
    parts.append(f"<p>Refusals: {codes or 'none'}</p>")
    if path.endswith("/auth/mfa/totp") and method == "POST":
        parts.append(
            f"<p>Show <code>otpauthUri</code> as a QR code; the example below holds "
            f"<code>{escape(_ADDRESS_OF_A_SEED)}</code>.</p>{_seed_picture()}"
        )
    return (
        f'<details id="{escape(operation["operationId"])}"><summary><b class="method">{method}</b>'
        f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>{''.join(parts)}</details>"
    )


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The fields of an object schema as (name, type in words, meaning), already escaped."""
    resolved = _resolved(document, schema)
    required = resolved.get("required", ())
    return [
        (
            f"<code>{escape(name)}</code>",
            escape(_type_of(document, field)) + ("" if name in required else ", optional"),
            escape(field.get("description", "")),
        )
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
    if "allOf" in field:
        field = field["allOf"][0]
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
