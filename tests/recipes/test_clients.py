"""The recipes of docs/recipes for clients and resource servers, word for word, with the real libraries against a real service.

`make recipes` installs what they need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.builders import Machine, an_application
from tests.conftest import fresh_database
from tests.oauth_world import jwks, rsa_key
from tests.world import Live, start_live

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
AUDIENCE = "https://api.example"
INACTIVE = '{"active":false}'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("recipes")
    with start_live(folder, fresh_database("sqlite", folder)) as live:
        yield live


@pytest.fixture(scope="module")
def machine(service: Live) -> Machine:
    return an_application(service.rt, scopes=("read",), audiences=(AUDIENCE,), jwks=jwks(rsa_key()))


def block(recipe: str, language: str, number: int = 0) -> str:
    """A code block of a recipe."""
    text = (RECIPES / recipe).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[number]


def run(command: list[str], code: str, service: Live, machine: Machine) -> list[str]:
    """What a recipe prints, line by line."""
    proof = {"clientId": machine.client_id, "secret": machine.secret}
    pem = rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    environment = {
        "PATH": os.environ["PATH"],
        "ISSUER": service.url,
        "AUDIENCE": AUDIENCE,
        "CLIENT_ID": machine.client_id,
        "CLIENT_SECRET": machine.secret,
        "TOKEN": service.post("/application/token", proof).json()["data"]["accessToken"],
        "PRIVATE_KEY": pem,
        "KEY_ID": "key-0",
        "OAUTHLIB_INSECURE_TRANSPORT": "1",
    }
    done = subprocess.run(
        command, input=code, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def python(recipe: str, service: Live, machine: Machine, number: int = 0) -> list[str]:
    return run([sys.executable, "-"], block(recipe, "python", number), service, machine)


def node(recipe: str, service: Live, machine: Machine, number: int = 0) -> list[str]:
    return run(["node", "--input-type=module", "-"], block(recipe, "js", number), service, machine)


def test_pyjwt_verifies_a_token(service: Live, machine: Machine) -> None:
    assert python("pyjwt.md", service, machine) == [machine.client_id]


def test_the_authlib_client_gets_verifies_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert python("authlib.md", service, machine) == [machine.client_id, "True", "{'active': False}"]


def test_the_authlib_client_signs_assertions(service: Live, machine: Machine) -> None:
    assert python("authlib.md", service, machine, 1) == ["Bearer", "Bearer"]


def test_requests_oauthlib_gets_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert python("requests-oauthlib.md", service, machine) == ["Bearer ['read']", "True", "{'active': False}"]


def test_jose_verifies_a_token(service: Live, machine: Machine) -> None:
    assert node("jose.md", service, machine) == [machine.client_id]


def test_oauth4webapi_gets_verifies_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert node("oauth4webapi.md", service, machine) == [machine.client_id, "true", INACTIVE]


def test_oauth4webapi_signs_assertions(service: Live, machine: Machine) -> None:
    assert node("oauth4webapi.md", service, machine, 1) == ["bearer", "bearer"]


def test_openid_client_gets_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert node("openid-client.md", service, machine) == ["bearer 86400", "true", INACTIVE]
