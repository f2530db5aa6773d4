"""What operators take from `deploy/` and `docs/runbook.md`: each file is held to the service that it runs or watches."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from identity.cli import cli
from identity.core.clients import keypairs
from identity.settings import Settings
from tests.builders import a_user
from tests.conftest import fresh_database
from tests.wire.test_metrics import wait_for
from tests.world import ORIGIN, Live, free_port, start_live

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = ("identity.service", "identity-backup.service")
RULES = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())
TRIALS = yaml.safe_load((DEPLOY / "prometheus-rules.test.yaml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
CHECKED = {
    *UNITS, "identity-backup.timer", "prometheus-rules.yaml", "prometheus-rules.test.yaml", "vector.yaml",
    "grafana-dashboard.json", "compose.yaml", "kubernetes.yaml",
}  # fmt: skip
# What PromQL itself knows, of what is used here; anything else in an expression is a metric.
PROMQL = {
    "sum", "by", "rate", "max", "min", "topk", "increase", "count",
    "histogram_quantile", "and", "le", "status", "kind", "route", "job", "result",
}  # fmt: skip
EXPOSURE_MAX = 20  # In tenths, as systemd-analyze takes it.


def test_every_file_is_one_that_a_test_looks_at() -> None:
    # The secrets of whoever runs the compose file here are theirs.
    assert {path.name for path in DEPLOY.iterdir()} - {"secrets"} == CHECKED


def test_operators_find_them() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    for name in CHECKED:
        assert f"](../deploy/{name})" in operations, name
    assert "](docs/runbook.md)" in (ROOT / "README.md").read_text()


# systemd.


def unit(name: str = UNITS[0]) -> dict[str, dict[str, list[str]]]:
    """The sections of a unit; a directive may stand more than once."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(name, []).append(value)
    return sections


def test_the_unit_starts_the_service_with_settings_that_it_knows() -> None:
    service = unit()["Service"]
    (start,) = service["ExecStart"]
    command, *arguments = start.split()
    assert (Path(command).name, arguments) == ("identity", ["serve"])
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "identity = identity.cli:main" in config["options.entry_points"]["console_scripts"]
    settings = Settings.from_env(dict(one.split("=", 1) for one in service["Environment"]))
    assert int(service["TimeoutStopSec"][0]) > settings.graceful_stop_seconds
    # What is kept must be where the service may write.
    assert service["WorkingDirectory"] == [f"/var/lib/{service['StateDirectory'][0]}"]
    assert not settings.keys_dir.is_absolute()


@pytest.mark.parametrize("unit_name", UNITS)
def test_the_units_may_do_little(unit_name: str) -> None:
    service = unit(unit_name)["Service"]
    for name in (
        "DynamicUser", "NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateTmp", "PrivateDevices", "PrivateUsers", "ProtectHome",
        "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups", "RestrictNamespaces", "RestrictSUIDSGID",
        "LockPersonality",
    ):  # fmt: skip
        assert service[name] == ["yes"], name
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["UMask"] == ["0077"]
    assert "~@privileged @resources" in service["SystemCallFilter"]
    # It judges a file without running it; where there is none, the list above is what is held.
    if program := shutil.which("systemd-analyze"):
        command = [
            program,
            "security",
            "--offline=true",
            f"--threshold={EXPOSURE_MAX}",
            "--no-pager",
            str(DEPLOY / unit_name),
        ]
        judged = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        too_old = "unrecognized option" in judged.stderr  # Before systemd 250.
        assert judged.returncode == 0 or too_old, judged.stdout[-300:] + judged.stderr


def test_the_backup_is_made_by_the_same_user_of_the_same_database_every_night(
    watched: tuple[Live, dict[str, set[str]]], tmp_path: Path
) -> None:
    served, service, timer = (
        unit()["Service"],
        unit("identity-backup.service")["Service"],
        unit("identity-backup.timer"),
    )
    for name in ("WorkingDirectory", "EnvironmentFile"):
        assert service[name] == served[name]
    # A dynamic user without a name has that of its unit.
    assert (service["User"], service["Type"], service["DynamicUser"]) == (["identity"], ["oneshot"], ["yes"])
    mine, backups_of_it = service["StateDirectory"][0].split()
    assert mine == served["StateDirectory"][0]
    assert re.fullmatch(r"\*-\*-\* [0-9]{2}:[0-9]{2}:[0-9]{2}", timer["Timer"]["OnCalendar"][0])
    assert (timer["Timer"]["Persistent"], timer["Install"]["WantedBy"]) == (["true"], ["timers.target"])
    # Its command, run twice here: the second is of the same day, and replaces the first.
    (command,) = service["ExecStart"]
    ours = f"{shlex.quote(sys.executable)} -m identity"
    command = (
        command.replace("/opt/identity/bin/identity", ours)
        .replace(f"/var/lib/{backups_of_it}", str(tmp_path))
        .replace("%%", "%")
    )
    environment = watched[0].environment | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        ran = subprocess.run(
            shlex.split(command),
            cwd=watched[0].folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
    (made,) = tmp_path.iterdir()
    assert re.fullmatch(r"day-[1-7]\.sealed", made.name)


# Prometheus and Grafana.


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, dict[str, set[str]]]]:
    """A service that has done a little, and the labels of each metric that it then shows."""
    folder = tmp_path_factory.mktemp("watched")
    bind = f"127.0.0.1:{free_port()}"
    with start_live(folder, fresh_database("sqlite", folder), {"metrics_bind": bind}) as live:
        ada = a_user(live.rt)
        with live.rt.unit(ORIGIN) as unit:
            keypairs.create(live.rt, unit, ada.id, name="feed", days=5, actor="test", verified=True)
        answer = live.get("/keypair", headers={"api-key": "unknown", "api-secret": "unknown"})
        assert answer.status_code == 401
        assert live.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200
        wait_for(bind, "identity_logins_total{")  # With the next half second's counts.
        shown: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(requests.get(f"http://{bind}/metrics", timeout=10).text):
            for sample in family.samples:
                shown.setdefault(sample.name, set()).update(sample.labels)
        yield live, shown


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + panels


def metrics_in(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression names, and the labels that it expects of them."""
    bare = re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"', '""', expression))
    labels = {name for names in re.findall(r"\bby \(([^)]*)\)", bare) for name in re.split(r",\s*", names)}
    found: dict[str, set[str]] = {}
    for name, matchers in re.findall(r"\b([a-z_]+)\b(?:\{([^}]*)\})?", re.sub(r"\bby \([^)]*\)", "", bare)):
        if name not in PROMQL:
            found.setdefault(name, set()).update(labels, re.findall(r"([a-z_]+)\s*[=!]", matchers))
    return found


def test_what_an_expression_names_is_found() -> None:
    asked = 'sum by (route) (rate(identity_requests_total{status=~"5.."}[5m])) / max(identity_nothing)'
    assert metrics_in(asked) == {"identity_requests_total": {"route", "status"}, "identity_nothing": {"route"}}


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_is_one_that_the_service_shows(
    watched: tuple[Live, dict[str, set[str]]], expression: str
) -> None:
    named = metrics_in(expression)
    # Prometheus makes this one itself, of each job.
    named.pop("up", None)
    assert named or "up{" in expression
    for name, labels in named.items():
        assert name in watched[1], name
        assert labels <= watched[1][name], name


def test_each_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "0s")), rule
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_each_alert_is_tried_ringing_and_silent() -> None:
    tried: dict[str, set[bool]] = {}
    for each in TRIALS["tests"]:
        for one in each["alert_rule_test"]:
            tried.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert tried == {rule["alert"]: {True, False} for rule in rules()}


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    (source,) = DASHBOARD["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in panels} == {f"${{{source['name']}}}"}
    assert {"title", "uid", "schemaVersion", "time"} <= DASHBOARD.keys()


def test_vector_reads_the_unit_and_the_fields_that_there_are(watched: tuple[Live, dict[str, set[str]]]) -> None:
    text = (DEPLOY / "vector.yaml").read_text()
    config = yaml.safe_load(text)
    parts = {name: part for kind in ("sources", "transforms", "sinks") for name, part in config[kind].items()}
    outputs = {*parts, *(f"kinds.{name}" for name in (*config["transforms"]["kinds"]["route"], "_unmatched"))}
    assert {one for part in parts.values() for one in part.get("inputs", ())} <= outputs
    assert config["sources"]["journal"]["include_units"] == [UNITS[0]]
    lines = [json.loads(line) for line in watched[0].log.read_text().splitlines() if line.startswith("{")]
    (refused, *_) = [line for line in lines if "error" in line and line["event"] == "request"]
    named = re.search(
        r"JSON object: (.+), and the fields.* has (.+) and (\w+),\n# a refused one (.+) and (\w+) beside", text
    )
    assert named
    assert set(re.findall(r"\w+", " ".join(named.groups()))) == refused.keys()


# The runbook.


def commands() -> list[list[str]]:
    found = re.findall(r"`identity ((?:[a-z-]+|[A-Z_]+| )+)`", RUNBOOK)
    return [list(words) for words in dict.fromkeys(tuple(text.split()) for text in found)]


def test_each_alert_has_its_entry_and_each_entry_its_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in rules()]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_of_the_runbook_is_one_that_there_is(words: list[str]) -> None:
    found: click.Command = cli
    while words and isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    options = {name for parameter in found.params for name in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in options] == []


def test_each_command_that_changes_no_credential_runs(watched: tuple[Live, dict[str, set[str]]]) -> None:
    live, _ = watched
    ran = 0
    for words in commands():
        if words[0] in ("keypair", "application", "worker") or any(word.isupper() for word in words):
            continue
        command = [sys.executable, "-m", "identity", *words]
        environment = live.environment | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=live.folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        # The doctor warns of the key pair that ends.
        assert (done.returncode, done.stderr) == (int(words == ["doctor"]), ""), words
        ran += 1
    assert ran >= 6
