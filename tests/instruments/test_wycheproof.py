"""Every verdict of Wycheproof's JOSE vectors, through our verifier and our key loader, and as bearer tokens.

The vectors are data of the C2SP/wycheproof project, which are not ours to keep here. They are read from the folder that WYCHEPROOF_DIR
names, or from a folder `vectors` near the repository. Where there is neither, the suite says so once; what they cover is covered by our
own corpus (test_jose_corpus.py), which always runs.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from identity.core.access import callers
from identity.core.access.callers import Presented
from identity.errors import INVALID_TOKEN, Refused
from identity.instruments.jws import load_jwks, verify_jws
from identity.runtime import Runtime
from tests.vectors import WYCHEPROOF, wycheproof_folder
from tests.world import ORIGIN

FILES = WYCHEPROOF
FOLDER = wycheproof_folder() or Path()


@dataclass(frozen=True)
class Vector:
    """One case: a token, the keys to verify it with, and whether it is good."""

    name: str
    token: Any
    jwks: dict[str, Any]
    is_valid: bool

    @property
    def algorithm(self) -> str:
        try:
            head = self.token.partition(".")[0]
            return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["alg"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""


@functools.cache
def vectors(name: str) -> tuple[Vector, ...]:
    """The cases of a file."""
    return tuple(_read(name))


def _read(name: str) -> Iterator[Vector]:
    for group in json.loads((FOLDER / name).read_text("utf-8"))["testGroups"]:
        keys = group.get("public") or group["private"]
        jwks = keys if "keys" in keys else {"keys": [keys]}
        for case in group["tests"]:
            yield Vector(
                f"{name} {case['tcId']} {case['comment']}",
                case.get("jws") or case.get("jwe"),
                jwks,
                case["result"] == "valid",
            )


def accepts(vector: Vector, *algorithms: str) -> bool:
    """Our verdict; a refusal must be the one generic one."""
    token = vector.token if isinstance(vector.token, str) else json.dumps(vector.token)
    try:
        verify_jws(token, vector.jwks, algorithms=algorithms)
    except Refused as refused:
        if refused.problem == INVALID_TOKEN:
            return False
        raise
    return True


@pytest.mark.parametrize(("name", "count"), FILES.items())
def test_the_files_hold_what_we_think_they_do(name: str, count: int) -> None:
    assert len(vectors(name)) == count


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("algorithms", [("RS256",), ("RS256", "ES256")], ids="+".join)
def test_every_verdict_is_ours_for_the_algorithms_that_we_accept(name: str, algorithms: tuple[str, ...]) -> None:
    wrong = [
        vector.name
        for vector in vectors(name)
        if accepts(vector, *algorithms) != (vector.is_valid and vector.algorithm in algorithms)
    ]
    assert wrong == []


def test_some_vectors_are_good() -> None:
    good = [vector for name in FILES for vector in vectors(name) if accepts(vector, "RS256", "ES256")]
    assert len([vector for vector in good if vector.algorithm == "RS256"]) == 10
    assert len([vector for vector in good if vector.algorithm == "ES256"]) == 3


def test_a_key_set_with_a_bad_key_is_not_loaded_at_all() -> None:
    """The keys of vectors that are bad because of their keys: weak, ROCA, of another use, mixed, with a kid twice."""
    loaded = []
    for vector in vectors("json_web_key_test.json"):
        try:
            load_jwks(vector.jwks)
        except Refused:
            continue
        loaded.append(vector)
    assert loaded
    assert all(vector.is_valid for vector in loaded), [vector.name for vector in loaded]


@pytest.mark.parametrize("name", FILES)
def test_no_vector_is_a_bearer_token(rt: Runtime, name: str) -> None:
    for vector in vectors(name):
        with pytest.raises(Refused) as caught:
            callers.identify(rt, ORIGIN, Presented(str(vector.token)), own_routes=False)
        assert caught.value.problem == INVALID_TOKEN, vector.name
