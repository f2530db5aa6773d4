"""The guides of `/docs`, word for word, before a real service: the shell and the Python as they stand, Node with the real library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.wire.dialects.documentation_guides import GUIDES, Code
from tests.builders import Machine
from tests.conftest import fresh_database
from tests.recipes.blocks import a_machine, run
from tests.world import Live, start_live


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("guides")
    with start_live(folder, fresh_database("sqlite", folder)) as live:
        yield live


@pytest.fixture(scope="module")
def machine(service: Live) -> Machine:
    return a_machine(service)


def code(anchor: str, number: int = 0) -> str:
    """A block of a guide."""
    (guide,) = (one for one in GUIDES if one.anchor == anchor)
    return [part.text for part in guide.parts if isinstance(part, Code)][number]


def shell(service: Live, folder: Path, text: str, **values: str) -> str:
    """What a guide's shell prints, with `identity` on the path as on a host where it is installed."""
    command = folder / "identity"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m identity "$@"\n')
    command.chmod(0o755)
    known = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment = service.environment | known | {"IDENTITY": service.url} | values
    done = subprocess.run(
        ["sh", "-eu"], input=text, env=environment, cwd=service.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(printed: str, name: str) -> str:
    """The value after a name in what a command printed."""
    (found,) = (line.split()[-1] for line in printed.splitlines() if line.split()[:1] == [name])
    return found


def test_a_machine_gets_its_token_and_python_verifies_it(service: Live, tmp_path: Path) -> None:
    made = shell(service, tmp_path, code("guide-machine"))
    client, secret = said(made, "clientId"), said(made, "secret")
    # Its second line calls the service that the token is for, which is somebody else's.
    first, _, second = code("guide-machine", 1).rpartition("\n")
    assert second.startswith("curl -H")
    token = shell(service, tmp_path, f'{first}\necho "$TOKEN"', CLIENT_ID=client, CLIENT_SECRET=secret).strip()
    values = {"ISSUER": service.url, "AUDIENCE": "https://api.example"}
    python = [sys.executable, "-c", code("guide-python")]
    verified = subprocess.run(python, env=values | {"TOKEN": token}, capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout.strip()) == (0, client), verified.stderr
    for wrong in (values | {"AUDIENCE": "https://other.example"}, values | {"ISSUER": f"{service.url}/"}):
        refused = subprocess.run(python, env=wrong | {"TOKEN": token}, capture_output=True, text=True, check=False)
        assert refused.returncode != 0


def test_node_verifies_it(service: Live, machine: Machine) -> None:
    # The guide exports a function; what calls it stands behind it.
    whole = code("guide-node") + "\nconsole.log((await claimsOf(process.env.TOKEN)).sub)\n"
    assert run(["node", "--input-type=module", "-"], whole, service, machine) == [machine.client_id]


def test_a_secret_is_rotated_and_a_401_explained(service: Live, machine: Machine, tmp_path: Path) -> None:
    made = shell(service, tmp_path, code("guide-rotate"), CLIENT_ID=machine.client_id)
    fresh = said(made, "secret")
    listed = shell(service, tmp_path, code("guide-rotate", 1), CLIENT_ID=machine.client_id)
    assert machine.secret_id in listed
    shell(service, tmp_path, code("guide-rotate", 2), CLIENT_ID=machine.client_id, SECRET_ID=machine.secret_id)
    proof = {"clientId": machine.client_id, "secret": fresh}
    assert service.post("/application/token", proof).status_code == 200
    refused = service.post("/application/token", proof | {"secret": machine.secret})
    assert refused.status_code == 401
    told = shell(service, tmp_path, code("guide-401"), X_ERROR_ID=refused.headers["x-error-id"])
    assert refused.json()["error"] in told
