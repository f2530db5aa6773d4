"""Rotations that somebody can finish: who uses a secret, what may end it, and what its end does to the tokens that it earned."""

from __future__ import annotations

import dataclasses
from typing import Any

import jwt
import pytest
from sqlalchemy import select

from identity.ambient import Origin
from identity.core import upkeep
from identity.core.clients import registration, secrets
from identity.core.clients.secrets import ClientSecret, MadeSecret, SecretInfo
from identity.core.record import audit
from identity.errors import UNAVAILABLE, Refused
from identity.instruments.usage import CredentialCaller
from identity.runtime import Runtime
from tests.builders import Machine, an_application
from tests.oauth_world import as_client, asking, assertion, ec_key, jwks, rsa_key, with_assertion
from tests.world import ORIGIN, FakeClock, Web

DAY = 86_400


def flush(rt: Runtime) -> None:
    rt.usage.flush(rt.database, rt.clock.now())


def use(rt: Runtime, client_id: str, secret: str, address: str = "192.0.2.1") -> bool:
    try:
        secrets.authenticate(rt, Origin(address=address), client_id, secret)
    except Refused:
        return False
    flush(rt)
    return True


def add(rt: Runtime, feed: Machine, **options: Any) -> MadeSecret:
    with rt.unit(ORIGIN) as unit:
        return secrets.add_secret(rt, unit, feed.client_id, actor="test", **options)


def listed(rt: Runtime, feed: Machine, secret_id: str = "") -> SecretInfo:
    return next(one for one in secrets.secrets_of(rt, feed.client_id) if one.id == (secret_id or feed.secret_id))


def token(web: Web, client_id: str, secret: str) -> Any:
    answer = web.post("/application/token", {"clientId": client_id, "secret": secret})
    assert answer.status_code == 200, answer.json
    return answer.json["data"]


def works(web: Web, text: str) -> bool:
    return web.get("/verify?tenant=optional", bearer=text).status_code == 200


def test_uses_that_an_outage_kept_from_the_database_are_written_after_it(rt: Runtime, clock: FakeClock) -> None:
    class Away:
        def unit(self, *_: Any) -> Any:
            raise Refused(UNAVAILABLE)

    feed = an_application(rt)
    secrets.authenticate(rt, Origin(address="192.0.2.7"), feed.client_id, feed.secret)
    used_at = clock.now()
    clock.tick(60)
    with pytest.raises(Refused):
        rt.usage.flush(Away(), clock.now())  # type: ignore[arg-type]  # as a database that is away
    flush(rt)
    told = listed(rt, feed)
    assert (told.last_used_at, told.last_used_ip) == (used_at, "192.0.2.7")


# What a token outlives, and what it does not.


@pytest.mark.parametrize(("left", "lives"), [(7200, 3600), (3600, 3600), (3599, 3599), (1, 1)])
def test_a_token_never_outlives_a_known_end_of_its_secret(web: Web, left: int, lives: int) -> None:
    feed = an_application(web.rt, token_seconds=3600)
    made = add(web.rt, feed, expires_in=left)
    earned = token(web, feed.client_id, made.secret.reveal())
    claims = jwt.decode(earned["accessToken"], options={"verify_signature": False})
    assert earned["expiresIn"] == claims["exp"] - claims["iat"] == lives
    assert claims["exp"] <= (web.clock.now().timestamp()) + left


def test_a_secret_in_its_last_second_earns_nothing(web: Web) -> None:
    feed = an_application(web.rt)
    made = add(web.rt, feed, expires_in=1)
    web.clock.tick(0.999999)
    body = {"clientId": feed.client_id, "secret": made.secret.reveal()}
    answers = {web.post("/application/token", body).status_code for _ in range(2)}
    assert answers <= {200, 401}
    if 200 in answers:
        assert token(web, client_id=feed.client_id, secret=body["secret"])["expiresIn"] == 1


def test_what_a_replaced_secret_earned_runs_out_by_itself(web: Web) -> None:
    feed = an_application(web.rt)
    before = token(web, feed.client_id, feed.secret)["accessToken"]
    with web.rt.unit(ORIGIN) as unit:
        made = secrets.rotate_secret(web.rt, unit, feed.client_id, actor="test", expires_in=60)
    assert made.previous is not None
    assert made.previous.expires_at is not None
    web.clock.tick(61)
    upkeep.sweep(web.rt)
    assert works(web, before)
    web.clock.tick(DAY - 62)
    upkeep.sweep(web.rt)
    assert works(web, before), "one second before its own end"
    web.clock.tick(1)
    assert not works(web, before)


def test_an_ended_secret_is_kept_until_its_last_token_is_dead_and_no_longer(web: Web) -> None:
    feed = an_application(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        secrets.rotate_secret(web.rt, unit, feed.client_id, actor="test", expires_in=10)
    for seconds, kept in ((10 + DAY + 60, True), (1, False)):
        web.clock.tick(seconds)
        upkeep.sweep(web.rt)
        assert (feed.secret_id in [one.id for one in secrets.secrets_of(web.rt, feed.client_id)]) is kept


def test_removing_an_ended_secret_still_ends_what_it_earned(web: Web) -> None:
    feed = an_application(web.rt)
    before = token(web, feed.client_id, feed.secret)["accessToken"]
    with web.rt.unit(ORIGIN) as unit:
        secrets.rotate_secret(web.rt, unit, feed.client_id, actor="test", expires_in=10)
    web.clock.tick(3600)
    assert works(web, before)
    with web.rt.unit(ORIGIN) as unit:
        secrets.remove_secret(web.rt, unit, feed.client_id, feed.secret_id, actor="test", force=True)
    assert not works(web, before)


@pytest.mark.parametrize("how", ["replaced", "taken away", "replaced and put back"])
def test_a_replaced_key_set_ends_what_it_earned(web: Web, how: str) -> None:
    feed = an_application(web.rt, jwks=jwks(rsa_key()))

    def earn() -> str:
        form = asking(with_assertion(assertion(web.rt, feed.client_id)))
        answer = web.post("/oauth/token", data=form, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status_code == 200, answer.json
        text: str = answer.json["access_token"]
        return text

    def change(keys: Any) -> None:
        with web.rt.unit(ORIGIN) as unit:
            registration.change(web.rt, unit, feed.client_id, actor="test", jwks=keys)

    before = earn()
    by_secret = token(web, feed.client_id, feed.secret)["accessToken"]
    change(jwks(rsa_key()))
    assert works(web, before), "the same keys again are no replacement"
    change(None if how == "taken away" else jwks(ec_key()))
    if how == "replaced and put back":
        change(jwks(rsa_key()))
        assert works(web, earn())
    assert not works(web, before)
    assert introspected(web, feed, before) == {"active": False}
    assert works(web, by_secret), "what a secret earned is none of the key set's"


def introspected(web: Web, feed: Machine, text: str) -> Any:
    headers = {**as_client(feed), "Content-Type": "application/x-www-form-urlencoded"}
    return web.post("/oauth/introspect", data={"token": text}, headers=headers).json


# The third, and the one in use.


def test_a_third_secret_is_refused_and_the_refusal_names_the_older_one_and_its_last_use(
    rt: Runtime, clock: FakeClock
) -> None:
    feed = an_application(rt)
    clock.tick(1)
    add(rt, feed)
    assert use(rt, feed.client_id, feed.secret, "192.0.2.7")
    for third in (lambda: add(rt, feed), lambda: rotate(rt, feed)):
        with pytest.raises(Refused) as caught:
            third()
        said = caught.value.problem
        assert (said.code, said.status) == ("CONFLICT", 409)
        for word in (feed.secret_id, f"{rt.clock.now():%Y-%m-%dT%H:%M:%SZ}", "192.0.2.7"):
            assert word in said.message
        assert len(said.message) <= 200


def rotate(rt: Runtime, feed: Machine, **options: Any) -> MadeSecret:
    with rt.unit(ORIGIN) as unit:
        return secrets.rotate_secret(rt, unit, feed.client_id, actor="test", expires_in=60, **options)


@pytest.mark.parametrize("way", [add, rotate])
@pytest.mark.parametrize("used", ["first", "second", "neither"])
def test_force_ends_the_one_used_longest_ago(rt: Runtime, clock: FakeClock, way: Any, used: str) -> None:
    feed = an_application(rt)
    clock.tick(1)
    second = add(rt, feed)
    known = {"first": feed.secret, "second": second.secret.reveal()}
    order = {"first": ["second", "first"], "second": ["first", "second"], "neither": []}[used]
    for name in order:
        clock.tick(10)
        assert use(rt, feed.client_id, known[name])
    made = way(rt, feed, force=True)
    ended = "second" if used == "first" else "first"
    assert {name: use(rt, feed.client_id, text) for name, text in known.items()} == {
        "first": ended != "first",
        "second": ended != "second",
    }
    assert use(rt, feed.client_id, made.secret.reveal())
    assert made.previous is not None
    assert made.previous.id == (feed.secret_id if ended == "second" else second.info.id)
    events = audit.search(rt, action="secret.retired")
    assert [event.data["secret"] for event in events] == [feed.secret_id if ended == "first" else second.info.id]


@pytest.mark.parametrize(("ago", "refused"), [(0, True), (DAY - 1, True), (DAY, False), (None, False)])
def test_a_secret_in_use_is_removed_only_by_force(
    rt: Runtime, clock: FakeClock, ago: int | None, refused: bool
) -> None:
    feed = an_application(rt)
    if ago is not None:
        assert use(rt, feed.client_id, feed.secret, "2001:db8::7")
        clock.tick(ago)
    with rt.unit(ORIGIN) as unit:
        if refused:
            with pytest.raises(Refused, match="CONFLICT") as caught:
                secrets.remove_secret(rt, unit, feed.client_id, feed.secret_id, actor="test")
            assert "2001:db8::7" in caught.value.problem.message
        secrets.remove_secret(rt, unit, feed.client_id, feed.secret_id, actor="test", force=refused)
    assert not use(rt, feed.client_id, feed.secret)


# Quiet.


def test_a_secret_ends_by_itself_once_it_was_quiet_and_never_while_it_is_used(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    made = add(rt, feed, retire_old_after_quiet=7 * DAY)
    assert made.previous is not None
    assert made.previous.retire_after_quiet_seconds == 7 * DAY
    for _ in range(6):
        clock.tick(7 * DAY)
        assert secrets.retire_quiet(rt) == 0
        assert use(rt, feed.client_id, feed.secret)
    clock.tick(7 * DAY + 4)
    assert secrets.retire_quiet(rt) == 0
    assert listed(rt, feed).expires_at is None
    clock.tick(1)
    assert not use(rt, feed.client_id, feed.secret), "even before anybody has written it down"
    assert secrets.retire_quiet(rt) == 1
    assert secrets.retire_quiet(rt) == 0
    assert listed(rt, feed).expires_at == clock.now()
    assert use(rt, feed.client_id, made.secret.reveal())
    (event,) = audit.search(rt, action="secret.retired")
    assert (event.actor, event.target, event.data["secret"]) == ("background", feed.client_id, feed.secret_id)


def test_a_secret_that_nobody_ever_used_is_quiet_from_the_day_it_was_replaced(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    clock.tick(30 * DAY)
    add(rt, feed, retire_old_after_quiet=60)
    clock.tick(64)
    assert use(rt, feed.client_id, feed.secret)
    clock.tick(65)
    assert not use(rt, feed.client_id, feed.secret)


def test_a_quiet_end_comes_no_later_than_the_known_one(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    second = add(rt, feed, expires_in=100)
    with rt.unit(ORIGIN) as unit:
        secrets.remove_secret(rt, unit, feed.client_id, feed.secret_id, actor="test")
    add(rt, feed, retire_old_after_quiet=1000)
    clock.tick(100)
    assert not use(rt, feed.client_id, second.secret.reveal())


def test_a_retired_secret_makes_room_for_another(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    add(rt, feed, retire_old_after_quiet=60)
    clock.tick(65)
    add(rt, feed)


# Who uses it.


def test_ten_secrets_of_ten_addresses_are_told_apart(rt: Runtime, clock: FakeClock) -> None:
    feeds = [an_application(rt) for _ in range(10)]
    for number in range(10):
        clock.tick(1)
        for feed in feeds:
            for _ in range(10):
                secrets.authenticate(rt, Origin(address=f"192.0.2.{number}"), feed.client_id, feed.secret)
    flush(rt)
    for feed in feeds:
        one = listed(rt, feed)
        assert one.callers == tuple(f"192.0.2.{number}" for number in range(9, -1, -1))
        assert (one.last_used_ip, one.last_used_at) == ("192.0.2.9", clock.now())


def test_callers_are_those_of_a_day_and_at_most_a_hundred(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    for number in range(150):
        secrets.authenticate(rt, Origin(address=f"2001:db8::{number:x}"), feed.client_id, feed.secret)
        clock.tick(0.001)
    flush(rt)
    assert use(rt, feed.client_id, feed.secret, "192.0.2.7")
    callers = listed(rt, feed).callers
    assert (len(callers), callers[0]) == (100, "192.0.2.7")
    upkeep.sweep(rt)
    with rt.database.reading() as session:
        assert len(session.scalars(select(CredentialCaller)).all()) == 100
    clock.tick(DAY)
    assert listed(rt, feed).callers == ()
    upkeep.sweep(rt)
    with rt.database.reading() as session:
        assert session.scalars(select(CredentialCaller)).all() == []


def test_a_later_use_that_another_process_wrote_is_kept(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    secrets.authenticate(rt, Origin(address="192.0.2.1"), feed.client_id, feed.secret)
    late = type(rt.usage)()
    late.note(ClientSecret, feed.secret_id, clock.now(), "192.0.2.1")
    clock.tick(10)
    late.note(ClientSecret, feed.secret_id, clock.now(), "192.0.2.2")
    late.flush(rt.database, clock.now())
    flush(rt)
    one = listed(rt, feed)
    assert (one.last_used_ip, one.last_used_at) == ("192.0.2.2", clock.now())
    assert one.callers == ("192.0.2.2", "192.0.2.1")


def test_a_removed_secret_takes_its_last_notes_with_it(rt: Runtime) -> None:
    feed = an_application(rt)
    secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
    with rt.unit(ORIGIN) as unit:
        secrets.remove_secret(rt, unit, feed.client_id, feed.secret_id, actor="test")
    flush(rt)
    assert secrets.secrets_of(rt, feed.client_id) == []


def test_the_longest_token_life_decides_how_long_an_ended_secret_is_kept(rt: Runtime, clock: FakeClock) -> None:
    rt.settings = dataclasses.replace(rt.settings, application_token_seconds=10 * DAY)
    feed = an_application(rt)
    rotate(rt, feed)
    clock.tick(9 * DAY)
    upkeep.sweep(rt)
    assert len(secrets.secrets_of(rt, feed.client_id)) == 2
