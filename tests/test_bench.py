"""The bench beside an earlier commit: the same requests to both trees, and a table that hides neither a refusal nor an error."""

from __future__ import annotations

from bench.before import ROUTES, moved, render
from bench.cases import Case
from bench.loads import Request, Sample
from bench.service import ROUTES as ALL


def _case(name: str, *costs: float, errors: int = 0) -> Case:
    samples = [Sample(1000, 1, 2, 1000, errors, cost) for cost in costs]
    return Case(name, samples=samples)


def test_both_trees_are_asked_the_same_of_every_path() -> None:
    assert sorted(route.path for route in ROUTES) == sorted(route.path for route in ALL)
    asked = Case(" GET /verify", requests=[Request("http://127.0.0.1:1/verify", headers={"X-Tenant-Id": "acme"})])
    there = moved(asked, "http://127.0.0.1:1", "http://127.0.0.1:2", lambda: 7.0)
    assert there.name == "GET /verify"
    assert there.requests == [Request("http://127.0.0.1:2/verify", headers={"X-Tenant-Id": "acme"})]
    assert there.cpu is not None
    assert there.cpu() == 7.0
    asked.refuse("no code came by mail")
    assert moved(asked, "http://127.0.0.1:1", "", lambda: 0.0).refusal == "no code came by mail"


def test_a_ratio_is_taken_round_by_round_and_errors_and_refusals_are_told() -> None:
    unknown = Case("GET /new", refusal="404 | not found")
    rows = render(
        "v1",
        [
            # The machine was slower in each round than in the one before: their ratio stays.
            (_case("GET /verify", 100, 200, 400), _case("GET /verify", 50, 100, 200)),
            (_case("GET /session", 100, errors=3), _case("GET /session", 100)),
            (unknown, _case("GET /new", 10)),
        ],
    ).splitlines()
    assert rows[0] == "| path | v1, us | here, us | ratio | requests/s |"
    assert rows[2:] == [
        "| GET /verify | 200 | 100 | 2.00 x | 1,000 to 1,000 |",
        "| GET /session **(3 errors)** | 100 | 100 | 1.00 x | 1,000 to 1,000 |",
        "| GET /new | not measured: 404 / not found | | | |",
    ]
