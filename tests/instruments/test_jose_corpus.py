"""Every verdict of our own corpus, through our verifier and our key loader, and as bearer tokens. It needs nothing but itself."""

from __future__ import annotations

from collections import Counter

import pytest

from identity.core.access import callers
from identity.core.access.callers import Presented
from identity.errors import INVALID_TOKEN, Refused
from identity.instruments.jws import load_jwks, verify_jws
from identity.runtime import Runtime
from tests.instruments.jose_corpus import Case, jwe_cases, jwk_cases, jws_cases, keys, rsa_jwk
from tests.world import ORIGIN

CASES = {"jws": jws_cases, "jwk": jwk_cases, "jwe": jwe_cases}


def accepts(case: Case, *algorithms: str) -> bool:
    """Our verdict; a refusal must be the one generic one."""
    try:
        verify_jws(case.token, case.jwks, algorithms=algorithms)
    except Refused as refused:
        if refused.problem == INVALID_TOKEN:
            return False
        raise
    return True


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("algorithms", [("RS256",), ("ES256",), ("RS256", "ES256")], ids="+".join)
def test_every_verdict_is_ours_for_the_algorithms_that_we_accept(kind: str, algorithms: tuple[str, ...]) -> None:
    wrong = [case.name for case in CASES[kind]() if accepts(case, *algorithms) != case.is_good(algorithms)]
    assert wrong == []


def test_the_corpus_is_of_some_size_and_some_of_it_is_good() -> None:
    names = [case.name for cases in CASES.values() for case in cases()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [len(cases()) for cases in CASES.values()] == [96, 34, 25]
    good = Counter(case.good_for for cases in CASES.values() for case in cases())
    assert (good["RS256"], good["ES256"]) == (9, 3)


@pytest.mark.parametrize("case", jwk_cases(), ids=lambda case: case.name)
def test_a_key_set_with_a_bad_key_is_not_loaded_at_all(case: Case) -> None:
    with pytest.raises(Refused):
        load_jwks(case.jwks)


def test_the_same_set_without_its_bad_key_is_loaded() -> None:
    assert load_jwks(keys(rsa_jwk()))


@pytest.mark.parametrize("kind", CASES)
def test_no_case_is_a_bearer_token(rt: Runtime, kind: str) -> None:
    for case in CASES[kind]():
        with pytest.raises(Refused) as caught:
            callers.identify(rt, ORIGIN, Presented(case.token), own_routes=False)
        assert caught.value.problem == INVALID_TOKEN, case.name
