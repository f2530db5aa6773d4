"""The README is run: its commands against a real server, its Python in this process, its tables against the code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fresh_database
from tests.world import start_live

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in `language`, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def tables() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_code(tables: types.ModuleType) -> None:
    for page in tables.PAGES:
        assert tables.spliced(page.read_text()) == page.read_text(), f"{page.name}: run `make readme`"


def test_the_interfaces_name_every_dialect_and_every_route(tables: types.ModuleType) -> None:
    from identity.app import endpoints

    page = (ROOT / "docs" / "interfaces.md").read_text()
    letters = set(re.findall(r"^\| ([A-Z]) \|", page, re.MULTILINE))
    for endpoint in endpoints():
        name = endpoint.tags[0]
        assert f"\n## {name}\n" in page
        assert set(name.partition(":")[0].replace(" and ", "")) <= letters, (
            f"{name}: its letter is explained in no line"
        )
        assert f"`{endpoint.path}` |" in page


def test_the_minute_works_as_written_and_its_python_verifies_the_tokens(tmp_path: Path) -> None:
    start, provisioning, tokens = blocks("sh")
    assert start.strip() == "make run"
    with start_live(tmp_path, fresh_database("sqlite", tmp_path)) as live:
        program = tmp_path / ".venv" / "bin" / "identity"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m identity "$@"\n')
        program.chmod(0o755)

        def typed(commands: str) -> str:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands.replace("http://127.0.0.1:8000", live.url)],
                cwd=tmp_path,
                env={**live.environment, "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        decoder = json.JSONDecoder()
        # One terminal, as the page says; what comes after the line is the second block's.
        answered = typed(f"{provisioning}\necho ---\n{tokens}").rpartition("---\n")[2]
        user, end = decoder.raw_decode(answered)
        machine, _ = decoder.raw_decode(answered[end:].strip())

        kit, by_hand = (snippet.replace("http://127.0.0.1:8000", live.url) for snippet in blocks("python"))
        namespace: dict[str, object] = {}
        exec(by_hand, namespace)
        claims_of = namespace["claims_of"]
        assert callable(claims_of)
        assert claims_of(user["data"]["accessToken"])["tenants"] == {"acme-bank": ["analyst"]}
        assert claims_of(machine["data"]["accessToken"])["scope"] == "read"

        service: dict[str, Any] = {"__name__": "service"}
        exec(kit, service)
        headers = {"Authorization": f"Bearer {user['data']['accessToken']}", "X-Tenant-Id": "acme-bank"}
        client = service["app"].test_client()
        answer = client.get("/incidents", headers=headers)
        assert answer.json == {
            "for": claims_of(user["data"]["accessToken"])["sub"],
            "roles": ["analyst", "users_admin"],
        }
        assert client.get("/incidents", headers=headers | {"X-Tenant-Id": "other"}).status_code == 403
        service["verifier"].close()

        # It leaves no file behind beside those that only their owner may read.
        readable = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
        assert {path.relative_to(tmp_path).as_posix() for path in readable} <= {".venv/bin/identity", "log"}
        assert not re.search(r"(?<![<\d])>(?!&)", provisioning + tokens), "no redirection into a file"


def test_every_page_that_it_names_exists() -> None:
    named = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("http")}
    assert [target for target in sorted(named) if not (ROOT / target).exists()] == []
