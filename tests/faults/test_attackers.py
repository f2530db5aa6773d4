"""Schemathesis for minutes, as a stranger, a user, the owner of a tenant and an administrator: whatever they send, no fault of ours.

`IDENTITY_FAULT_ATTACK_SECONDS`: how long each of them attacks each database.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from identity.runtime import Runtime
from tests.builders import a_token, a_user
from tests.faults.conftest import Stores
from tests.faults.rig import SEED, serving

pytestmark = pytest.mark.faults
SECONDS = int(os.environ.get("IDENTITY_FAULT_ATTACK_SECONDS", "75"))
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CALLERS: dict[str, Callable[[Runtime], str] | None] = {
    "stranger": None,
    "user": lambda rt: a_token(rt, a_user(rt, tenants={"acme-bank": ("analyst",)})),
    "owner": lambda rt: a_token(rt, a_user(rt, tenants={"acme-bank": ("owner",)})),
    "administrator": lambda rt: a_token(rt, a_user(rt, roles=["users_admin"], tenants={"acme-bank": ("owner",)})),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_no_attacker_finds_a_fault_of_ours(backend: str, stores: Stores, tmp_path: Path, caller: str) -> None:
    with serving(tmp_path / "service", stores.fresh(backend, tmp_path)) as service:
        rt, ended, file = service.runtime(), threading.Event(), tmp_path / "token"
        make = CALLERS[caller]

        def be_somebody() -> None:
            while make is not None:
                file.with_suffix(".new").write_text(make(rt))
                file.with_suffix(".new").rename(file)
                if ended.wait(1):
                    return

        arguments = [
            *("run", f"{service.url}/openapi.json", "--checks", CHECKS, "--seed", str(SEED % 2**32)),
            *("--max-time", str(SECONDS), "--workers", "1", "--no-color", "--continue-on-failure"),
            *("--generation-database", "none", "--exclude-path-regex", "^/api/"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        if make is not None:
            environment |= {"SCHEMATHESIS_HOOKS": "tests.faults.attacker", "ATTACKER_TOKEN_FILE": str(file)}
        renewing = threading.Thread(target=be_somebody)
        renewing.start()
        try:
            run = subprocess.run(
                [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *arguments],
                cwd=service.folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            ended.set()
            renewing.join()
            rt.close()
        requests = [line for line in service.logged() if line["event"] == "request"]
        statuses = Counter(line["status"] for line in requests)
        print(
            f"{caller} on {backend}: {len(requests)} requests to {len({line['route'] for line in requests})} routes, {statuses}"
        )
        faults = [line for line in requests if line["status"] >= 500]
        assert faults == [], faults[:5]
        assert service.faults() == []
        assert run.returncode == 0, run.stdout[-12000:]
