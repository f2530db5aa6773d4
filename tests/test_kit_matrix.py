"""What each deed does to each kind of token, as a service with the kit hears of it: the same as `/verify`, within one `ttl`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from identity_verifier import Refused, Verifier
from tests.test_kit import said_by_gate, said_by_kit, verifier_of
from tests.test_status_matrix import DEEDS, GOES_ON, World, world
from tests.world import Web

__all__ = ["world"]


def rights_by_kit(verifier: Verifier, token: str, tenant: str) -> tuple[int, set[str], set[str]]:
    """Status, roles in that tenant with the global ones, and scopes."""
    try:
        caller = verifier.verify(f"Bearer {token}", tenant=tenant)
    except Refused as refused:
        return refused.status, set(), set()
    return 200, set(caller.roles), set(caller.scopes)


def rights_by_gate(web: Web, token: str, tenant: str) -> tuple[int, set[str], set[str]]:
    answer = web.get("/verify", bearer=token, headers={"X-Tenant-Id": tenant})
    if answer.status_code != 200:
        return answer.status_code, set(), set()
    roles, scopes = answer.headers["X-Auth-Roles"], answer.headers["X-Auth-Scopes"]
    return 200, set(filter(None, roles.split(","))), set(scopes.split())


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_the_kit_says_what_the_gate_says_after_every_deed(world: World, deed: Callable[[World], None]) -> None:
    web = world.web
    asks, alone = verifier_of(web), verifier_of(web, client=None)
    everybody = world.tokens | world.strangers
    for token in everybody.values():
        assert said_by_kit(asks, token) == said_by_kit(alone, token) == (200, "")
    deed(world)
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    for kind, token in everybody.items():
        # 1. With a client of its own: the same verdict, and the same rights, which are those of now.
        assert said_by_kit(asks, token) == said_by_gate(web, token), kind
        for tenant in ("acme", "globex", "initech"):
            assert rights_by_kit(asks, token, tenant) == rights_by_gate(web, token, tenant), (kind, tenant)
        # 2. Without one: what has changed is refused, so that its caller gets a new token. Nothing that ended passes.
        verdict = DEEDS[deed].get(kind, "valid")
        assert said_by_kit(alone, token)[0] == (200 if verdict == "valid" else 401), kind
    # 3. The next token of the same login or credential is good again.
    for kind in GOES_ON.get(deed, ()):
        assert said_by_kit(alone, world.take(kind)) == (200, ""), kind
