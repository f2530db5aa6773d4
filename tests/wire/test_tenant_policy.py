"""A tenant's own policy: at the gate, on its own routes, in what a token names and how long it lives, and in `explain`."""

from __future__ import annotations

from typing import Any

import jwt
import pytest

from identity.core.clients import keypairs
from identity.core.record import explain
from identity.core.tokens import sessions
from tests.builders import Person, a_session, a_tenant, a_token, a_user, an_application
from tests.oauth_world import as_client
from tests.world import ORIGIN, Web

ACME = {"X-Tenant-Id": "acme-bank"}
TWO = ("pwd", "otp")


@pytest.fixture
def boss(web: Web) -> str:
    """The token of an administrator."""
    a_tenant(web.rt, "acme-bank")
    return a_token(web.rt, a_user(web.rt, roles=("users_admin",)))


@pytest.fixture
def ada(web: Web, boss: str) -> Person:
    """An owner of acme-bank who belongs elsewhere too."""
    return a_user(web.rt, tenants={"acme-bank": ("owner",), "globex": ("auditor",)})


def demand(web: Web, boss: str, **policy: Any) -> None:
    answer = web.patch("/admin/tenant/acme-bank", {"policy": policy}, bearer=boss)
    assert (answer.status_code, set(answer.json["policy"])) == (202, set(policy)), answer.json


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def refused_by(web: Web, **options: Any) -> str | None:
    """The rule that the gate and the tenant's own routes refuse by, which they do alike; None where both let pass."""
    gate, own = (
        web.get(path, headers={**ACME, **options.get("headers", {})}, bearer=options.get("bearer", ""))
        for path in ("/verify", "/tenant")
    )
    assert (gate.status_code == 200) is (own.status_code == 200), (gate.json, own.json)
    if gate.status_code == 200:
        return None
    assert (gate.status_code, gate.headers["x-error"]) == (403, "The caller may not do this")
    rules = {explain.get(web.rt, one.headers["x-error-id"]).evidence["rule"] for one in (gate, own)}
    assert len(rules) == 1
    return str(rules.pop())


def told(web: Web, token: str) -> set[str]:
    """The tenants that a token, introspection and the user's own route name, which are the same."""
    watcher = an_application(web.rt, scopes=("introspect",))
    introspected = web.post("/oauth/introspect", headers=as_client(watcher), data={"token": token}).json["tenants"]
    assert web.get("/auth/me", bearer=token).json["tenants"].keys() == introspected.keys()
    assert claims_of(token).get("tenants", {}).keys() == introspected.keys()
    return set(introspected)


def test_a_second_factor_is_demanded(web: Web, boss: str, ada: Person) -> None:
    demand(web, boss, requireSecondFactor=True)
    one, two = a_token(web.rt, ada, amr=("email",)), a_token(web.rt, ada, amr=TWO)
    assert refused_by(web, bearer=one) == "requireSecondFactor"
    assert told(web, one) == {"globex"}
    assert refused_by(web, bearer=two) is None
    assert told(web, two) == {"acme-bank", "globex"}
    assert refused_by(web, bearer=a_token(web.rt, ada, amr=("pwd", "email"))) is None, (
        "a mailed code is a second factor here"
    )
    assert refused_by(web, bearer=a_token(web.rt, ada, amr=("key", "otp"))) == "requireSecondFactor"
    with web.rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(web.rt, unit, ada.id, name="ci", days=1, actor=ada.id, verified=True)
    keys = {"api-key": pair.api_key, "api-secret": secret.reveal()}
    assert refused_by(web, headers=keys) == "requireSecondFactor"
    assert web.get("/verify", headers=keys | {"X-Tenant-Id": "globex"}).status_code == 200, "elsewhere nothing changes"
    demand(web, boss)
    assert refused_by(web, bearer=one) is None, "an empty policy demands nothing"


def test_tokens_live_no_longer_than_the_tenant_wants(web: Web, boss: str, ada: Person) -> None:
    old = a_token(web.rt, ada)
    demand(web, boss, tokenSeconds=600)
    said = claims_of(a_token(web.rt, ada))
    assert said["exp"] - said["iat"] == 600
    web.clock.tick(600)
    assert refused_by(web, bearer=old) is None
    web.clock.tick(1)
    assert refused_by(web, bearer=old) == "tokenSeconds", "one from before the policy"
    feed = an_application(web.rt, tenant="acme-bank")
    granted = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}).json["data"]
    assert granted["expiresIn"] == 600
    other = a_user(web.rt, tenants={"globex": ("auditor",)})
    said = claims_of(a_token(web.rt, other))
    assert said["exp"] - said["iat"] == 3600


def test_logins_last_no_longer_than_the_tenant_wants(web: Web, boss: str, ada: Person) -> None:
    demand(web, boss, sessionSeconds=3600)
    bearer = a_session(web.rt, ada).bearer
    assert bearer is not None
    web.clock.tick(3000)
    traded = web.post("/session/token", bearer=bearer.reveal()).json
    assert traded["expiresIn"] == 600
    web.clock.tick(601)
    assert refused_by(web, bearer=bearer.reveal()) == "sessionSeconds"
    later = web.post("/session/token", bearer=bearer.reveal()).json
    assert (claims_of(later["accessToken"])["tenants"], later["expiresIn"]) == ({"globex": ["auditor"]}, 3600)


def test_only_people_of_some_mail_domains(web: Web, boss: str, ada: Person) -> None:
    token = a_token(web.rt, ada)
    demand(web, boss, emailDomains=["ACME.example", "acme.test"])
    assert refused_by(web, bearer=token) is None
    demand(web, boss, emailDomains=["me.example", "sub.acme.example"])
    assert refused_by(web, bearer=token) == "emailDomains"
    assert told(web, a_token(web.rt, ada)) == {"globex"}
    feed = an_application(web.rt, tenant="acme-bank")
    granted = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}).json["data"][
        "accessToken"
    ]
    assert web.get("/verify", headers=ACME, bearer=granted).status_code == 200, "an application has no mail domain"


def test_only_from_some_networks(web: Web, boss: str, ada: Person) -> None:
    token = a_token(web.rt, ada)  # signed in from 192.0.2.1, asks from 127.0.0.1
    feed = an_application(web.rt, tenant="acme-bank")
    granted = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}).json["data"][
        "accessToken"
    ]
    demand(web, boss, networks=["127.0.0.0/8", "192.0.2.0/24"])
    assert refused_by(web, bearer=token) is None
    demand(web, boss, networks=["198.51.100.0/24"])
    assert refused_by(web, bearer=token) == "networks"
    assert told(web, a_token(web.rt, ada)) == {"globex"}
    assert web.get("/verify", headers=ACME, bearer=granted).status_code == 403, "machines come from somewhere too"


@pytest.mark.parametrize(
    "policy",
    [
        {"requireSecondFactor": 1},
        {"tokenSeconds": 59},
        {"tokenSeconds": True},
        {"sessionSeconds": "3600"},
        {"emailDomains": ["not a domain"]},
        {"emailDomains": "acme.example"},
        {"networks": ["300.0.0.0/8"]},
        {"networks": [1]},
        {"networks": ["10.0.0.0/8"] * 51},
        {"secondFactor": True},
    ],
)
def test_what_is_no_policy_is_refused(web: Web, boss: str, policy: dict[str, Any]) -> None:
    answer = web.patch("/admin/tenant/acme-bank", {"policy": policy}, bearer=boss)
    assert (answer.status_code, answer.json["field"]) == (400, "policy")


def test_an_administrator_is_not_kept_out_of_a_tenant_by_its_policy(web: Web, boss: str) -> None:
    demand(web, boss, networks=["198.51.100.0/24"], requireSecondFactor=True)
    assert web.get("/tenant", headers=ACME, bearer=boss).status_code == 200


def test_a_token_issued_now_says_what_the_rows_of_now_say(web: Web, boss: str, ada: Person) -> None:
    live = sessions.find_live(web.rt, a_session(web.rt, ada, amr=("email",)).session.id)
    demand(web, boss, requireSecondFactor=True)
    token = sessions.token_for(web.rt, sessions.find_live(web.rt, live.session.id), seconds=60).text
    assert set(claims_of(token)["tenants"]) == {"globex"}
