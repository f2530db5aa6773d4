"""Trusts made as docs/machines.md shows them, against tokens with the claims that each platform documents."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import jwt
import pytest

from identity.core.clients import issuers
from tests.builders import an_application
from tests.core.clients.test_issuers import present
from tests.issuer_world import JWT_BEARER, JWT_SPIFFE, public_jwk
from tests.oauth_world import ec_key, rsa_key
from tests.world import ORIGIN, Web

PAGE = Path(__file__).parents[3] / "docs" / "machines.md"

# As the platforms' own documentation shows them; times are added.
TOKENS: dict[str, dict[str, Any]] = {
    "kubernetes": {
        "iss": "https://kubernetes.default.svc.cluster.local",
        "sub": "system:serviceaccount:prod:feed",
        "aud": ["http://127.0.0.1:8000"],
        "kubernetes.io": {
            "namespace": "prod",
            "pod": {"name": "feed-0", "uid": "f2c8f1f0-0000-4000-8000-000000000001"},
            "serviceaccount": {"name": "feed", "uid": "f2c8f1f0-0000-4000-8000-000000000002"},
        },
    },
    "github": {
        "iss": "https://token.actions.githubusercontent.com",
        "sub": "repo:acme/feed:ref:refs/heads/main",
        "aud": "http://127.0.0.1:8000",
        "repository": "acme/feed",
        "repository_id": "123456",
        "repository_owner": "acme",
        "repository_owner_id": "7890",
        "ref": "refs/heads/main",
        "event_name": "push",
        "run_attempt": "1",
    },
    "gitlab": {
        "iss": "https://gitlab.com",
        "sub": "project_path:acme/feed:ref_type:branch:ref:main",
        "aud": "http://127.0.0.1:8000",
        "namespace_id": "72",
        "project_id": "20",
        "project_path": "acme/feed",
        "ref": "main",
        "ref_protected": "true",
    },
    "spiffe": {"sub": "spiffe://acme.example/ns/prod/sa/feed", "aud": ["http://127.0.0.1:8000"]},
}
NEAR: dict[str, dict[str, Any]] = {
    "kubernetes": {"sub": "system:serviceaccount:test:feed"},
    "github": {"repository_id": "123457"},
    "gitlab": {"project_id": "21"},
    "spiffe": {"sub": "spiffe://acme.example/ns/test/sa/feed"},
}


def options_on_the_page(preset: str, page: Path = PAGE) -> dict[str, Any]:
    """What the command on the page for this platform says."""
    (command,) = re.findall(
        rf"^identity application trust add .*--preset {preset}\b.*$", page.read_text(), re.MULTILINE
    )
    words = shlex.split(command)
    said = dict(pairwise(words))
    claims = [words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--claim"]
    return {
        "issuer": said.get("--issuer") or TOKENS[preset]["iss"],
        "subject": said.get("--subject"),
        "claims": dict(claims),
    }


@pytest.mark.parametrize("platform", TOKENS)
def test_a_trust_as_the_page_shows_it_takes_the_platforms_token_and_no_near_miss(web: Web, platform: str) -> None:
    key = ec_key() if platform == "spiffe" else rsa_key(platform)
    alg, use = ("ES256", "jwt-svid") if platform == "spiffe" else ("RS256", "sig")
    feed = an_application(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        trust = issuers.add_trust(
            web.rt,
            unit,
            feed.client_id,
            actor="test",
            name=platform,
            jwks={"keys": [public_jwk(key, "a", use=use)]},
            **options_on_the_page(platform),
        )
    assert issuers.warnings_of(trust) == ()
    now = int(web.clock.now().timestamp())

    def sent(**changes: Any) -> int:
        said = TOKENS[platform] | {"iat": now, "nbf": now, "exp": now + 600} | changes
        token = jwt.encode(said, key, alg, headers={"kid": "a", "typ": "JWT"})
        return present(web, feed, token, JWT_SPIFFE if platform == "spiffe" else JWT_BEARER).status_code

    assert sent() == 200
    assert sent(**NEAR[platform]) == 401
    assert sent(aud="https://other.example") == 401
