"""The recipes of docs/recipes for Node, word for word, with the real libraries. `make recipes` installs what they need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders import Machine
from tests.conftest import fresh_database
from tests.recipes.blocks import a_machine, block, run
from tests.world import Live, start_live

INACTIVE = '{"active":false}'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("recipes")
    with start_live(folder, fresh_database("sqlite", folder)) as live:
        yield live


@pytest.fixture(scope="module")
def machine(service: Live) -> Machine:
    return a_machine(service)


def node(recipe: str, service: Live, machine: Machine, number: int = 0) -> list[str]:
    return run(["node", "--input-type=module", "-"], block(recipe, "js", number), service, machine)


def test_oauth4webapi_gets_verifies_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert node("oauth4webapi.md", service, machine) == [machine.client_id, "true", INACTIVE]


def test_oauth4webapi_signs_assertions(service: Live, machine: Machine) -> None:
    assert node("oauth4webapi.md", service, machine, 1) == ["bearer", "bearer"]


def test_openid_client_gets_introspects_and_revokes(service: Live, machine: Machine) -> None:
    assert node("openid-client.md", service, machine) == ["bearer 86400", "true", INACTIVE]


@pytest.mark.parametrize("number", [0, 1], ids=["aws-jwt-verify", "express-oauth2-jwt-bearer"])
def test_other_peoples_verifiers_take_our_tokens(service: Live, machine: Machine, number: int) -> None:
    assert node("node-verifiers.md", service, machine, number) == [machine.client_id]
