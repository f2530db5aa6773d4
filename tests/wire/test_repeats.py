"""Answers that are given again: byte for byte what the ordinary way gives, and never once anything behind them has changed."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from gunicorn.asgi.protocol import ASGIProtocol

from identity import logs
from identity.app import endpoints
from identity.core.admin import applications as admin_applications
from identity.core.admin import keys, tenants, users
from identity.core.clients import secrets
from identity.errors import Refused
from identity.instruments.counts import TOKENS
from identity.instruments.epochs import Memory
from identity.instruments.limits import Limiter
from identity.runtime import Runtime
from identity.serve import Service
from identity.settings import Settings
from identity.wire import repeats
from identity.wire.exchange import Exchange
from identity.wire.mounts.connections import Connection
from identity.wire.mounts.fastlane import FastLane
from tests.builders import an_application
from tests.core.access.test_epochs import BY, CHANGES, DEEDS, World, other  # noqa: F401 -- `other` is a fixture
from tests.wire.sockets import get, post
from tests.world import FakeClock

_DIFFERS = re.compile(rb"(X-Request-Id|X-RateLimit-Remaining|X-RateLimit-Reset|x-error-id|Date): [^\r]*")
_TOKEN = re.compile(rb"eyJ[\w-]+\.([\w-]+)\.[\w-]+")
_UNTIL_REPEATED = 3  # noted, remembered, made from what is remembered


@pytest.fixture
def backend() -> str:
    """Answers are given again where the databases are on this host."""
    return "sqlite"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, limit_standard="100000/minute", limit_application="100000/minute")


class Transport:
    """A connection from an address of the key pair's network."""

    def __init__(self) -> None:
        self.written = b""

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.9", 40_000) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data


class Speaker:
    """A client of a worker that is this process: what cannot be answered where its bytes arrive, because it must write, is b""."""

    def __init__(self, rt: Runtime) -> None:
        self.lane = FastLane(rt, endpoints(), lambda *_: [])
        ASGIProtocol._check_h1c_protocol_available()
        self._worker = SimpleNamespace(
            cfg=Service(rt.settings).cfg, log=logging.getLogger("test"), asgi=self.lane, alive=True,
            is_draining=False, nr_conns=0, loop=asyncio.new_event_loop(),
        )  # fmt: skip

    def ask(self, request: bytes) -> bytes:
        connection, transport = Connection(self._worker), Transport()
        connection.connection_made(transport)
        connection.data_received(request)
        return transport.written

    def close(self) -> None:
        loop = self._worker.loop
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def truth(rt: Runtime, request: bytes) -> bytes:
    """The answer of a process that remembers nothing."""
    fresh = Speaker(replace(rt, memory=Memory(rt.database, b"another key")))
    try:
        return alike(fresh.ask(request))
    finally:
        fresh.close()


def alike(answer: bytes) -> bytes:
    """An answer without what differs between any two; of a token what it says, but for its id."""
    return _TOKEN.sub(lambda found: _said(found[1]), _DIFFERS.sub(rb"\1: ...", answer))


def _said(payload: bytes) -> bytes:
    said = json.loads(base64.urlsafe_b64decode(payload + b"=="))
    return json.dumps(said | {"jti": "...", "status": "..."}).encode()


def requests_of(world: World) -> dict[str, bytes]:
    """Every kind of request whose answer may be given again."""
    bearer, token, machine = (
        f"Authorization: Bearer {world.all[one].bearer}" for one in ("bearer", "token", "machine")
    )
    pair = (f"api-key: {world.pair.api_key}", f"api-secret: {world.pair.api_secret}")
    basic = base64.b64encode(f"{world.app.client_id}:{world.app.secret}".encode()).decode()
    form = urlencode({"token": world.machine.bearer or ""}).encode()
    grant = b"grant_type=client_credentials&scope=read"
    own = json.dumps({"clientId": world.app.client_id, "secret": world.app.secret}).encode()
    acme = "X-Tenant-Id: acme"
    return {
        "session": get("/session", bearer),
        "session, 100 %": get("/session", bearer, "X-Request-Id: mine", "User-Agent: 100 % %(id)s"),
        "gate by bearer": get("/verify?role=analyst", bearer, acme),
        "gate by token": get("/verify?claims=1", token, acme),
        "gate by pair": get("/verify", *pair, acme),
        "gate by machine": get("/verify?scope=write", machine, acme),
        "pair": get("/keypair", *pair),
        "introspection": post(
            "/oauth/introspect",
            form,
            f"Authorization: Basic {basic}",
            content_type="application/x-www-form-urlencoded",
        ),
        "token by form": post(
            "/oauth/token", grant, f"Authorization: Basic {basic}", content_type="application/x-www-form-urlencoded"
        ),
        "token by document": post("/application/token", own, "Origin: https://app.example"),
    }


@pytest.fixture
def world(rt: Runtime, other: Runtime) -> World:  # noqa: F811 -- the fixture
    return World(rt, other)


@pytest.fixture
def speaker(rt: Runtime) -> Any:
    speaker = Speaker(rt)
    yield speaker
    speaker.close()


def test_an_answer_given_again_is_the_ordinary_one(
    world: World, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(logs, "request", lines.append)
    for name, request in requests_of(world).items():
        ordinary = truth(world.rt, request)
        answers = [speaker.ask(request) for _ in range(_UNTIL_REPEATED)]
        assert {alike(answer) for answer in answers} == {ordinary}, name
        assert ordinary.startswith(b"HTTP/1.1 200 OK"), (name, ordinary)
        with monkeypatch.context() as patched:
            patched.setattr(Exchange, "_pass", lambda *_: pytest.fail("made again"))
            again = [speaker.ask(request) for _ in range(2)]
        assert {alike(answer) for answer in again} == {ordinary}, name
        ids, left = zip(*(varying(answer) for answer in (answers[-1], *again)), strict=True)
        assert len(set(ids)) == (1 if b"mine" in request else 3), name
        assert left == (left[0], left[0] - 1, left[0] - 2), name
        shown = {re.sub(r'"(requestID":"[^"]*|ms":[0-9.]*)', "", line) for line in lines[-3:]}
        assert len(shown) == 1, name


def varying(answer: bytes) -> tuple[bytes, int]:
    return (
        re.findall(rb"X-Request-Id: ([^\r]*)", answer)[0],
        int(re.findall(rb"X-RateLimit-Remaining: ([0-9]*)", answer)[0]),
    )


def test_the_use_of_a_credential_is_noted_however_it_was_answered(
    world: World, speaker: Speaker, clock: FakeClock
) -> None:
    for _ in range(5):
        speaker.ask(requests_of(world)["pair"])
    clock.tick(60)
    world.rt.usage.flush(world.rt.database, clock.now())
    speaker.ask(requests_of(world)["pair"])
    assert set(world.rt.usage._notes.values()) == {clock.now()}
    assert list(world.rt.tallies._counts.values()) == [6]
    token = requests_of(world)["token by form"]
    assert len({speaker.ask(token).partition(b"access_token")[2] for _ in range(6)}) == 6
    assert list(world.rt.tallies._counts.values()) == [6, 6]


def test_no_credential_is_kept(world: World, speaker: Speaker) -> None:
    asked = requests_of(world)
    for request in asked.values():
        for _ in range(_UNTIL_REPEATED + 1):
            speaker.ask(request)
    assert len(speaker.lane.repeats._kept) == len(asked)
    basic = base64.b64encode(f"{world.app.client_id}:{world.app.secret}".encode()).decode()
    held = repr(
        [kept if not hasattr(kept, "exchange") else vars_of(kept) for kept in speaker.lane.repeats._kept.values()]
    )
    for secret in (world.bearer.bearer, world.token.bearer, world.pair.api_secret, world.app.secret, basic):
        assert secret
        assert secret not in held


def vars_of(kept: Any) -> list[object]:
    call = kept.exchange.call
    return [kept.reads, call.request, call.body, call.presented, call.params, call.query, call.origin]


def test_a_token_that_is_given_again_says_how_long_it_still_lives(
    rt: Runtime, speaker: Speaker, clock: FakeClock
) -> None:
    app = an_application(rt, token_seconds=3600, token_reuse_seconds=600)
    own = post("/application/token", json.dumps({"clientId": app.client_id, "secret": app.secret}).encode())
    found = []
    for _ in range(8):
        found.append(speaker.ask(own))
        clock.tick(10)
    bodies = [json.loads(answer.partition(b"\r\n\r\n")[2])["data"] for answer in found]
    assert len({body["accessToken"] for body in bodies}) == 1
    assert [body["expiresIn"] for body in bodies] == [3600 - 10 * count for count in range(8)]
    assert [b"X-Token-Reused: 1" in answer for answer in found] == [False] + [True] * 7
    clock.tick(600)
    assert json.loads(speaker.ask(own).partition(b"\r\n\r\n")[2])["data"]["expiresIn"] == 3600


def test_a_window_that_is_full_refuses_in_the_ordinary_words(rt: Runtime, other: Runtime) -> None:  # noqa: F811
    rt.limiter = Limiter(replace(rt.settings, limit_standard="8/minute"))
    speaker, request = Speaker(rt), requests_of(World(rt, other))["session"]
    answers = [speaker.ask(request) for _ in range(10)]
    assert [answer[9:12] for answer in answers] == [b"200"] * 8 + [b"429"] * 2
    assert b"Retry-After: " in answers[-1]
    speaker.close()


def test_what_any_other_process_does_is_seen_at_the_next_request(rt: Runtime, other: Runtime, speaker: Speaker) -> None:  # noqa: F811
    deeds: dict[str, Callable[[World], object]] = {name: deed for name, (deed, _) in (DEEDS | CHANGES).items()}
    deeds |= {
        "secret removed": lambda w: _remove_secret(w, other),
        "policy set": lambda w: tenants.change_tenant(other, BY, "acme", policy={"requireSecondFactor": True}),
        "claims of another": lambda w: _another_adds_claims(w, other),
    }
    for name in sorted(deeds, key=lambda name: name in ("tenant deleted", "policy set")):
        world = World(rt, other)
        asked = requests_of(world)
        for request in asked.values():
            for _ in range(_UNTIL_REPEATED + 1):
                speaker.ask(request)
        deeds[name](world)
        for kind, request in asked.items():
            assert alike(speaker.ask(request)) == truth(rt, request), (name, kind)


def _remove_secret(world: World, other: Runtime) -> None:  # noqa: F811
    with other.unit(BY.origin) as unit:
        secrets.remove_secret(other, unit, world.app.client_id, world.app.secret_id, actor="test")


def _another_adds_claims(world: World, other: Runtime) -> None:  # noqa: F811
    named = {"audiences": [world.rt.settings.issuer], "token_claims": {"plan": "=gold"}}
    admin_applications.change_application(other, BY, an_application(other).client_id, **named)


def test_nothing_outlives_its_end(world: World, speaker: Speaker, clock: FakeClock) -> None:
    asked = requests_of(world)
    for seconds in (world.rt.settings.session_idle_seconds - 1, 1, 1, 3600, 86_400 * 3):
        for request in asked.values():
            for _ in range(_UNTIL_REPEATED):
                speaker.ask(request)
        clock.tick(seconds)
        for kind, request in asked.items():
            assert alike(speaker.ask(request)) == truth(world.rt, request), (kind, seconds)


def test_any_interleaving_of_deeds_and_requests_is_seen(world: World, speaker: Speaker) -> None:
    chance = random.Random(11)
    other_one = world.other
    deeds: list[Callable[[], object]] = [
        lambda: users.grant_role(other_one, BY, world.user.id, chance.choice(["a", "b"])),
        lambda: users.withdraw_role(other_one, BY, world.user.id, chance.choice(["a", "b"])),
        lambda: users.set_enabled(other_one, BY, world.user.id, enabled=chance.random() < 0.7),
        lambda: tenants.set_member(other_one, BY, "acme", world.user.id, roles=[chance.choice(["x", "y"])]),
        lambda: tenants.remove_member(other_one, BY, "acme", world.user.id),
        lambda: tenants.change_tenant(
            other_one, BY, "acme", policy=chance.choice([{}, {"networks": ["198.51.100.0/24"]}])
        ),
        lambda: admin_applications.change_application(
            other_one, BY, world.app.client_id, enabled=chance.random() < 0.8
        ),
    ]
    asked = requests_of(world)
    for step in range(40):
        with suppress(Refused):
            chance.choice(deeds)()
        for kind, request in asked.items():
            for _ in range(chance.choice([1, 2, 4])):
                answer = alike(speaker.ask(request))
            assert answer == truth(world.rt, request), (step, kind)


def test_few_are_kept(world: World, speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_CAPACITY", 4)
    session = requests_of(world)["session"]
    for number in range(20):
        again = session.replace(b"\r\n\r\n", b"\r\nUser-Agent: %d\r\n\r\n" % number)
        for _ in range(2):
            speaker.ask(again)
        assert len(speaker.lane.repeats._kept) <= 4


def test_what_names_no_end_or_is_refused_is_not_kept(world: World, speaker: Speaker) -> None:
    asked = (
        get("/verify"),
        get("/verify", "Authorization: Bearer ids_nothing"),
        get("/verify?role=none", f"Authorization: Bearer {world.bearer.bearer}", "X-Tenant-Id: acme"),
    )
    for request in asked:
        for _ in range(5):
            speaker.ask(request)
    assert speaker.lane.repeats._kept == {}


def test_a_token_that_is_given_again_costs_no_step_within_a_second(
    rt: Runtime,
    other: Runtime,  # noqa: F811
    speaker: Speaker,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = an_application(rt, token_seconds=3600, token_reuse_seconds=600)
    own = post("/application/token", json.dumps({"clientId": app.client_id, "secret": app.secret}).encode())
    found = [speaker.ask(own) for _ in range(6)]
    steps = 0

    def counted(renewal: Exchange, call: Any) -> Any:
        nonlocal steps
        steps += 1
        return take_step(renewal, call)

    take_step = repeats.Renewal._pass
    monkeypatch.setattr(repeats.Renewal, "_pass", counted)
    found += [speaker.ask(own) for _ in range(5)]
    assert steps == 0
    assert {alike(answer) for answer in found[1:]} == {alike(found[-1])}
    remaining = [int(re.search(rb"X-RateLimit-Remaining: (\d+)", answer)[1]) for answer in found]  # type: ignore[index]
    assert [before - after for before, after in pairwise(remaining)] == [1] * 10
    counts = rt.counts.take()
    assert sum(count for key, count in counts.items() if key[0] == TOKENS and key[1:] == ("again",)) == 10
    assert sum(count for key, count in rt.tallies._counts.items() if key[0].startswith("secret:") and key[-1]) == 11
    clock.tick(1)
    assert b'"expiresIn":3599' in speaker.ask(own)
    assert steps == 1
    # What another process does is seen at the next request, within the same second.
    assert b'"expiresIn":3599' in speaker.ask(own)
    admin_applications.change_application(other, BY, app.client_id, enabled=False)
    assert speaker.ask(own)[9:12] != b"200"


def test_what_is_open_to_all_is_given_again_until_the_ring_turns(
    rt: Runtime, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {path: get(path) for path in ("/.well-known/jwks.json", "/health/live")}
    for path, request in asked.items():
        ordinary = speaker.ask(request)
        assert alike(speaker.ask(request)) == alike(ordinary)
        assert ordinary.startswith(b"HTTP/1.1 200"), path
    assert rt.given_again == 2
    assert not speaker.lane.repeats._kept
    before = speaker.ask(asked["/.well-known/jwks.json"])
    keys.rotate_key(rt, BY)
    after = speaker.ask(asked["/.well-known/jwks.json"])
    assert alike(after) != alike(before)
    assert alike(after) == truth(rt, asked["/.well-known/jwks.json"])
    # It pushes out nothing but its like.
    monkeypatch.setattr(repeats, "_CAPACITY_OF_OPEN", 4)
    for number in range(10):
        speaker.ask(get("/health/live", f"User-Agent: {number}"))
    assert len(speaker.lane.repeats._open) <= 4
