"""The kit and the real service over sockets: tokens for machines, a guarded service, and `identity testkit` against it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from identity.core.admin.applications import add_trust
from identity.core.admin.by import By
from identity_verifier import Refused, Verifier, conformance
from identity_verifier.client import Machine, NoToken
from tests.builders import an_application
from tests.conftest import fresh_database
from tests.oauth_world import ec_key, jwks, rsa_key
from tests.test_kit_services import serving
from tests.world import Live, start_live

AUDIENCE = "https://api.example"
TENANT = "acme-bank"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    changes = {"development": "1", "status_ttl_seconds": "5", "trusted_issuers": "https://ci.example"}
    with start_live(folder, fresh_database("sqlite", folder), changes, workers=2) as live:
        yield live


@pytest.fixture
def verifier(service: Live) -> Iterator[Verifier]:
    asking = an_application(service.rt, scopes=("introspect",))
    made = Verifier(service.url, AUDIENCE, client=(asking.client_id, asking.secret))
    yield made
    made.close()


def test_a_machine_gets_tokens_by_secret_and_by_key(service: Live, verifier: Verifier) -> None:
    feed = an_application(service.rt, scopes=("read",), audiences=(AUDIENCE,), jwks=jwks(rsa_key(), ec_key()))
    for proof in ({"secret": feed.secret}, {"key": rsa_key(), "kid": "key-0"}, {"key": ec_key(), "kid": "key-1"}):
        machine = Machine(service.url, feed.client_id, scope="read", **proof)
        caller = verifier.verify(machine.authorization(), scope="read", fresh=True)
        assert (caller.client, caller.kind, caller.fresh) == (feed.client_id, "application", True)
        assert asyncio.run(machine.atoken()) == machine.token()
        machine.close()
    stranger = Machine(service.url, feed.client_id, secret="wrong")
    with pytest.raises(NoToken, match="invalid_client"):
        stranger.token()
    stranger.close()


@pytest.mark.parametrize("spiffe", [False, True])
def test_a_machine_gets_tokens_by_what_its_platform_writes(
    service: Live, verifier: Verifier, tmp_path: Path, spiffe: bool
) -> None:
    issuer = "spiffe://acme.example" if spiffe else "https://ci.example"
    subject = f"{issuer}/feed" if spiffe else "repo:acme/feed"
    feed = an_application(service.rt, scopes=("read",), audiences=(AUDIENCE,))
    add_trust(
        service.rt, By.command_line(), feed.client_id, name="ci", issuer=issuer, subject=subject, jwks=jwks(rsa_key())
    )
    now = int(service.rt.clock.now().timestamp())
    claims = {"iss": issuer, "sub": subject, "aud": service.url, "iat": now, "exp": now + 600}
    path = tmp_path / "token"
    path.write_text(jwt.encode(claims, rsa_key(), "RS256", {"kid": "key-0"}) + "\n")
    machine = Machine(service.url, feed.client_id, workload=path, spiffe=spiffe)
    assert verifier.verify(machine.authorization(), scope="read").client == feed.client_id
    machine.close()


def test_a_revoked_token_is_refused_at_once_when_fresh_and_soon_by_the_list(service: Live, verifier: Verifier) -> None:
    feed = an_application(service.rt, audiences=(AUDIENCE,))
    machine = Machine(service.url, feed.client_id, secret=feed.secret)
    header = machine.authorization()
    assert verifier.verify(header).client == feed.client_id
    form = {"token": machine.token(), "client_id": feed.client_id, "client_secret": feed.secret}
    assert service.post("/oauth/revoke", data=form).status_code == 200
    with pytest.raises(Refused):
        verifier.verify(header, fresh=True)
    for _ in range(200):
        try:
            verifier.verify(header)
        except Refused as refused:
            assert "revoked" in refused.reason  # noqa: PT017 -- which of the two is the point
            break
        asyncio.run(asyncio.sleep(0.1))
    else:
        raise AssertionError("the list never told")
    machine.close()


def a_testkit(service: Live, folder: Path) -> Path:
    """What `identity testkit` prints, in a file."""
    command = [
        sys.executable,
        "-m",
        "identity",
        "testkit",
        "--audience",
        AUDIENCE,
        "--tenant",
        TENANT,
        "--role",
        "analyst",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=service.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "testkit.signed" in done.stderr
    path = folder / "testkit.json"
    path.write_text(done.stdout)
    return path


@pytest.mark.parametrize("guarded", ["flask", "fastapi", "django"])
def test_the_conformance_run_with_our_testkit_passes_a_guarded_service(
    service: Live, tmp_path: Path, guarded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    testkit = a_testkit(service, tmp_path)
    time.sleep(
        3
    )  # A list that was signed a moment ago may lack what was ended since: every process looks every two seconds.
    good = json.loads(testkit.read_text())["good"][0]["token"]
    with serving(guarded, service.url, tmp_path) as url:
        status = conformance.main([url, "--token", good, "--testkit", str(testkit), "--tenant", TENANT])
    said = capsys.readouterr().out
    assert status == 0, said
    assert said.endswith("bad requests were refused; 2 good ones were tried\n")
