"""The documentation as pages: HTML in the clothes of every page of ours (no script, no font, no picture), and the same as text."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from identity.errors import CATALOGUE
from identity.wire import pages
from identity.wire.dialects.documentation_guides import GUIDES, Code

_ADDRESS_OF_A_SEED: Final = "otpauth://totp/identity:ada%40acme.example?secret=JBSWY3DPEHPK3PXP&issuer=identity&algorithm=SHA1&digits=6&period=30"


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


def html(document: dict[str, Any], service: str) -> str:
    """The page: the guides, then every route once, by task, with the command that calls it and what it answered."""
    tasks = [
        {"anchor": f"task-{number}", "title": task, "entries": [_entry(document, *one) for one in operations]}
        for number, (task, operations) in enumerate(_by_task(document))
    ]
    root = urlsplit(document["servers"][0]["url"]).path.rstrip("/")
    return pages.filled(
        "docs.html",
        service=service,
        root=root,
        issuer=document["servers"][0]["url"],
        version=document["info"]["version"],
        guides=GUIDES,
        tasks=tasks,
        graphql=document["x-graphql"].strip(),
        errors=CATALOGUE,
        marked=_marked,
    )


def _marked(text: str) -> Markup:
    """Text whose parts between backquotes are code."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def markdown(document: dict[str, Any]) -> str:
    """The same as text."""
    info, lines = document["info"], []
    lines += [f"# {info['title']} {info['version']}", "", info["description"], ""]
    lines += [f"The commands work after `export IDENTITY={document['servers'][0]['url']}`.", ""]
    for guide in GUIDES:
        lines += [f"## {guide.title}", ""]
        for part in guide.parts:
            lines += [f"```{part.language}", part.text, "```", ""] if isinstance(part, Code) else [part, ""]
    for task, operations in _by_task(document):
        lines += [f"## {task}", ""]
        for method, path, operation in operations:
            lines += [f"### {method} {path}", "", f"{operation['summary']}. {operation['description']}".strip(), ""]
            lines += ["```sh", _curl(document, method, path, operation), "```", ""]
            answer = answer_of(method, path)
            lines += ["```http", answer, "```", ""] if answer else []
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
            words.append(f"--json '{json.dumps(wanted)}'")
        else:
            words += [f"-d {name}={value}" for name, value in wanted.items()]
    target = re.sub(r"{(\w+)}", _placed, path)
    words.append(f'"$IDENTITY{target}"')
    lines = [words[0]]
    for word in words[1:]:
        fits = len(lines[-1]) + len(word) < _LINE
        lines = [*lines[:-1], f"{lines[-1]} {word}"] if fits else [*lines, f"  {word}"]
    return " \\\n".join(lines)


_LINE: Final = 76


def _placed(found: re.Match[str]) -> str:
    """A parameter of a path as a variable of the shell: `{clientId}` is `$CLIENT_ID`."""
    return "$" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found[1]).upper()


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


def _entry(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of one route."""
    reads = [
        (one["name"], one["in"], _type_of(document, one["schema"]), one.get("description", ""), one["in"] == "path")
        for one in operation["parameters"]
    ]
    for content in operation.get("requestBody", {"content": {}})["content"].values():
        reads += [
            (name, "body", kind, meaning, needed)
            for name, kind, meaning, needed in _fields(document, content["schema"])
        ]
    answers = [
        field
        for status, given in operation["responses"].items()
        if status.startswith("2")
        for content in _resolved(document, given).get("content", {}).values()
        for field in _fields(document, content["schema"])
    ]
    shows_seed = path.endswith("/auth/mfa/totp") and method == "POST"
    return {
        "anchor": operation["operationId"],
        "method": method,
        "path": path,
        "summary": operation["summary"],
        "description": operation["description"].strip(),
        "aliases": operation.get("x-also-at", ()),
        "curl": _curl(document, method, path, operation),
        "answer": answer_of(method, path),
        "reads": reads,
        "answers": answers,
        "codes": _codes(document, operation),
        "picture": _seed_picture() if shows_seed else "",
        "pictured": _ADDRESS_OF_A_SEED if shows_seed else "",
    }


@functools.lru_cache(maxsize=1)
def _answers() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("identity.wire").joinpath("templates", "answers.json").read_text("utf-8"))
    return found


def answer_of(method: str, path: str) -> str:
    """What the route answered when the tests last asked it, as text; empty for one that answers no JSON."""
    found = _answers().get(f"{method} {path}")
    return "" if found is None else f"HTTP {found['status']}\n{json.dumps(found['body'], indent=1, ensure_ascii=False)}"


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """The fields of an object schema as (name, type in words, meaning, whether it must be there)."""
    resolved = _resolved(document, schema)
    required = resolved.get("required", ())
    return [
        (name, _type_of(document, field), field.get("description", ""), name in required)
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
