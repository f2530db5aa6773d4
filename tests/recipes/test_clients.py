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
