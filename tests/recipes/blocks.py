"""What runs a recipe word for word: its code block, with a service and a machine in its environment."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.builders import Machine, an_application
from tests.oauth_world import jwks, rsa_key
from tests.world import Live

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
AUDIENCE = "https://api.example"


def a_machine(service: Live) -> Machine:
    """The client of every recipe, with a secret and a key."""
    return an_application(service.rt, scopes=("read",), audiences=(AUDIENCE,), jwks=jwks(rsa_key()))


def block(recipe: str, language: str, number: int = 0) -> str:
    """A code block of a recipe."""
    text = (RECIPES / recipe).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[number]


def run(
    command: list[str], code: str, service: Live, machine: Machine, more: Mapping[str, str] | None = None
) -> list[str]:
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
        **(more or {}),
    }
    done = subprocess.run(
        command, input=code, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
