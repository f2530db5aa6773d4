"""ES256 beside RS256: one key, one algorithm; a change of the setting ends no token, and verifiers see both keys in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity.app import create_runtime
from identity.core import upkeep
from identity.core.access import callers
from identity.core.access.callers import Presented
from identity.errors import Refused
from identity.instruments.algorithms import ES256, RS256, algorithm_of, thumbprint
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import a_token, a_user
from tests.world import ORIGIN, FakeClock

SEEN_AFTER = 360

Opening = Callable[[str], Runtime]


@pytest.fixture
def opened(settings: Settings, clock: FakeClock) -> Iterator[Opening]:
    """The service on one database, with the algorithm that is asked for."""
    running: list[Runtime] = []

    def opening(algorithm: str) -> Runtime:
        running.append(create_runtime(replace(settings, signing_alg=algorithm), clock=clock, migrate=False))
        return running[-1]

    yield opening
    for rt in running:
        rt.close()


def published(rt: Runtime) -> dict[str, dict[str, str]]:
    return {key["kid"]: key for key in json.loads(rt.ring.jwks()[0])["keys"]}


def verified(rt: Runtime, token: str) -> str:
    """The algorithm by which a stranger's library verifies the token, with nothing but the published keys."""
    header = jwt.get_unverified_header(token)
    key = published(rt)[header["kid"]]
    assert key["alg"] == header["alg"]
    claims = jwt.decode(
        token,
        jwt.PyJWK(key),
        algorithms=[key["alg"]],
        options={"verify_exp": False, "verify_aud": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims["iss"] == rt.settings.issuer
    return str(key["alg"])


@pytest.fixture
def es256(opened: Opening, clock: FakeClock) -> Runtime:
    """A ring that signs with ES256 by now, and whose older key has gone."""
    rt = opened("ES256")
    upkeep.tend_keys(rt)
    clock.tick(SEEN_AFTER + rt.settings.longest_token_seconds + 120)
    upkeep.sweep(rt)
    rt.ring.load()
    return rt


def test_a_ring_of_es256_signs_what_any_library_verifies(es256: Runtime) -> None:
    rt = es256
    token = a_token(rt, a_user(rt))
    assert verified(rt, token) == "ES256"
    assert callers.identify(rt, ORIGIN, Presented(token))
    (key,) = published(rt).values()
    assert {*key} == {"kty", "use", "alg", "kid", "crv", "x", "y"}
    assert [one.algorithm for one in rt.ring.list()] == ["ES256"]


def test_the_same_input_is_signed_with_the_same_bytes(es256: Runtime, clock: FakeClock) -> None:
    rt = es256
    assert rt.ring.sign({"a": 1}, now=clock.now()) == rt.ring.sign({"a": 1}, now=clock.now())


def test_a_changed_setting_brings_the_other_algorithm_without_losing_a_token(opened: Opening, clock: FakeClock) -> None:
    before = opened("RS256")
    before.ring.ensure_standby()
    user = a_user(before)
    old = a_token(before, user)
    after = opened("ES256")
    upkeep.tend_keys(after)
    # 1. Until verifiers can have seen the new key, the old one signs.
    assert after.ring.algorithms() == ("RS256", "ES256")
    assert verified(after, a_token(after, user)) == "RS256"
    # 2. Then the new one does; what the old one signed is good until it ends.
    clock.tick(SEEN_AFTER)
    assert verified(after, a_token(after, user)) == "ES256"
    assert after.ring.algorithms() == ("ES256", "RS256")
    assert verified(after, old) == "RS256"
    assert callers.identify(after, ORIGIN, Presented(old))
    # 3. It stays like that: nothing is rotated again.
    kids = {key.kid for key in after.ring.list() if key.signs_from is not None}
    upkeep.tend_keys(after)
    assert {key.kid for key in after.ring.list() if key.signs_from is not None} == kids


def test_no_key_serves_another_algorithm(es256: Runtime, clock: FakeClock) -> None:
    rt = es256
    token = a_token(rt, a_user(rt))
    header, payload, signature = token.split(".")
    for wrong in (
        {"alg": "RS256"},
        {"alg": "none"},
        {"alg": "HS256"},
    ):
        said = rt.ring.active_kid(clock.now())
        forged = jwt.utils.base64url_encode(json.dumps({"alg": wrong["alg"], "typ": "at+jwt", "kid": said}).encode())
        with pytest.raises(Refused, match="INVALID_TOKEN"):
            rt.ring.verify(f"{forged.decode()}.{payload}.{signature}")
    for cut in (signature[:-2], signature + "AA", ""):
        with pytest.raises(Refused, match="INVALID_TOKEN"):
            rt.ring.verify(f"{header}.{payload}.{cut}")


@pytest.mark.parametrize(
    ("algorithm", "key", "fits"),
    [
        ("ES256", ec.generate_private_key(ec.SECP256R1()), True),
        ("ES256", ec.generate_private_key(ec.SECP384R1()), False),
        ("ES256", rsa.generate_private_key(65537, 2048), False),
        ("RS256", ec.generate_private_key(ec.SECP256R1()), False),
        ("RS256", rsa.generate_private_key(65537, 2048), True),
    ],
)
def test_an_imported_key_is_of_the_algorithm_that_is_set(
    opened: Opening, algorithm: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, fits: bool
) -> None:
    rt = opened(algorithm)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with rt.unit(ORIGIN) as unit:
        if fits:
            assert rt.ring.import_pem(unit, pem).algorithm == algorithm
            return
        with pytest.raises(Refused, match="VALIDATION"):
            rt.ring.import_pem(unit, pem)


def test_thumbprints_are_those_of_rfc_7638() -> None:
    # Section 3.1 of the RFC for RSA; the key of RFC 7517 appendix A.1 for the curve, by another library.
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(jwt.utils.base64url_decode("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4")),
        int.from_bytes(jwt.utils.base64url_decode("4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM")),
        ec.SECP256R1(),
    )
    assert thumbprint(ES256, numbers.public_key()) == "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"
    assert algorithm_of(numbers.public_key()) is ES256
    assert algorithm_of(rsa.generate_private_key(65537, 2048)) is RS256
    assert algorithm_of(ec.generate_private_key(ec.SECP521R1())) is None
