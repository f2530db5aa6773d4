"""The clients in JavaScript of the recipes for workloads, in Node; those in Python and for the shell run with the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_database
from tests.issuer_world import StandIn, a_stand_in
from tests.recipes.blocks import block, run
from tests.recipes.workloads import PLATFORMS, a_workload
from tests.world import Live, start_live


@pytest.fixture(scope="module")
def platform() -> Iterator[StandIn]:
    with a_stand_in() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, platform: StandIn) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("recipes")
    settings = {"development": "1", "trusted_issuers": platform.url}
    with start_live(folder, fresh_database("sqlite", folder), settings) as live:
        yield live


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_workload_gets_in_from_node(service: Live, platform: StandIn, name: str, tmp_path: Path) -> None:
    feed, found = a_workload(service, platform, name, tmp_path)
    code = block(f"{name}.md", "js")
    assert run(["node", "--input-type=module", "-"], code, service, feed, found) == ["200", "200"]
