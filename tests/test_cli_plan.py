"""Plan and apply: what a file says comes about, once; a drift is named; a run that died is completed by the next."""

# ruff: noqa: F811 -- fixtures of another module are arguments here

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from identity.core.people.accounts import User
from identity.settings import Settings
from tests.builders import a_session, a_tenant, a_user, an_application
from tests.cli_world import Ran
from tests.test_cli_doors import boss, run, server  # noqa: F401 -- fixtures
from tests.world import Web, environment_of

FILE = """
tenants:
  acme: {name: Acme, limits: {standard: 500/minute}}
  other: {name: Other}
roles:
  analyst: {description: Reads reports}
applications:
  feed:
    tenant: acme
    scopes: [read]
    trusts:
      ci: {issuer: "https://ci.example", subject: "repo:acme/*"}
users:
  ada@acme.example:
    alias: ada
    fullName: Ada Lovelace
    roles: [analyst]
    tenants: {acme: [lead]}
"""


def steps(ran: Ran) -> list[tuple[str, str, str]]:
    return [(one["action"], one["kind"], one["name"]) for one in ran.json["steps"]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    from dataclasses import replace

    return replace(settings, trusted_issuers=("https://ci.example",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("door", ["database", "network"])
def test_a_file_comes_about_and_then_there_is_nothing_to_do(
    run: Any,
    web: Web,
    boss: str,
    server: str,
    file: Path,
    door: str,
) -> None:
    by = ("--server", server) if door == "network" else ()
    assert run(*by, "plan", str(file), "--check").status == 2
    planned = steps(run(*by, "plan", str(file), "--json"))
    assert ("create", "user", "ada@acme.example") in planned
    applied = run(*by, "apply", str(file), "--json")
    (app,) = [one for one in applied.json["steps"] if one["kind"] == "application" and one["action"] == "create"]
    answer = web.post("/application/token", {"clientId": app["made"]["clientId"], "secret": app["made"]["secret"]})
    assert answer.status_code == 200
    assert run(*by, "plan", str(file), "--check", "--json").json == {"steps": []}
    assert run(*by, "apply", str(file), "--json").json == {"steps": []}
    shown = run("user", "show", "ada", "--json").json
    assert (shown["roles"], shown["tenants"]) == (["analyst"], {"acme": ["lead"]})


def test_a_drift_is_named_and_done_away_with(run: Any, web: Web, boss: str, file: Path) -> None:
    run("apply", str(file))
    run("user", "update", "ada", "--full-name", "Somebody")
    run("tenant", "add-member", "acme", "--user", "ada", "--role", "reader", "--new-role")
    run("tenant", "disable", "other")
    run("application", "update", "feed", "--scope", "write")
    drift = run("plan", str(file), "--json").json["steps"]
    assert [(one["kind"], one["name"], one["changes"]) for one in drift] == [
        ("application", "feed", {"scopes": {"from": ["write"], "to": ["read"]}}),
        ("user", "ada@acme.example", {"fullName": {"from": "Somebody", "to": "Ada Lovelace"}}),
        ("membership", "acme/ada@acme.example", {"roles": {"from": ["reader"], "to": ["lead"]}}),
    ]
    run("apply", str(file))
    assert run("plan", str(file), "--check").status == 0


def test_only_prune_removes_and_only_in_the_sections_of_the_file(run: Any, web: Web, boss: str, tmp_path: Path) -> None:
    a_tenant(web.rt, "acme")
    a_user(web.rt, alias="ada", email="ada@acme.example", tenants={"acme": [], "gone": []})
    an_application(web.rt, name="stays")
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"tenants": {"acme": {}}, "users": {"ada@acme.example": {"tenants": {"acme": []}}}}))
    assert steps(run("plan", str(file), "--json")) == []
    pruned = steps(run("plan", str(file), "--prune", "--json"))
    assert ("remove", "tenant", "gone") in pruned
    assert ("remove", "membership", "gone/ada@acme.example") in pruned
    assert not [one for one in pruned if one[1] == "application"]
    # The last administrator stays, whatever a file says.
    assert "last administrator" in run("apply", str(file), "--prune").err


def test_what_is_can_be_written_and_is_then_no_change(run: Any, web: Web, boss: str, file: Path) -> None:
    run("apply", str(file))
    a_session(web.rt, a_user(web.rt, groups=("g",), enabled=True))
    written = run("plan", "--from-database")
    assert written.status == 0
    said = yaml.safe_load(written.out)
    assert said["applications"]["feed"]["trusts"]["ci"]["subject"] == "repo:acme/*"
    for word in ("secret", "hash", "argon2", "password"):
        assert word not in written.out
    copy = file.parent / "copy.yaml"
    copy.write_text(written.out)
    assert steps(run("plan", str(copy), "--prune", "--json")) == []
    assert run("plan", "--from-database", "--json").json == said


@pytest.mark.parametrize(
    "text",
    ["tenants: [a]", "nonsense: {}", "users: {a@b.example: {isAdmin: true}}", "{", "!!python/object:os.system {}", "x"],
)
def test_a_file_that_is_none_is_refused_in_one_line(run: Any, web: Web, tmp_path: Path, text: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    for command in ("plan", "apply"):
        ran = run(command, str(file))
        assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)


def test_a_run_that_died_is_completed_by_the_next(run: Any, web: Web, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    people = {
        f"p{n}@acme.example": {"alias": f"p{n:04}", "fullName": f"P {n}", "tenants": {"acme": []}} for n in range(60)
    }
    file.write_text(json.dumps({"tenants": {"acme": {"name": "Acme"}}, "users": people}))
    chosen = {
        one.name: getattr(settings, one.name) for one in fields(settings) if getattr(settings, one.name) != one.default
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    environment = {**kept, **environment_of(chosen), "PYTHONPATH": str(Path(__file__).parent.parent)}
    killed = subprocess.Popen([sys.executable, "-m", "identity", "apply", str(file)], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 60

    def count() -> int:
        with web.rt.database.reading() as session:
            return session.scalar(select(func.count()).select_from(User)) or 0

    while count() < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert count() >= 5
    assert run("apply", str(file)).status == 0
    assert count() == 60
    assert steps(run("plan", str(file), "--json")) == []
