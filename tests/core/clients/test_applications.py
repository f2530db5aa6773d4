"""Machine clients: two live secrets, alike refusals, tokens that end with what earned them, and no write on success."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from sqlalchemy import event, update

from identity.core.clients import applications, registration, secrets
from identity.core.clients.applications import Application
from identity.core.clients.secrets import ClientSecret
from identity.core.tokens import revoked
from identity.errors import Refused
from identity.runtime import Runtime
from identity.storage import Contention
from tests.builders import Machine, a_tenant, an_application
from tests.world import ORIGIN, FakeClock, Web


def proves(rt: Runtime, client_id: str, secret: str) -> bool:
    try:
        secrets.authenticate(rt, ORIGIN, client_id, secret)
    except Refused as refused:
        assert refused.problem.message == "Client ID and secret do not match"  # noqa: PT017 -- the verdict is what is returned
        return False
    return True


def token(web: Web, feed: Machine, **more: str) -> str:
    answer = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret, **more})
    assert answer.status_code == 200, answer.json
    text: str = answer.json["data"]["accessToken"]
    return text


def claims_of(text: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(text, options={"verify_signature": False})
    return claims


def works(web: Web, text: str) -> bool:
    return web.get("/verify?tenant=optional", bearer=text).status_code == 200


def test_a_secret_is_stored_as_a_keyed_hash_only(rt: Runtime) -> None:
    feed = an_application(rt)
    with rt.database.reading() as session:
        stored = session.get_one(ClientSecret, feed.secret_id).fingerprint
    assert len(stored) == 32
    assert feed.secret.encode() not in stored


def test_every_prefix_suffix_and_case_variant_of_a_secret_is_refused(rt: Runtime, clock: FakeClock) -> None:
    # Row 55.
    feed = an_application(rt)
    variants = [
        feed.secret[:-1],
        feed.secret[:20],
        feed.secret + "0",
        feed.secret + " ",
        " " + feed.secret,
        feed.secret.swapcase(),
        feed.secret.upper(),
        feed.secret + "=",
        "",
    ]
    for variant in variants:
        assert not proves(rt, feed.client_id, variant)
        clock.tick(301)
    assert proves(rt, feed.client_id, feed.secret)


def test_unknown_disabled_and_wrong_look_alike(web: Web) -> None:
    feed, off = an_application(web.rt), an_application(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        unit.execute(update(Application).where(Application.id == off.client_id).values(enabled=False))
    tries = [
        (feed.client_id, "wrong"),
        (off.client_id, off.secret),
        ("0191d1e0-7a5c-7000-8000-000000000001", feed.secret),
        ("x", "x"),
        (feed.client_id, off.secret),
    ]
    answers = [web.post("/application/token", {"clientId": client, "secret": secret}) for client, secret in tries]
    assert len({(answer.status_code, answer.get_data()) for answer in answers}) == 1
    assert answers[0].json == {
        "error": "INVALID_CREDENTIALS",
        "message": "Client ID and secret do not match",
        "status": 401,
    }


def test_two_secrets_live_at_once_and_a_third_is_refused(rt: Runtime) -> None:
    feed = an_application(rt)
    with rt.unit(ORIGIN) as unit:
        second, secret, _ = secrets.add_secret(rt, unit, feed.client_id, actor="test")
    assert proves(rt, feed.client_id, feed.secret)
    assert proves(rt, feed.client_id, secret.reveal())
    with pytest.raises(Refused, match="CONFLICT"), rt.unit(ORIGIN) as unit:
        secrets.add_secret(rt, unit, feed.client_id, actor="test")
    with rt.unit(ORIGIN) as unit:
        secrets.remove_secret(rt, unit, feed.client_id, second.id, actor="test")
        secrets.add_secret(rt, unit, feed.client_id, actor="test")
    assert not proves(rt, feed.client_id, secret.reveal())


def test_parallel_requests_make_no_third_secret(rt: Runtime) -> None:
    feed = an_application(rt)

    def add(_: int) -> str:
        try:
            with rt.unit(ORIGIN) as unit:
                secrets.add_secret(rt, unit, feed.client_id, actor="test")
        except Refused as refused:
            return refused.problem.code
        return "added"

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(add, range(6))) == ["CONFLICT"] * 5 + ["added"]


@pytest.mark.parametrize(("seconds", "lives"), [(59.999, True), (60, False), (61, False)])
def test_a_secret_lives_until_just_before_its_end(rt: Runtime, clock: FakeClock, seconds: float, lives: bool) -> None:
    feed = an_application(rt)
    with rt.unit(ORIGIN) as unit:
        _, secret, _ = secrets.add_secret(rt, unit, feed.client_id, actor="test", expires_in=60)
    clock.tick(seconds)
    assert proves(rt, feed.client_id, secret.reveal()) is lives
    assert proves(rt, feed.client_id, feed.secret)


def test_rotating_gives_the_old_secret_its_time_and_no_more(web: Web) -> None:
    feed = an_application(web.rt)
    old = token(web, feed)
    with web.rt.unit(ORIGIN) as unit:
        _, fresh, _ = secrets.rotate_secret(web.rt, unit, feed.client_id, actor="test", expires_in=60)
    assert proves(web.rt, feed.client_id, feed.secret)
    assert works(web, old)
    web.clock.tick(60)
    assert not proves(web.rt, feed.client_id, feed.secret)
    assert proves(web.rt, feed.client_id, fresh.reveal())
    assert works(web, old), "a secret that was replaced ends nothing of what it earned"


def test_a_token_says_what_the_application_is(web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    feed = an_application(
        web.rt,
        tenant="acme-bank",
        scopes=("read", "write"),
        roles=("feed",),
        audiences=("https://api.acme.example",),
        token_seconds=600,
    )
    claims = claims_of(token(web, feed))
    assert claims["sub"] == claims["client_id"] == feed.client_id
    assert claims["aud"] == "https://api.acme.example"
    assert (claims["scope"], claims["roles"], claims["tenants"]) == ("read write", ["feed"], {"acme-bank": ["feed"]})
    assert claims["exp"] - claims["iat"] == 600  # type: ignore[operator]
    assert "sid" not in claims
    assert claims_of(token(web, feed, scope="write"))["scope"] == "write"
    assert claims_of(token(web, feed, scope=""))["scope"] == "read write", "what is empty was not sent"


@pytest.mark.parametrize("scope", ["admin", "read admin", "READ", "read,write"])
def test_a_scope_that_it_does_not_have_is_refused(web: Web, scope: str) -> None:
    feed = an_application(web.rt, scopes=("read",))
    answer = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret, "scope": scope})
    assert (answer.status_code, answer.json["error"], answer.json["field"]) == (422, "VALIDATION_ERROR", "scope")


def test_an_origin_selects_the_audience_among_its_own(web: Web) -> None:
    feed = an_application(web.rt, audiences=("https://a.example", "https://b.example"))

    def asked(origin: str) -> int:
        body = {"clientId": feed.client_id, "secret": feed.secret}
        return web.post("/application/token", body, headers={"Origin": origin}).status_code

    assert asked("https://b.example") == 200
    assert asked("https://evil.example") == 403
    assert asked("not an origin") == 422


def test_audiences_keep_the_order_in_which_they_were_given_and_the_first_is_the_default(web: Web) -> None:
    feed = an_application(web.rt, audiences=("https://z.example",))
    with web.rt.unit(ORIGIN) as unit:
        registration.change(
            web.rt, unit, feed.client_id, actor="test", audiences=("https://z.example", "https://a.example")
        )
    assert applications.get(web.rt, feed.client_id).audiences == ("https://z.example", "https://a.example")
    assert claims_of(token(web, feed))["aud"] == "https://z.example"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://API.example.com", "https://api.example.com"),
        ("https://api.example.com:443", "https://api.example.com"),
        ("http://api.example.com:80/", "http://api.example.com"),
        ("https://api.example.com:8443/", "https://api.example.com:8443"),
        ("https://[2001:DB8::0:1]:443", "https://[2001:db8::1]"),
        ("Capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("app://x", "app://x"),
        ("https://a_b.example", "https://a_b.example"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("urn:example:API", "urn:example:API"),
    ],
)
def test_an_audience_has_one_spelling_and_an_origin_finds_it(web: Web, given: str, kept: str) -> None:
    feed = an_application(web.rt, audiences=(given,))
    assert applications.get(web.rt, feed.client_id).audiences == (kept,)
    assert claims_of(token(web, feed))["aud"] == kept
    body = {"clientId": feed.client_id, "secret": feed.secret}
    answer = web.post("/application/token", body, headers={"Origin": given.removesuffix("/")})
    is_origin = "/" not in kept.partition("://")[2] and "://" in kept
    assert answer.status_code == (200 if is_origin else 422), answer.json
    if is_origin:
        assert claims_of(answer.json["data"]["accessToken"])["aud"] == kept


@pytest.mark.parametrize(
    "origin", ["null", "https://", "https://a.example/", "https://a.example:65536", "https://[::g]", "a", ""]
)
def test_what_is_no_origin_is_malformed(web: Web, origin: str) -> None:
    feed = an_application(web.rt)
    body = {"clientId": feed.client_id, "secret": feed.secret}
    answer = web.post("/application/token", body, headers={"Origin": origin})
    assert (answer.status_code, answer.json["field"]) == (422, "Origin")


@pytest.mark.parametrize("how", ["disabled", "deleted", "secret removed", "revoked"])
def test_a_token_ends_at_once_with_what_stands_behind_it(web: Web, how: str) -> None:
    # Row 51.
    feed = an_application(web.rt)
    text = token(web, feed)
    assert works(web, text)
    claims = claims_of(text)
    with web.rt.unit(ORIGIN) as unit:
        if how == "disabled":
            unit.execute(update(Application).where(Application.id == feed.client_id).values(enabled=False))
        elif how == "deleted":
            registration.remove(web.rt, unit, feed.client_id, actor="test")
        elif how == "secret removed":
            secrets.remove_secret(web.rt, unit, feed.client_id, feed.secret_id, actor="test")
        else:
            revoked.revoke_token(web.rt, unit, str(claims["jti"]), web.clock.now(), actor="test")
            revoked.revoke_token(web.rt, unit, str(claims["jti"]), web.clock.now(), actor="test")
    assert not works(web, text)


def test_enabling_an_application_again_revives_no_token(web: Web) -> None:
    feed = an_application(web.rt)
    before = token(web, feed)
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", enabled=False)
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", enabled=True)
    assert not works(web, before)
    web.clock.tick(1)
    assert works(web, token(web, feed))


def test_a_success_writes_nothing(web: Web) -> None:
    feed = an_application(web.rt)
    token(web, feed)
    statements: list[str] = []
    event.listen(web.rt.database.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    token(web, feed)
    assert statements == [], "its one read is prepared, below the engine"


def test_the_standard_application_always_exists_and_has_no_secret(rt: Runtime) -> None:
    standard = applications.find_by_app_id(rt, 10)
    assert standard
    assert standard.app_id == 10
    assert secrets.secrets_of(rt, standard.id) == []
    with pytest.raises(Refused, match="CONFLICT"), rt.unit(ORIGIN) as unit:
        registration.remove(rt, unit, standard.id, actor="test")
    assert an_application(rt).app_id > 10


@pytest.mark.parametrize("app_id", [0, -1, 9, 2**63, 10**30])
def test_other_numbers_name_nothing(rt: Runtime, app_id: int) -> None:
    assert applications.find_by_app_id(rt, app_id) is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scopes": ("a b",)}, "scopes"),
        ({"roles": ("A",)}, "roles"),
        ({"audiences": ("a b",)}, "audiences"),
        ({"audiences": ("",)}, "audiences"),
        ({"audiences": ("\u2713",)}, "audiences"),
        ({"token_seconds": 59}, "tokenSeconds"),
        ({"token_seconds": 86_401}, "tokenSeconds"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_field(rt: Runtime, options: dict[str, object], field: str) -> None:
    with pytest.raises(Refused) as caught:
        an_application(rt, **options)
    assert (caught.value.problem.status, caught.value.field) == (422, field)


def test_parallel_registrations_get_numbers_of_their_own(rt: Runtime) -> None:
    def register(_: int) -> int:
        while True:
            try:
                return an_application(rt).app_id
            except Contention:
                continue  # As the pipeline and the command line do.

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(register, range(12)))
    assert len(set(numbers)) == 12
