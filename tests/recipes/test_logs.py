"""The log by journald and jq, and by Vector: what docs/recipes/logs.md and deploy/vector.yaml make of the lines of a real service."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipes.blocks import block
from tests.world import Live

HERE = Path(__file__).parent
VECTOR = yaml.safe_load((HERE.parents[1] / "deploy" / "vector.yaml").read_text())
RUN = """
import json, sys
from vrl_python import VRLRuntime
asked = json.load(sys.stdin)
flaw = VRLRuntime.check_syntax(asked["program"])
assert flaw is None, flaw.formatted_message
made = [VRLRuntime.run(asked["program"], {"message": one, "timestamp": "t", "host": "h"}, "UTC").processed_event for one in asked["lines"]]
routes = [[name for name, rule in asked["routes"].items() if VRLRuntime.run(rule, dict(one), "UTC").runtime_result] for one in made]
json.dump([made, routes], sys.stdout)
"""


@pytest.fixture
def log(live: Live) -> Path:
    assert live.get("/health/live", headers={"X-Request-Id": "looked-for"}).status_code == 200
    assert live.get("/verify").status_code == 401
    while b"UNAUTHENTICATED" not in live.log.read_bytes() or b"looked-for" not in live.log.read_bytes():
        assert live.process.poll() is None
    return live.log


def jq(number: int, log: Path, **environment: str) -> list[str]:
    """What a recipe prints when the journal is this file."""
    code = re.sub(r"journalctl [^|]*\|", f"cat {log} |", block("logs.md", "sh", number))
    done = subprocess.run(
        ["sh", "-c", code],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def test_journald(log: Path) -> None:
    refused = [line.split("\t") for line in jq(0, log)]
    assert any(one[1:3] == ["401", "UNAUTHENTICATED"] for one in refused)
    times = [float(line.split("\t")[0]) for line in jq(1, log)]
    assert times
    assert times == sorted(times, reverse=True)
    (found,) = jq(2, log, REQUEST_ID="looked-for")
    assert json.loads(found)["route"] == "GET /health/live"


def test_vector(log: Path) -> None:
    # Before its first line the service greets, on an empty database.
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")] + ["identity serves"]
    transforms = VECTOR["transforms"]
    asked = {"program": transforms["identity"]["source"], "routes": transforms["kinds"]["route"], "lines": lines}
    done = subprocess.run(
        [HERE / "venv/bin/python", "-c", RUN],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    events: list[dict[str, Any]]
    events, routes = json.loads(done.stdout)
    for line, event, parts in zip(lines[:-1], events[:-1], routes[:-1], strict=True):
        said = json.loads(line)
        own = {name: value for name, value in said.items() if name not in ("at", "level", "logger", "event")}
        assert (event["level"], event["logger"], event["event"], event["fields"]) == (
            said["level"],
            said["logger"],
            said["event"],
            own,
        )
        assert event["timestamp"][:19].replace(" ", "T") == said["at"][:19]
        is_request = said["event"] == "request"
        assert parts == (["refusals" if "error" in said else "requests"] if is_request else [])
    assert ["requests"] in routes
    assert ["refusals"] in routes
    assert (events[-1]["event"], routes[-1]) == ("not a log line", [])
