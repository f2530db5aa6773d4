"""What each deed does to each kind of token, as a stranger hears of it who reads the draft and never asks us.

The table of deeds is the promise. Each is done by HTTP or by the use case that administrators have; within one `ttl` the stranger's
verdict is the expected one, and never lets pass what `/verify` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import jwt
import pytest
from werkzeug.test import TestResponse

from identity.core.admin import applications as admin_applications
from identity.core.admin import erasure, on_behalf
from identity.core.admin import tenants as admin_tenants
from identity.core.admin import users as admin_users
from identity.core.admin.by import By
from identity.core.clients import issuers, keypairs
from identity.core.tokens import sessions
from identity.runtime import Runtime
from tests.builders import Machine, Person, a_session, a_tenant, a_token, a_user, an_application
from tests.oauth_world import as_client, assertion, jwks, rsa_key, with_assertion
from tests.stranger import Stranger
from tests.world import ORIGIN, Web

BY: Final = By("test", ORIGIN)
USER: Final = ("day", "login", "bearer", "pair")
MACHINE: Final = ("secret", "second", "keys", "trust")
PLATFORM: Final = "https://ci.acme.example"
FRESH: Final = "a wholly different passphrase"


@dataclass
class World:
    """Ada with a token of each kind, her application's with one of each, and people and machines whom no deed concerns."""

    web: Web
    ada: Person
    feed: Machine
    second_secret: str
    trust_id: str
    login: sessions.Opened
    bearer: sessions.Opened
    pair_id: str
    pair: Mapping[str, str]
    refresh: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)

    @property
    def rt(self) -> Runtime:
        return self.web.rt

    def take(self, kind: str) -> str:  # noqa: PLR0911 -- one for each kind
        """A token of this kind, from the same login or credential as the one before."""
        web, feed = self.web, self.feed
        match kind:
            case "login":
                answer = web.post("/auth/refresh", {"refreshToken": self.refresh})
                assert answer.status_code == 200, answer.json
                self.refresh = answer.json["refreshToken"]
                return str(answer.json["accessToken"])
            case "bearer":
                assert self.bearer.bearer is not None
                return token_in(web.post("/session/token", bearer=self.bearer.bearer.reveal()))
            case "pair":
                return token_in(web.post("/keypair/token", headers=self.pair))
            case "day":
                return token_in(web.post("/user/token", {"email": self.ada.email, "password": self.ada.password}))
            case "secret":
                return token_in(web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}))
            case "second":
                body = {"clientId": feed.client_id, "secret": self.second_secret}
                return token_in(web.post("/application/token", body))
            case "keys":
                return by_assertion(web, with_assertion(assertion(self.rt, feed.client_id)))
            case "trust":
                return by_assertion(web, with_assertion(workload(self.rt)) | {"client_id": feed.client_id})
        raise AssertionError(kind)


def token_in(answer: TestResponse) -> str:
    assert answer.status_code in (200, 202), answer.json
    return str(answer.json.get("data", answer.json)["accessToken"])


def workload(rt: Runtime) -> str:
    """What a platform gives to the application's workload."""
    now = int(rt.clock.now().timestamp())
    said = {"iss": PLATFORM, "sub": "feed", "aud": rt.settings.issuer, "iat": now, "exp": now + 600}
    return jwt.encode(said, rsa_key("platform"), "RS256", headers={"kid": "key-0"})


def by_assertion(web: Web, proof: Mapping[str, str]) -> str:
    answer = web.post("/oauth/token", data={"grant_type": "client_credentials", **proof})
    assert answer.status_code == 200, answer.json
    return str(answer.json["access_token"])


@pytest.fixture
def world(web: Web) -> World:
    rt = web.rt
    ada = a_user(rt, roles=("auditor",), groups=("staff",), tenants={"acme": ("analyst",)})
    a_user(rt, roles=("users_admin",))
    feed = an_application(rt, tenant="acme", scopes=("read", "write"), roles=("feeder",), jwks=jwks(rsa_key()))
    second = admin_applications.add_secret(rt, BY, feed.client_id)
    with rt.unit(ORIGIN) as unit:
        bundle = jwks(rsa_key("platform"))
        trust = issuers.add_trust(
            rt, unit, feed.client_id, actor="test", name="ci", issuer=PLATFORM, subject="feed", jwks=bundle
        )
        pair, pair_secret = keypairs.create(rt, unit, ada.id, name="build", days=1, actor="test", verified=True)
    made = World(
        web,
        ada,
        feed,
        second.secret.reveal(),
        trust.id,
        a_session(rt, ada, amr=("pwd",)),
        a_session(rt, ada),
        pair.id,
        {"api-key": pair.api_key, "api-secret": pair_secret.reveal()},
    )
    assert made.login.refresh is not None
    made.refresh = made.login.refresh.reveal()
    made.tokens = {kind: made.take(kind) for kind in USER + MACHINE}
    grace = a_user(rt, roles=("auditor",), tenants={"globex": ("analyst",)})
    other = an_application(rt, tenant="globex", scopes=("read",))
    made.strangers = {
        "grace": a_token(rt, grace),
        "other": token_in(web.post("/application/token", {"clientId": other.client_id, "secret": other.secret})),
    }
    return made


def a_stranger(web: Web) -> Stranger:
    def fetch(url: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        answer = web.get(url.removeprefix(web.rt.settings.issuer), headers=headers)
        return answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.data

    return Stranger(web.rt.settings.issuer, fetch, web.clock.now)


# The deeds.


def revoke_a_session(world: World) -> None:
    answer = world.web.delete(f"/session/{world.bearer.session.id}", bearer=world.tokens["day"])
    assert answer.status_code == 202, answer.json


def log_out(world: World) -> None:
    assert world.web.post("/auth/logout", bearer=world.tokens["login"]).status_code == 200


def reuse_a_refresh_token(world: World) -> None:
    assert world.login.refresh is not None
    world.web.clock.tick(world.rt.settings.refresh_grace_seconds + 1)
    spent = world.web.post("/auth/refresh", {"refreshToken": world.login.refresh.reveal()})
    assert spent.status_code == 401


def end_by_an_administrator(world: World) -> None:
    on_behalf.revoke_session(world.rt, BY, world.login.session.id)


def change_the_password(world: World) -> None:
    body = {"currentPassword": world.ada.password, "newPassword": FRESH}
    assert world.web.put("/auth/password", body, bearer=world.tokens["login"]).status_code == 200


def reset_the_password(world: World) -> None:
    asked = world.web.post("/auth/password/forgot", {"email": world.ada.email}).json["verificationCodeID"]
    body = {"verificationCodeID": asked, "code": world.web.last_code(), "newPassword": FRESH}
    assert world.web.put("/auth/password/reset", body).status_code == 200


def disable(world: World) -> None:
    admin_users.set_enabled(world.rt, BY, world.ada.id, enabled=False)


def disable_and_enable(world: World) -> None:
    disable(world)
    admin_users.set_enabled(world.rt, BY, world.ada.id, enabled=True)


def erase(world: World) -> None:
    with world.rt.unit(ORIGIN) as unit:
        erasure.erase(world.rt, unit, world.ada.id, actor="test")


def unverify(world: World) -> None:
    admin_users.set_verified(world.rt, BY, world.ada.id, verified=False)


def close_the_window(world: World) -> None:
    admin_users.set_access_window(world.rt, BY, world.ada.id, ends_at=world.web.clock.now() - timedelta(seconds=1))


def shorten_the_window(world: World) -> None:
    admin_users.set_access_window(world.rt, BY, world.ada.id, ends_at=world.web.clock.now() + timedelta(hours=30))


def open_a_window(world: World) -> None:
    admin_users.set_access_window(world.rt, BY, world.ada.id, starts_at=world.web.clock.now() - timedelta(days=1))


def delete_the_pair(world: World) -> None:
    assert world.web.delete(f"/keypair/{world.pair_id}", bearer=world.tokens["login"]).status_code == 202


def rename(world: World) -> None:
    admin_users.change_user(world.rt, BY, world.ada.id, full_name="Ada King")
    admin_applications.change_application(world.rt, BY, world.feed.client_id, name="feeder")


def give_a_role(world: World) -> None:
    admin_users.grant_role(world.rt, BY, world.ada.id, "reviewer")


def take_a_role(world: World) -> None:
    admin_users.withdraw_role(world.rt, BY, world.ada.id, "auditor")


def change_groups(world: World) -> None:
    admin_users.change_user(world.rt, BY, world.ada.id, groups=("board",))


def change_a_membership(world: World) -> None:
    admin_tenants.set_member(world.rt, BY, "acme", world.ada.id, roles=("owner",))


def say_a_membership_again(world: World) -> None:
    admin_tenants.set_member(world.rt, BY, "acme", world.ada.id, roles=("analyst",))


def add_a_membership(world: World) -> None:
    admin_tenants.set_member(world.rt, BY, a_tenant(world.rt, "initech"), world.ada.id, roles=())


def end_a_membership(world: World) -> None:
    admin_tenants.remove_member(world.rt, BY, "acme", world.ada.id)


def delete_the_tenant(world: World) -> None:
    admin_tenants.delete_tenant(world.rt, BY, "acme")


def revoke_one_token(world: World) -> None:
    answer = world.web.post("/oauth/revoke", data={"token": world.tokens["secret"]}, headers=as_client(world.feed))
    assert answer.status_code == 200


def remove_a_secret(world: World) -> None:
    admin_applications.delete_secret(world.rt, BY, world.feed.client_id, world.feed.secret_id, force=True)


def remove_the_trust(world: World) -> None:
    with world.rt.unit(ORIGIN) as unit:
        issuers.remove_trust(world.rt, unit, world.feed.client_id, world.trust_id, actor="test")


def disable_the_tenant(world: World) -> None:
    admin_tenants.set_tenant_enabled(world.rt, BY, "acme", enabled=False)


def disable_and_enable_the_tenant(world: World) -> None:
    disable_the_tenant(world)
    world.web.clock.tick(1)
    admin_tenants.set_tenant_enabled(world.rt, BY, "acme", enabled=True)
    world.web.clock.tick(1)


def change_attributes_of_the_tenant(world: World) -> None:
    admin_tenants.change_tenant(world.rt, BY, "acme", attributes={"plan": "gold"})


def change_the_policy_of_the_tenant(world: World) -> None:
    admin_tenants.change_tenant(world.rt, BY, "acme", policy={"tokenSeconds": 600})


def change_attributes_of_the_user(world: World) -> None:
    admin_users.change_user(world.rt, BY, world.ada.id, attributes={"department": "fraud"})


def change_claims_of_the_application(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, token_claims={"plan": "=gold"})


def end_all_of_the_tenant(world: World) -> None:
    with world.rt.unit(ORIGIN) as unit:
        sessions.revoke_many(world.rt, unit, actor="test", reason="test", tenant="acme")


def replace_the_keys(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, jwks=jwks(rsa_key("two")))


def remove_the_keys(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, jwks=None)


def say_the_keys_again(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, jwks=jwks(rsa_key()))


def replace_the_keys_and_go_back(world: World) -> None:
    replace_the_keys(world)
    say_the_keys_again(world)


def disable_the_application(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, enabled=False)


def disable_and_enable_the_application(world: World) -> None:
    disable_the_application(world)
    admin_applications.change_application(world.rt, BY, world.feed.client_id, enabled=True)


def delete_the_application(world: World) -> None:
    admin_applications.delete_application(world.rt, BY, world.feed.client_id)


def change_scopes(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, scopes=("read",))


def change_roles_of_the_application(world: World) -> None:
    admin_applications.change_application(world.rt, BY, world.feed.client_id, roles=("feeder", "reader"))


Expected = Mapping[str, str]


def all_of(verdict: str, *kinds: str) -> Expected:
    return dict.fromkeys(kinds, verdict)


DEEDS: Final[Mapping[Callable[[World], None], Expected]] = {
    revoke_a_session: {"bearer": "invalid"},
    log_out: {"login": "invalid"},
    reuse_a_refresh_token: {"login": "invalid"},
    end_by_an_administrator: {"login": "invalid"},
    change_the_password: all_of("invalid", "day", "bearer", "pair"),
    reset_the_password: all_of("invalid", *USER),
    disable: all_of("invalid", *USER),
    disable_and_enable: all_of("invalid", *USER),
    erase: all_of("invalid", *USER),
    unverify: all_of("invalid", *USER),
    close_the_window: all_of("invalid", *USER),
    shorten_the_window: all_of("changed", *USER),
    open_a_window: {},
    delete_the_pair: {"pair": "invalid"},
    rename: {},
    give_a_role: all_of("changed", *USER),
    take_a_role: all_of("changed", *USER),
    change_groups: all_of("changed", *USER),
    change_a_membership: all_of("changed", *USER),
    say_a_membership_again: {},
    add_a_membership: all_of("changed", *USER),
    end_a_membership: all_of("changed", *USER),
    delete_the_tenant: all_of("changed", *USER) | all_of("invalid", *MACHINE),
    disable_the_tenant: all_of("changed", *USER) | all_of("invalid", *MACHINE),
    disable_and_enable_the_tenant: all_of("changed", *USER) | all_of("invalid", *MACHINE),
    change_attributes_of_the_tenant: all_of("changed", *USER, *MACHINE),
    change_the_policy_of_the_tenant: all_of("changed", *USER, *MACHINE),
    change_attributes_of_the_user: all_of("changed", *USER),
    change_claims_of_the_application: all_of("changed", *MACHINE),
    end_all_of_the_tenant: all_of("invalid", *USER),
    remove_the_trust: {"trust": "invalid"},
    revoke_one_token: {"secret": "invalid"},
    remove_a_secret: {"secret": "invalid"},
    replace_the_keys: {"keys": "invalid"},
    remove_the_keys: {"keys": "invalid"},
    say_the_keys_again: {},
    replace_the_keys_and_go_back: {"keys": "invalid"},
    disable_the_application: all_of("invalid", *MACHINE),
    disable_and_enable_the_application: all_of("invalid", *MACHINE),
    delete_the_application: all_of("invalid", *MACHINE),
    change_scopes: all_of("changed", *MACHINE),
    change_roles_of_the_application: all_of("changed", *MACHINE),
}
GOES_ON: Final[Mapping[Callable[[World], None], tuple[str, ...]]] = {
    shorten_the_window: USER,
    give_a_role: USER,
    take_a_role: USER,
    change_groups: USER,
    change_a_membership: USER,
    add_a_membership: USER,
    end_a_membership: USER,
    change_attributes_of_the_tenant: (*USER, *MACHINE),
    change_the_policy_of_the_tenant: (*USER, *MACHINE),
    change_attributes_of_the_user: USER,
    change_claims_of_the_application: MACHINE,
    disable_the_tenant: USER,
    disable_and_enable_the_tenant: (*USER, *MACHINE),
    change_scopes: MACHINE,
    change_roles_of_the_application: MACHINE,
    disable_and_enable_the_application: MACHINE,
    disable_and_enable: ("day",),
    revoke_one_token: MACHINE,
}
"""Who earns a good token after the deed, by which way."""


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_a_stranger_hears_of_every_deed_within_one_ttl(world: World, deed: Callable[[World], None]) -> None:
    web, stranger = world.web, a_stranger(world.web)
    everybody = world.tokens | world.strangers
    # 1. Everything is good, and the stranger has a copy that says so.
    assert {stranger.verdict(token) for token in everybody.values()} == {"valid"}
    # 2. The deed.
    deed(world)
    # 3. One ttl later.
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    heard = {kind: stranger.verdict(token) for kind, token in everybody.items()}
    assert heard == dict.fromkeys(everybody, "valid") | dict(DEEDS[deed])
    # 4. Who asks hears the same: nothing that has ended passes here, and rights that changed are those of now.
    asked = {kind: verified(web, token).status_code for kind, token in everybody.items()}
    assert asked == {kind: 401 if verdict == "invalid" else 200 for kind, verdict in heard.items()}
    # 5. The next token of the same login or credential is good again.
    for kind in GOES_ON.get(deed, ()):
        assert stranger.verdict(world.take(kind)) == "valid", kind


def verified(web: Web, token: str) -> TestResponse:
    return web.get("/verify?tenant=optional", bearer=token)


def test_no_token_outlives_its_session_for_whoever_does_not_ask(world: World) -> None:
    # A session ends by itself when nobody uses it: no deed says so, and none has to.
    web, stranger = world.web, a_stranger(world.web)
    web.clock.tick(world.rt.settings.session_idle_seconds - 300)
    assert world.bearer.bearer is not None
    answer = web.post("/session/token", bearer=world.bearer.bearer.reveal())
    assert answer.json["expiresIn"] == 300
    last = answer.json["accessToken"]
    for seconds, status, verdict in ((299, 200, "valid"), (1, 401, "invalid")):
        web.clock.tick(seconds)
        assert (verified(web, last).status_code, stranger.verdict(last)) == (status, verdict)
