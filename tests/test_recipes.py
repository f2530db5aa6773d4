"""The recipes of docs/recipes for Python, word for word, with the real libraries. The others need more: `make recipes`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import Machine
from tests.conftest import fresh_database
from tests.issuer_world import StandIn, a_stand_in
from tests.recipes.blocks import a_machine, block, run
from tests.recipes.workloads import PLATFORMS, a_workload
from tests.world import Live, start_live


@pytest.fixture(scope="module")
def platform() -> Iterator[StandIn]:
    """What signs for Kubernetes, GitHub, GitLab and SPIFFE here."""
    with a_stand_in() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, platform: StandIn) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("recipes")
    settings = {"development": "1", "trusted_issuers": platform.url}
    with start_live(folder, fresh_database("sqlite", folder), settings) as live:
        yield live


@pytest.fixture(scope="module")
def machine(service: Live) -> Machine:
    return a_machine(service)


def python(recipe: str, service: Live, machine: Machine, number: int = 0) -> list[str]:
    return run([sys.executable, "-"], block(recipe, "python", number), service, machine)


def test_pyjwt_verifies_a_token(service: Live, machine: Machine) -> None:
    assert python("pyjwt.md", service, machine) == [machine.client_id]


def test_the_authlib_client_gets_verifies_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert python("authlib.md", service, machine) == [machine.client_id, "True", "{'active': False}"]


def test_the_authlib_client_signs_assertions(service: Live, machine: Machine) -> None:
    assert python("authlib.md", service, machine, 1) == ["Bearer", "Bearer"]


def test_authlibs_own_validator_of_rfc_9068_takes_our_tokens(service: Live, machine: Machine) -> None:
    """It refuses blank claims, which is why we leave them out."""
    assert python("authlib.md", service, machine, 2) == [machine.client_id, "401"]


def test_pyjwt_goes_on_with_the_keys_it_has_while_we_are_down(service: Live, machine: Machine) -> None:
    """The recipe, and then the same token once more with an issuer that does not answer and a cache that is over."""
    more = """
keys.jwk_set_cache.lifespan = 0
keys.uri = "http://127.0.0.1:9/"
print(claims_of(os.environ["TOKEN"])["sub"])
"""
    code = block("pyjwt.md", "python") + more
    assert run([sys.executable, "-"], code, service, machine) == [machine.client_id] * 2


def test_requests_oauthlib_gets_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert python("requests-oauthlib.md", service, machine) == ["Bearer ['read']", "True", "{'active': False}"]


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_workload_gets_in_from_the_shell_and_from_python(
    service: Live, platform: StandIn, name: str, tmp_path: Path
) -> None:
    feed, found = a_workload(service, platform, name, tmp_path)
    recipe = f"{name}.md"
    assert run(["sh"], block(recipe, "sh"), service, feed, found) == ["200"]
    assert run([sys.executable, "-"], block(recipe, "python"), service, feed, found) == ["200", "200"]
