"""The key ring: the life of a key by the clock, what other processes see of it, and which keys of others are trusted."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import func, select

from identity.app import create_runtime
from identity.core.access import callers
from identity.core.access.callers import Presented
from identity.errors import CONFLICT, INVALID_TOKEN, NOT_FOUND, VALIDATION, Problem, Refused
from identity.instruments.jws import load_jwks, verify_assertion
from identity.instruments.keyring import SigningKey
from identity.instruments.vault import ServerSecret
from identity.runtime import Runtime
from identity.settings import BadSettings, Settings
from tests import conftest
from tests.builders import a_token, a_user
from tests.world import MASTER_KEY, ORIGIN, FakeClock, environment_of

NEW_MASTER_KEY = base64.b64encode(b"a younger master key, 32 bytes !").decode()
DAY = 86_400
SEEN_AFTER = 360  # jwks_max_age_seconds + 60


def signing_kid(rt: Runtime) -> str:
    """The key that signs now."""
    kid: str = jwt.get_unverified_header(rt.ring.sign({}, now=rt.clock.now()))["kid"]
    return kid


def published(rt: Runtime) -> set[str]:
    """The kids of the JWK set."""
    return {key["kid"] for key in json.loads(rt.ring.jwks()[0])["keys"]}


def state_of(rt: Runtime, kid: str) -> str:
    return next(key.state for key in rt.ring.list() if key.kid == kid)


def rotate(rt: Runtime) -> str:
    """Rotate; the kid of the key that takes over."""
    with rt.unit(ORIGIN) as unit:
        return rt.ring.rotate(unit)


def standby(rt: Runtime) -> str:
    """The kid of the key that waits for its date."""
    rt.ring.ensure_standby()
    return next(key.kid for key in rt.ring.list() if key.signs_from is None)


@pytest.fixture
def other(rt: Runtime, settings: Settings, clock: FakeClock) -> Iterator[Runtime]:
    """Another process over the same database."""
    runtime = create_runtime(settings, clock=clock, migrate=False)
    yield runtime
    runtime.database.close()


# The life of a key.


def test_a_key_is_next_then_active_then_retired_then_forgotten(rt: Runtime, clock: FakeClock) -> None:
    first = signing_kid(rt)
    heir = standby(rt)
    assert (state_of(rt, heir), published(rt)) == ("next", {first, heir})
    assert rotate(rt) == heir

    clock.tick(SEEN_AFTER - 1)  # Verifiers may still hold a key set without it.
    assert (signing_kid(rt), state_of(rt, heir)) == (first, "next")
    clock.tick(1)
    assert (signing_kid(rt), state_of(rt, heir), state_of(rt, first)) == (heir, "active", "retired")

    clock.tick(DAY + 60 + 4)  # Its last token, the skew of verifiers, and the processes that saw the rotation late.
    assert first in published(rt)
    clock.tick(1)
    assert published(rt) == {heir}
    with rt.unit(ORIGIN) as unit:
        assert rt.ring.drop_spent(unit) == 1
    rt.ring.load()
    assert [key.kid for key in rt.ring.list()] == [heir]


def test_a_retired_key_verifies_its_tokens_to_their_end(rt: Runtime, clock: FakeClock) -> None:
    standby(rt)
    rotate(rt)
    clock.tick(SEEN_AFTER - 1)
    token = rt.ring.sign({"last": True}, now=clock.now())
    clock.tick(1)
    signing_kid(rt)
    clock.tick(DAY)
    with rt.unit(ORIGIN) as unit:
        assert rt.ring.drop_spent(unit) == 0
    assert rt.ring.verify(token) == {"last": True}


def test_a_key_that_was_published_long_enough_signs_at_once(rt: Runtime, clock: FakeClock) -> None:
    heir = standby(rt)
    clock.tick(SEEN_AFTER)
    assert rotate(rt) == heir
    assert signing_kid(rt) == heir


@pytest.mark.parametrize(("waited", "signs"), [(SEEN_AFTER - 1, False), (SEEN_AFTER, True), (SEEN_AFTER + 1, True)])
def test_a_key_is_published_for_max_age_and_a_minute_before_it_signs(
    rt: Runtime, clock: FakeClock, waited: int, signs: bool
) -> None:
    heir = standby(rt)
    clock.tick(waited)
    rotate(rt)
    assert (signing_kid(rt) == heir) is signs


def test_a_rotation_is_due_after_the_days_of_the_setting(rt: Runtime, clock: FakeClock) -> None:
    born = rt.ring.list()[0].signs_from
    assert born is not None
    clock.tick((born + timedelta(days=90) - clock.now()).total_seconds() - 1)
    assert not rt.ring.is_due()
    clock.tick(1)
    assert rt.ring.is_due()


def test_a_second_rotation_needs_a_second_standby(rt: Runtime) -> None:
    standby(rt)
    rotate(rt)
    with pytest.raises(Refused) as caught:
        rotate(rt)
    assert caught.value.problem.code == CONFLICT.code


def test_a_standby_is_made_once(rt: Runtime, other: Runtime) -> None:
    assert rt.ring.ensure_standby()
    assert not rt.ring.ensure_standby()
    assert not other.ring.ensure_standby()


# What other processes see.


def test_another_process_verifies_with_a_key_that_it_has_not_loaded_yet(
    rt: Runtime, other: Runtime, clock: FakeClock
) -> None:
    standby(rt)
    clock.tick(SEEN_AFTER)
    rotate(rt)
    assert other.ring.verify(rt.ring.sign({"fresh": True}, now=clock.now())) == {"fresh": True}


def test_the_next_request_of_another_process_sees_a_revoked_key(rt: Runtime, other: Runtime) -> None:
    token = a_token(rt, a_user(rt))
    assert callers.identify(other, ORIGIN, Presented(token)).subject
    with rt.unit(ORIGIN) as unit:
        rt.ring.revoke(unit, signing_kid(rt))
    for process in (rt, other):
        with pytest.raises(Refused) as caught:
            callers.identify(process, ORIGIN, Presented(token))
        assert caught.value.problem == INVALID_TOKEN


def test_after_a_revocation_the_standby_signs_at_once(rt: Runtime) -> None:
    heir, first = standby(rt), signing_kid(rt)
    with rt.unit(ORIGIN) as unit:
        rt.ring.revoke(unit, first)
    assert signing_kid(rt) == heir
    assert published(rt) == {heir}


def test_after_a_revocation_without_a_standby_a_new_key_signs(rt: Runtime) -> None:
    first = signing_kid(rt)
    with rt.unit(ORIGIN) as unit:
        rt.ring.revoke(unit, first)
    assert signing_kid(rt) != first
    assert rt.ring.is_ready()


def test_an_unknown_key_cannot_be_revoked(rt: Runtime) -> None:
    with pytest.raises(Refused) as caught, rt.unit(ORIGIN) as unit:
        rt.ring.revoke(unit, "no such key")
    assert caught.value.problem == NOT_FOUND


_BOOT = """
import os, sys
import alembic.command  # once, before there are twenty
from identity.app import create_runtime
from identity.settings import Settings
settings = Settings.from_env()
read, write = os.pipe()
children = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)  # until the parent lets all of them go at once
        try:
            runtime = create_runtime(settings)
            assert runtime.ring.is_ready()
            runtime.database.close()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(pid)
os.close(write)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""


def test_twenty_processes_that_boot_at_once_make_one_key(backend: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/identity.db"
    if backend == "postgresql":
        url = conftest.the_postgres().create_database("twenty_boot_at_once")
    chosen = {"database_url": url, "keys_dir": tmp_path / "keys", "threads": 2}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    booted = subprocess.run(
        [sys.executable, "-c", _BOOT],
        cwd=tmp_path,
        env=environment | environment_of(chosen) | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert booted.returncode == 0, booted.stderr
    rt = create_runtime(Settings.from_env(environment_of(chosen)), migrate=False)
    try:
        assert len(rt.ring.list()) == 1
        with rt.database.reading() as session:
            assert session.scalar(select(func.count()).select_from(ServerSecret)) == 1
        assert [path.name for path in (tmp_path / "keys").iterdir()] == ["master.key"]
    finally:
        rt.database.close()


# The master key.


def test_a_master_key_is_replaced_without_touching_what_it_guards(
    rt: Runtime, settings: Settings, clock: FakeClock
) -> None:
    token, pepper = rt.ring.sign({"old": True}, now=clock.now()), rt.ring.vault.derive("session bearers")
    standby(rt)

    # 1. Both keys, the new one first: what was sealed under the old one opens.
    both = create_runtime(replace(settings, master_keys=(NEW_MASTER_KEY, MASTER_KEY)), clock=clock, migrate=False)
    with both.unit(ORIGIN) as unit:
        assert both.ring.reseal(unit) == 3  # the root secret and two keys
    with both.unit(ORIGIN) as unit:
        assert both.ring.reseal(unit) == 0
    both.database.close()

    # 2. The new one alone: nothing that it guards has changed.
    alone = create_runtime(replace(settings, master_keys=(NEW_MASTER_KEY,)), clock=clock, migrate=False)
    assert alone.ring.verify(token) == {"old": True}
    assert alone.ring.vault.derive("session bearers") == pepper
    alone.database.close()

    # 3. The old one alone: a copy of it opens nothing any more.
    with pytest.raises(BadSettings):
        create_runtime(replace(settings, master_keys=(MASTER_KEY,)), clock=clock, migrate=False)


def test_the_wrong_master_key_is_told_at_start(rt: Runtime, settings: Settings, clock: FakeClock) -> None:
    with pytest.raises(BadSettings, match="master key"):
        create_runtime(replace(settings, master_keys=(NEW_MASTER_KEY,)), clock=clock, migrate=False)


def test_a_sealed_key_opens_in_no_other_row(rt: Runtime, settings: Settings, clock: FakeClock) -> None:
    first, heir = signing_kid(rt), standby(rt)
    with rt.unit(ORIGIN) as unit:
        rows = {row.kid: row for row in unit.session.scalars(select(SigningKey))}
        rows[first].sealed = rows[heir].sealed
        unit.session.flush()
    with pytest.raises(BadSettings):
        create_runtime(settings, clock=clock, migrate=False)


# Keys from files.


def pem_of(private: Any, encryption: Any = None) -> bytes:
    return private.private_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption()
    )


STRONG = pem_of(rsa.generate_private_key(65537, 2048))
# secp112r1, which OpenSSL's command line makes and the library does not read.
UNKNOWN_CURVE = b"""-----BEGIN EC PRIVATE KEY-----
MD4CAQEEDsmJhJYu8W1+qNarlH+XoAcGBSuBBAAGoSADHgAEOk1iLtt8U26FQ5ga
sFUOQnhaGDOmU39V+TrSDA==
-----END EC PRIVATE KEY-----
"""


def test_an_imported_key_waits_as_the_standby_and_signs_after_a_rotation(rt: Runtime, clock: FakeClock) -> None:
    replaced = standby(rt)
    with rt.unit(ORIGIN) as unit:
        imported = rt.ring.import_pem(unit, STRONG)
    assert imported.state == "next"
    assert imported.kid in published(rt)
    assert replaced not in published(rt)
    clock.tick(SEEN_AFTER)
    assert rotate(rt) == imported.kid == signing_kid(rt)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem_of(ec.generate_private_key(ec.SECP256R1())),
        UNKNOWN_CURVE,
        pem_of(rsa.generate_private_key(65537, 1024)),
        pem_of(rsa.generate_private_key(65537, 2048), serialization.BestAvailableEncryption(b"pass")),
    ],
    ids=["empty", "garbage", "elliptic curve", "a curve that nobody knows", "1024 bits", "encrypted"],
)
def test_a_key_that_is_weak_or_none_is_not_imported(rt: Runtime, pem: bytes) -> None:
    with pytest.raises(Refused) as caught, rt.unit(ORIGIN) as unit:
        rt.ring.import_pem(unit, pem)
    assert caught.value.problem.code == VALIDATION.code


def test_a_key_is_imported_once(rt: Runtime) -> None:
    with rt.unit(ORIGIN) as unit:
        rt.ring.import_pem(unit, STRONG)
    with pytest.raises(Refused) as caught, rt.unit(ORIGIN) as unit:
        rt.ring.import_pem(unit, STRONG)
    assert caught.value.problem.code == CONFLICT.code


# Keys of clients. More of them are in test_jose_corpus and test_wycheproof.


def a_jwk(**changes: Any) -> dict[str, Any]:
    """A good public RSA key, or one that was made less good."""
    numbers = serialization.load_pem_private_key(STRONG, None).public_key().public_numbers()  # type: ignore[union-attr]
    plain: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(numbers.public_key(), as_dict=True)  # type: ignore[union-attr]
    del plain["key_ops"]
    return {name: value for name, value in (plain | {"kid": "a"} | changes).items() if value is not None}


def refusal_of(jwks: Any) -> Problem:
    with pytest.raises(Refused) as caught:
        load_jwks(jwks)
    assert caught.value.field == "jwks"
    return caught.value.problem


def test_a_good_key_set_is_loaded() -> None:
    assert len(load_jwks({"keys": [a_jwk(), a_jwk(kid="b", use="sig", alg="RS256", key_ops=["verify"])]})) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"key_ops": []},
        {"alg": "RS512"},
        {"alg": "HS256"},
        {"alg": "none"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "OKP"},
        {"kty": None},
        {"n": None},
        {"n": ""},
        {"n": "!"},
        {"n": 5},
        {"n": ["AQAB"]},
        {"e": "AQ"},
        {"e": "Ag"},
        {"e": ""},
        {"e": None},
        {"d": "AQAB"},
        {"kid": 1},
        {"kid": {"a": 1}},
    ],
    ids=str,
)
def test_a_key_that_is_not_fit_for_signatures_is_refused(changes: dict[str, Any]) -> None:
    assert refusal_of({"keys": [a_jwk(**changes)]}).code == VALIDATION.code


@pytest.mark.parametrize(
    "jwks",
    [
        {},
        {"keys": []},
        {"keys": {}},
        {"keys": [None]},
        {"keys": ["x"]},
        {"keys": [a_jwk()] * 11},
        {"keys": [a_jwk(), a_jwk()]},
        {"keys": [a_jwk(), {"kty": "oct", "k": "c2VjcmV0", "kid": "b"}]},
    ],
    ids=["no keys", "empty", "an object", "null", "text", "eleven", "one kid twice", "mixed"],
)
def test_a_key_set_that_is_none_is_refused(jwks: Any) -> None:
    assert refusal_of(jwks).code == VALIDATION.code


@pytest.mark.parametrize(
    "headers",
    [
        {"crit": ["bork"], "bork": 1},
        {"crit": []},
        {"crit": "exp"},
        {"crit": ["b64"], "b64": False},
        {"alg": "PS256"},
        {"alg": "rs256"},
    ],
    ids=str,
)
def test_an_assertion_with_a_header_that_we_do_not_know_is_refused(headers: dict[str, Any]) -> None:
    private = serialization.load_pem_private_key(STRONG, None)
    header = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": "a"} | headers).encode()).rstrip(b"=")
    signed = header + b"." + base64.urlsafe_b64encode(b'{"sub":"a"}').rstrip(b"=")
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(signed, private)  # type: ignore[arg-type]
    token = (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()
    with pytest.raises(Refused) as caught:
        verify_assertion(token, {"keys": [a_jwk()]})
    assert caught.value.problem == INVALID_TOKEN


@pytest.mark.parametrize("payload", [b"", b"foo", b"[]", b'"a"', b"\xff", b"[" * 3000])
def test_an_assertion_whose_payload_is_no_object_is_refused(payload: bytes) -> None:
    private = serialization.load_pem_private_key(STRONG, None)
    token = jwt.api_jws.encode(payload, private, "RS256", headers={"kid": "a"})  # type: ignore[arg-type]
    with pytest.raises(Refused) as caught:
        verify_assertion(token, {"keys": [a_jwk()]})
    assert caught.value.problem == INVALID_TOKEN
