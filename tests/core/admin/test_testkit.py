"""Tokens for services that test how strict they are: each bad one is refused by us too, and none is made outside development."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from identity.core.admin import testkit
from identity.core.admin.by import By
from identity.core.admin.testkit import Wanted
from identity.errors import Refused as RefusedByUs
from identity.settings import Settings
from identity_verifier import Refused
from identity_verifier.conformance import attempts_of_testkit
from tests.test_kit import verifier_of
from tests.world import Web

AUDIENCE = "https://api.example"
WANTS = [
    Wanted(AUDIENCE),
    Wanted(AUDIENCE, tenant="acme-bank", roles=("analyst",)),
    Wanted(AUDIENCE, roles=("auditor",)),
    Wanted(AUDIENCE, scopes=("read", "write")),
    Wanted(AUDIENCE, tenant="acme-bank", roles=("feed",), scopes=("read",)),
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, development=True)


@pytest.mark.parametrize("wanted", WANTS, ids=str)
def test_the_gate_refuses_the_bad_ones_and_takes_the_good(web: Web, wanted: Wanted) -> None:
    for _ in range(2):  # As often as one likes.
        made = testkit.make(web.rt, By.command_line(), wanted)
    assert (made["issuer"], made["audience"]) == (web.rt.settings.issuer, AUDIENCE)
    demands = [f"role={role}" for role in wanted.roles] + [f"scope={scope}" for scope in wanted.scopes]
    query = "&".join(["tenant=optional", *demands])
    tried = list(attempts_of_testkit(json.loads(json.dumps(made))))
    assert len({each.name for each in tried}) == len(tried) >= 28
    for each in tried:
        answer = web.get(f"/verify?{query}", headers=Headers(each.headers))
        # The gate asks on behalf of others, and so knows no audience.
        expected = 200 if each.good or "audience" in each.name else 401
        if each.name.startswith(("changed rights", "a member of another")):
            expected = 403
        assert answer.status_code == expected, each.name


@pytest.mark.parametrize("wanted", WANTS, ids=str)
def test_the_kit_refuses_the_bad_ones_and_takes_the_good(web: Web, wanted: Wanted) -> None:
    made = testkit.make(web.rt, By.command_line(), wanted)
    verifier = verifier_of(web, audience=AUDIENCE, client=None)

    def status_of(token: str) -> int:
        try:
            verifier.verify(f"Bearer {token}", tenant=wanted.tenant, role=wanted.roles, scope=wanted.scopes)
        except Refused as refused:
            return refused.status
        return 200

    assert {each["name"]: status_of(each["token"]) for each in made["good"]} == {made["good"][0]["name"]: 200}
    assert {each["name"] for each in made["bad"] if status_of(each["token"]) not in (401, 403)} == set()


def test_what_a_service_demands_decides_what_can_be_withdrawn(web: Web) -> None:
    def names(wanted: Wanted) -> set[str]:
        return {each["name"] for each in testkit.make(web.rt, By.command_line(), wanted)["bad"]}

    plain = names(Wanted(AUDIENCE))
    assert not [name for name in plain if name.startswith("changed")]
    full = names(Wanted(AUDIENCE, tenant="acme-bank", roles=("feed",), scopes=("read",)))
    assert len(full - plain) == 4


def test_it_is_told_in_the_log(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    made = testkit.make(web.rt, By.command_line(), Wanted(AUDIENCE))
    (told,) = [each for each in caplog.records if each.name == "identity.testkit"]
    assert (told.levelno, told.getMessage()) == (logging.WARNING, "testkit.signed")
    assert made["good"][0]["token"] not in caplog.text


def test_nothing_of_it_works_outside_development(web: Web) -> None:
    made: dict[str, Any] = testkit.make(web.rt, By.command_line(), Wanted(AUDIENCE))
    web.rt.settings = replace(web.rt.settings, development=False)
    web.rt.ring._settings = web.rt.settings
    with pytest.raises(RefusedByUs, match="FORBIDDEN"):
        testkit.make(web.rt, By.command_line(), Wanted(AUDIENCE))
    with pytest.raises(RuntimeError, match="outside development"):
        web.rt.ring.sign_unlike_us(web.rt.ring.verify(made["good"][0]["token"]), now=web.clock.now())
