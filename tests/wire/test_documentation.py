"""`/openapi.json` and `/docs`: every route, from its own declaration, and nothing from elsewhere."""

from __future__ import annotations

import gzip
import html
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pytest

from identity.app import endpoints
from identity.cli import cli
from identity.instruments.algorithms import ALGORITHMS
from identity.wire.dialects.documentation_guides import GUIDES, Code
from identity.wire.dialects.signalx import SCHEMA
from tests import recorded
from tests.world import Live, Web

#: Answers JSON, and none is shown: it is the document itself.
SILENT = ["GET /openapi.json"]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


@pytest.fixture
def document(web: Web) -> dict[str, Any]:
    answer = web.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"].startswith("public")
    found: dict[str, Any] = answer.json
    return found


def test_the_document_holds_every_route_that_flask_serves_once_and_no_other(web: Web, document: dict[str, Any]) -> None:
    anything = {prefix + one.path for one in endpoints() if one.any_method for prefix in one.mounts}
    served = set()
    for rule in web.app.url_map.iter_rules():
        if rule.endpoint.startswith("no ") or rule.rule.startswith("/console"):
            continue  # Answers 405: a fixed path is no id. No program calls the console.
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        served |= {("GET" if path in anything else method, path) for method in rule.methods - {"HEAD"}}
    told = [(method, path) for method, path, _ in operations(document)]
    aliases = [
        (method, alias) for method, _, operation in operations(document) for alias in operation.get("x-also-at", ())
    ]
    assert set(told) | set(aliases) == served
    assert len(told) + len(aliases) == len(served), "each once"


def test_every_field_and_parameter_has_a_sentence(document: dict[str, Any]) -> None:
    silent = [
        f"{schema}.{name}"
        for schema, said in document["components"]["schemas"].items()
        for name, field in said.get("properties", {}).items()
        if not field.get("description")
    ]
    silent += [
        f"{method} {path} {one['name']}"
        for method, path, operation in operations(document)
        for one in operation["parameters"]
        if not one.get("description")
    ]
    assert silent == [], "say what they mean in identity/wire/dialects/vocabulary.py"


def test_parameters_have_the_types_that_the_routes_read(document: dict[str, Any]) -> None:
    def schema(path: str, name: str) -> Any:
        return next(one for one in document["paths"][path]["get"]["parameters"] if one["name"] == name)["schema"]

    assert schema("/verify", "role")["type"] == "array"
    assert schema("/verify", "tenant")["enum"] == ["required", "optional"]
    assert schema("/verify", "tier")["enum"] == ["standard", "ai-assisted", "bulk-upload"]
    assert schema("/admin/users", "limit") == {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}
    assert schema("/admin/users", "enabled")["type"] == "boolean"
    headers = document["paths"]["/verify"]["get"]["responses"]["200"]["headers"]
    assert {"X-Auth-Subject", "X-Auth-Roles", "X-Auth-Tenant"} <= headers.keys()
    assert "Origin" in {one["name"] for one in document["paths"]["/user/token"]["post"]["parameters"]}


def test_a_machine_may_use_the_oauth2_scheme(web: Web, document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["clientCredentials"]
    assert scheme["flows"]["clientCredentials"]["tokenUrl"] == f"{web.rt.settings.issuer}/oauth/token"


def test_names_read_well_and_leak_nothing(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    names += [*document["components"]["schemas"], *document["components"]["responses"]]
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name) for name in names), names


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs.md"])
def test_it_is_built_once_and_known_by_its_etag(web: Web, path: str) -> None:
    first, second = web.get(path), web.get(path)
    assert first.data == second.data
    etag = first.headers["ETag"]
    for known in (etag, etag.removeprefix("W/"), "*", f'"x", {etag}'):
        again = web.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", etag)
    used = []
    for _ in range(20):
        started = time.thread_time()
        assert web.app.test_client(use_cookies=False).get(path, headers={"Host": "auth.example"}).status_code == 200
        used.append(time.thread_time() - started)
    assert min(used) < 0.001, "from memory, with what this test's client takes"


def test_the_graphql_schema_is_on_the_page_and_in_a_file(web: Web) -> None:
    told = SCHEMA.strip()
    assert told in html.unescape(web.get("/docs").text)
    assert told in web.get("/docs.md").text
    assert (Path(__file__).parents[2] / "docs" / "schema.graphql").read_text().strip() == told


def test_refusals_lead_to_their_row_in_the_table_of_errors(web: Web) -> None:
    text = web.get("/docs").text
    targets = set(re.findall(r'href="#(error-[A-Z_]+)"', text))
    assert len(targets) > 10
    assert all(f'id="{target}"' in text for target in targets)


def test_the_text_says_what_the_page_says(web: Web, document: dict[str, Any]) -> None:
    text = web.get("/docs.md")
    assert text.content_type == "text/markdown; charset=utf-8"
    for method, path, operation in operations(document):
        assert f"### {method} {path}\n" in text.text
        assert operation["summary"] in text.text


def test_it_is_openapi_3_1_of_this_issuer(web: Web, document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": web.rt.settings.issuer}]


def test_every_operation_says_what_it_does_reads_and_answers(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert set(operation["tags"]) <= {tag["name"] for tag in document["tags"]}
        assert "security" in operation
        assert any(status.startswith("2") for status in operation["responses"])
        assert {"405", "500", "503"} <= operation["responses"].keys()
        named = set(re.findall(r"\{(\w+)\}", path))
        assert named == {one["name"] for one in operation["parameters"] if one["in"] == "path"}


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_two_dialects_may_give_a_schema_the_same_name(document: dict[str, Any]) -> None:
    kinds = {schema for one in endpoints() for schema in (one.body, one.answer) if schema is not None}
    assert len(kinds) <= len(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("POST", "/user/token", {"200", "401", "413", "415", "422", "429"}),
        ("POST", "/oauth/token", {"200", "400", "401", "413", "415", "429"}),
        ("GET", "/.well-known/jwks.json", {"200", "304", "405"}),
    ],
)
def test_the_statuses_are_those_of_the_declaration(
    document: dict[str, Any], method: str, path: str, statuses: set[str]
) -> None:
    assert statuses <= document["paths"][path][method.lower()]["responses"].keys()


def test_a_form_is_documented_as_a_form(document: dict[str, Any]) -> None:
    body = document["paths"]["/oauth/token"]["post"]["requestBody"]
    assert body["required"] is True
    assert list(body["content"]) == ["application/x-www-form-urlencoded"]


def test_a_key_of_any_algorithm_fits_what_is_documented(web: Web, document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["Jwk"]
    for algorithm in ALGORITHMS.values():
        members = algorithm.members(algorithm.generate(2048).public_key())
        assert members.keys() <= schema["properties"].keys(), algorithm.name
        assert set(schema["required"]) <= members.keys() | {"use", "alg", "kid"}, algorithm.name


def test_refusals_are_documented_in_the_shape_of_their_group(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Refusal"]["required"] == ["error", "message", "status"]
    assert schemas["OAuthRefusal"]["required"] == ["error", "error_description"]


def test_the_page_shows_every_operation(web: Web, document: dict[str, Any]) -> None:
    answer = web.get("/docs")
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    for _, path, operation in operations(document):
        assert f'id="{operation["operationId"]}"' in answer.text, path


def test_the_page_needs_nothing_from_elsewhere(web: Web) -> None:
    answer = web.get("/docs")
    assert not re.search(r"<(script|img|iframe|object|embed|form)\b|\bsrc=|@import|url\(| style=", answer.text)
    assert set(re.findall(r'href="([^"#]*)', answer.text)) <= {"", "/style.css", "/openapi.json", "/docs.md"}
    assert "default-src 'none'; style-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs.md"])
def test_it_travels_compressed_to_whoever_takes_that(web: Web, path: str) -> None:
    plain, small = (web.get(path, headers={"Accept-Encoding": one}) for one in ("identity", "gzip, br"))
    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small.data) == plain.data
    assert len(small.data) < len(plain.data) / 4
    assert plain.headers["Vary"] == small.headers["Vary"] == "Accept-Encoding"


def test_the_answers_that_are_shown_fit_their_schemas(document: dict[str, Any]) -> None:
    """They were heard in tests (`tests/recorded.py`); here they are held to what the routes declare, and to being many."""
    told = {f"{method} {path}": operation for method, path, operation in operations(document)}
    gone = recorded.written().keys() - told.keys()
    assert not gone, "record the answers anew: tests/recorded.py"
    for name, answer in recorded.written().items():
        response = told[name]["responses"][str(answer["status"])]
        schema = response["content"]["application/json"]["schema"] | {"components": document["components"]}
        faults = [one.message for one in jsonschema_rs.validator_for(schema).iter_errors(answer["body"])]
        assert not faults, f"{name}: {faults}"
    silent = [name for name, operation in told.items() if _answers_json(operation) and name not in recorded.written()]
    assert silent == SILENT, "record their answers: tests/recorded.py"


def _answers_json(operation: dict[str, Any]) -> bool:
    return any(
        "application/json" in given.get("content", {})
        for status, given in operation["responses"].items()
        if status.startswith("2")
    )


def test_the_guides_come_first_and_their_python_runs(web: Web) -> None:
    """Each block of Python is at least one that Python reads; the commands are ones that the command line has."""
    text = web.get("/docs.md").text
    assert text.index(GUIDES[0].title) < text.index("## Get a token")
    for guide in GUIDES:
        assert f'id="{guide.anchor}"' in web.get("/docs").text
        for part in guide.parts:
            if isinstance(part, Code) and part.language == "python":
                compile(part.text, guide.anchor, "exec")
            for line in re.findall(r"^identity (.+)", getattr(part, "text", ""), re.MULTILINE):
                command, words = cli, line.split()
                while isinstance(command, click.Group):
                    command = command.commands[words.pop(0)]
                known = {name for one in command.params for name in one.opts}
                assert {word for word in words if word.startswith("--")} <= known, line


def test_the_page_shows_a_seed_as_a_picture(web: Web) -> None:
    text = web.get("/docs").text
    entry = text[text.index('id="enrolTotp"') :]
    assert "<svg" in entry[: entry.index("</details>")]


def test_a_request_line_that_is_too_long_is_documented_and_answered_so(live: Live) -> None:
    shown = live.get("/openapi.json").json()
    asked = {
        path: operation
        for path, one in shown["paths"].items()
        for operation in one.values()
        if operation.get("parameters")
    }
    assert asked["/admin/users"]["responses"]["414"], "wherever a caller chooses how long it gets"
    answer = live.get("/admin/users", params={"q": "x" * 9_000})
    assert (answer.status_code, answer.json()["error"]) == (414, "MALFORMED_REQUEST")
