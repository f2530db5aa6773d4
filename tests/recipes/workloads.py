"""Workloads as their platforms run them: the trust of a recipe's page, a stand-in that signs what the platform would, its variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import jwt

from identity.core.clients import issuers
from tests.builders import Machine, an_application
from tests.core.clients.test_platforms import TOKENS, options_on_the_page
from tests.issuer_world import StandIn, public_jwk
from tests.recipes.blocks import RECIPES
from tests.world import ORIGIN, Live

PLATFORMS: Final = tuple(TOKENS)


def a_workload(service: Live, platform: StandIn, name: str, folder: Path) -> tuple[Machine, dict[str, str]]:
    """An application that trusts the platform as the recipe says, and what a workload of it finds in its environment."""
    feed, key = an_application(service.rt), platform.keys["k1"]
    options = options_on_the_page(name, RECIPES / f"{name}.md")
    if name == "spiffe":
        options["jwks"] = {"keys": [public_jwk(key, "k1", use="jwt-svid")]}
    else:
        # The one thing that a stand-in cannot have is the platform's address.
        options["issuer"] = platform.url
    with service.rt.unit(ORIGIN) as unit:
        issuers.add_trust(service.rt, unit, feed.client_id, actor="test", name=name, **options)

    def signed(audience: str) -> str:
        now = int(service.rt.clock.now().timestamp())
        said: dict[str, Any] = TOKENS[name] | {"aud": audience, "iat": now, "exp": now + 600}
        if name != "spiffe":
            said["iss"] = platform.url
        return jwt.encode(said, key, "RS256", headers={"kid": "k1"})

    api = {"API": f"{service.url}/verify?tenant=optional"}
    if name == "github":
        platform.id_token = signed
        return feed, api | {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{platform.url}/id-token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of this job",
        }
    if name == "gitlab":
        return feed, api | {"IDENTITY_TOKEN": signed(service.url)}
    file = folder / name
    file.write_text(signed(service.url))
    return feed, api | {"TOKEN_FILE": str(file)}
