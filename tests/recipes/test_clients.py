"""Clients of other people's making from PyPI, by their recipes, and what generators make of our API document."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import Machine
from tests.conftest import fresh_database
from tests.recipes.blocks import a_machine, block, run
from tests.world import Live, start_live

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("recipes")
    with start_live(folder, fresh_database("sqlite", folder)) as live:
        yield live


@pytest.fixture(scope="module")
def machine(service: Live) -> Machine:
    return a_machine(service)


def test_requests_oauth2client_signs_introspects_and_revokes(service: Live, machine: Machine) -> None:
    recipe = block("requests-oauth2client.md", "python")
    told = run([str(HERE / "venv" / "bin" / "python"), "-"], recipe, service, machine)
    assert told == ["Bearer True", "True", "{'active': False}"]


def test_fastapi_jwks_guards_an_application(service: Live, machine: Machine) -> None:
    recipe = block("fastapi-jwks.md", "python")
    told = run([str(HERE / "venv" / "bin" / "python"), "-"], recipe + FASTAPI_CLIENT, service, machine)
    assert told == [f"200 {machine.client_id}", "401", "401"]


FASTAPI_CLIENT = """
from fastapi.testclient import TestClient
import os

token = os.environ["TOKEN"]
with TestClient(app) as client:
    answer = client.get("/who", headers={"Authorization": f"Bearer {token}"})
    print(answer.status_code, answer.json()["sub"])
    print(client.get("/who", headers={"Authorization": f"Bearer {token[:-8]}AAAAAAAA"}).status_code)
    print(client.get("/who").status_code)
"""


@pytest.fixture(scope="module")
def document(service: Live, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_bytes(service.get("/openapi.json").content)
    return path


def npx(*command: str) -> str:
    done = subprocess.run(["npx", "--no-install", *command], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_redocly_finds_nothing(document: Path) -> None:
    told = npx("redocly", "lint", str(document), "--config", "redocly.yaml", "--format", "summary")
    assert "You have" not in told, told  # "You have 14 warnings."


def test_spectral_finds_nothing(document: Path) -> None:
    told = npx("spectral", "lint", str(document), "--ruleset", "spectral.yaml", "--fail-severity", "hint")
    assert "No results" in told, told


PYTHON_CLIENT = """
from os import environ
from identity_client import AuthenticatedClient, Client
from identity_client.api.a_tokens import application_token
from identity_client.api.e_o_auth_2_0 import introspect
from identity_client.api.g_the_gate import verify
from identity_client.models import ApplicationTokenBody, VerifyTenant

url = environ["ISSUER"]
login = ApplicationTokenBody(client_id=environ["CLIENT_ID"], secret=environ["CLIENT_SECRET"])
got = application_token.sync(client=Client(url), body=login)
token = got.data.access_token
print(got.data.expires_in)
gate = verify.sync_detailed(client=AuthenticatedClient(url, token), tenant=VerifyTenant.OPTIONAL, scope=["read"], role=[])
print(gate.status_code.value, gate.headers["x-auth-subject"] == environ["CLIENT_ID"])
refused = application_token.sync(client=Client(url), body=ApplicationTokenBody(client_id=environ["CLIENT_ID"], secret="wrong"))
print(refused.error, refused.status)
"""


def test_a_python_client_made_from_the_document_does_the_main_job(
    service: Live, machine: Machine, document: Path
) -> None:
    programs = HERE / "venv" / "bin"
    made = subprocess.run(
        [
            *(str(programs / "openapi-python-client"), "generate", "--path", str(document), "--meta", "none"),
            *("--output-path", str(document.parent / "identity_client")),
        ],
        env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    # It knows two content types; a status list is read by those who verify, and not by its clients.
    left_out = [line for line in (made.stdout + made.stderr).splitlines() if line.startswith("WARNING")]
    assert left_out == ["WARNING parsing GET /.well-known/status-lists/{id} within j_the_status_of_tokens."]
    code = f"import sys; sys.path.insert(0, {str(document.parent)!r}){PYTHON_CLIENT}"
    assert run([str(programs / "python"), "-"], code, service, machine) == [
        "86400",
        "200 True",
        "INVALID_CREDENTIALS 401",
    ]


def test_a_typescript_client_made_from_the_document_does_the_main_job(
    service: Live, machine: Machine, document: Path
) -> None:
    types = document.with_name("schema.d.ts")
    npx("openapi-typescript", str(document), "--output", str(types))
    main = document.with_name("main.ts")
    main.write_text(
        f"""import createClient from "openapi-fetch";
import type {{ paths }} from "./schema.js";
const client = createClient<paths>({{ baseUrl: "{service.url}" }});
const got = await client.POST("/application/token", {{ body: {{ clientId: "{machine.client_id}", secret: "{machine.secret}" }} }});
const token: string = got.data!.data.accessToken;
const gate = await client.GET("/verify", {{
  params: {{ query: {{ tenant: "optional", scope: ["read"], role: [] }} }}, headers: {{ Authorization: `Bearer ${{token}}` }},
}});
const life: number = got.data!.data.expiresIn;
console.log(life, gate.response.status, gate.response.headers.get("x-auth-subject"));
"""
    )
    (document.parent / "node_modules").symlink_to(HERE / "node_modules")
    flags = ["--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    (document.parent / "package.json").write_text('{"type": "module"}')
    npx("tsc", *flags, str(main))
    done = subprocess.run(["node", str(main.with_suffix(".js"))], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["86400", "200", machine.client_id]
