"""What OAuth tests share: keys of clients, the assertions that they sign, the form posts that they send."""

from __future__ import annotations

import base64
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from identity.core.people import accounts
from identity.core.tokens import sessions
from identity.runtime import Runtime
from tests.builders import Machine, Person
from tests.world import ORIGIN

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_numbers = itertools.count(1)


@functools.cache
def rsa_key(name: str = "one") -> Any:
    """A client's RSA key, the same for each name."""
    return generate_rsa(65537, 2048)


@functools.cache
def ec_key() -> Any:
    """A client's P-256 key."""
    return generate_ec(SECP256R1())


def jwks(*keys: Any) -> dict[str, Any]:
    """The public halves of a client's keys."""
    entries = []
    for number, key in enumerate(keys):
        algorithm = RSAAlgorithm if hasattr(key, "key_size") and not hasattr(key, "curve") else ECAlgorithm
        entries.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": f"key-{number}", "use": "sig"})
    return {"keys": [{name: value for name, value in entry.items() if name != "key_ops"} for entry in entries]}


def assertion(
    rt: Runtime, client_id: str, *, key: Any = None, alg: str = "RS256", kid: str | None = "key-0", **claims: Any
) -> str:
    """A signed assertion that is good, but for what `claims` change; a claim of None is left out."""
    now = int(rt.clock.now().timestamp())
    said = {
        "iss": client_id,
        "sub": client_id,
        "aud": rt.settings.issuer,
        "iat": now,
        "exp": now + 60,
        "jti": f"assertion-{next(_numbers)}",
    } | claims
    return jwt.encode(
        {name: value for name, value in said.items() if value is not None},
        rsa_key() if key is None else key,
        alg,
        headers={"kid": kid} if kid is not None else None,
    )


def basic(client_id: str, secret: str) -> dict[str, str]:
    """The header of `client_secret_basic`."""
    return {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def as_client(machine: Machine) -> dict[str, str]:
    """`basic` for a machine."""
    return basic(machine.client_id, machine.secret)


def with_assertion(text: str) -> dict[str, str]:
    """The form parameters of `private_key_jwt`."""
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": text}


def asking(parameters: Mapping[str, str] | None = None) -> dict[str, str]:
    """The form of a token request."""
    return {"grant_type": "client_credentials", **(parameters or {})}


def session_of(rt: Runtime, person: Person, client_id: str) -> sessions.Opened:
    """A session of `person` that was opened through an application."""
    with rt.unit(ORIGIN) as unit:
        return sessions.open_session(
            rt,
            unit,
            accounts.recheck(unit, person.id),
            kind="session",
            amr=("pwd",),
            client_id=client_id,
            resource="https://api.example",
            idle_seconds=3600,
            absolute_seconds=86_400,
            with_bearer=True,
            with_refresh=True,
        )
