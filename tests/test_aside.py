"""Errands: on an event loop they find what a thread would, hold nobody up, and leave to a thread whatever they must not wait for."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop
from sqlalchemy import bindparam, func, select

from identity import aside
from identity.aside import Channels, Elsewhere, Errands
from identity.core.access import callers
from identity.core.access.callers import Presented
from identity.core.people.accounts import User
from identity.errors import RATE_LIMITED, UNAVAILABLE, Refused
from identity.instruments.limits import Policy
from identity.instruments.resp import Calls
from identity.lanes import LANES
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Prepared
from tests.builders import a_session, a_token, a_user
from tests.conftest import fresh_database, the_valkey
from tests.world import ORIGIN, fast_settings

_ALIAS = Prepared(select(User.alias).where(User.id == bindparam("id")))
_SLEEP = Prepared(select(func.pg_sleep(bindparam("seconds"))))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return fast_settings(keys_dir=tmp_path / "keys", **fresh_database("postgresql", tmp_path))


def on_a_loop(rt: Runtime, *rounds: Callable[[], Any]) -> list[Any]:
    """What each piece of work returned or raised, all begun at once on one loop with open connections."""

    async def run() -> list[Any]:
        await opened(rt)
        return await begun(*rounds)

    return asyncio.run(run())


async def opened(rt: Runtime) -> None:
    """The loop serves, and its connections are open."""
    loop = asyncio.get_running_loop()
    assert rt.database.serve_aside(loop)
    rt.limiter.serve_aside(loop)
    await until_open(*channels_of(rt))


def channels_of(rt: Runtime) -> tuple[Channels, Channels]:
    lanes, calls = rt.database._lanes, rt.limiter.storage._calls  # type: ignore[union-attr]
    assert lanes is not None
    assert calls is not None
    return lanes, calls


async def until_open(*all_channels: Channels) -> None:
    """A loss is noticed when somebody asks; who asks too early goes elsewhere."""
    for channels in all_channels:
        for _ in range(500):
            try:
                channels.choose()
            except Elsewhere:
                pass
            else:
                if len(channels._open) == channels._count:
                    break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("no connection was opened")


async def begun(*works: Callable[[], Any]) -> list[Any]:
    errands, found = Errands(), [asyncio.get_running_loop().create_future() for _ in works]

    def kept(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as exc:  # noqa: BLE001 -- the test looks at it
            return exc

    for work, result in zip(works, found, strict=True):
        errands.run(lambda work=work: kept(work), result.set_result)
    return await asyncio.wait_for(asyncio.gather(*found), 20)


def test_an_errand_finds_what_a_thread_finds(rt: Runtime) -> None:
    ada = a_user(rt, tenants={"acme-bank": ("analyst",)})
    opened_session, token = a_session(rt, ada), a_token(rt, ada)
    assert opened_session.bearer is not None
    asked = [Presented(opened_session.bearer.reveal()), Presented(token)]
    works = [lambda presented=presented: callers.read(rt, ORIGIN, presented) for presented in asked]
    assert on_a_loop(rt, *works) == [work() for work in works]


def test_each_of_many_errands_gets_its_own_answer(rt: Runtime) -> None:
    people = [a_user(rt) for _ in range(12)]
    ids = [people[number % 12].id for number in range(2 * 32)] + ["nobody"]

    def alias(user_id: str) -> Any:
        return rt.database.row(_ALIAS, id=user_id)

    found = on_a_loop(rt, *[lambda user_id=user_id: (alias(user_id), alias(user_id)) for user_id in ids[:-1]])
    assert found == [(alias(user_id), alias(user_id)) for user_id in ids[:-1]]
    assert on_a_loop(rt, lambda: alias("nobody"), lambda: alias("'; --\\ \u00e9")) == [None, None]
    # One more than can wait goes to a thread, and so does a value that PostgreSQL cannot hold.
    assert isinstance(on_a_loop(rt, *[lambda user_id=user_id: alias(user_id) for user_id in ids])[-1], Elsewhere)
    assert isinstance(on_a_loop(rt, lambda: alias("\0"))[0], Elsewhere)


def test_errands_share_a_window_exactly(rt: Runtime) -> None:
    hits = on_a_loop(rt, *[lambda: rt.limiter.hit(Policy.STANDARD, "u", budget="20/minute") for _ in range(30)])
    refused = [hit for hit in hits if isinstance(hit, Refused)]
    assert sorted(hit.remaining for hit in hits if not isinstance(hit, Refused)) == list(range(20))
    assert [one.problem for one in refused] == [RATE_LIMITED] * 10


def test_what_a_loop_must_not_wait_for_is_left_to_a_thread(rt: Runtime) -> None:
    def a_unit() -> None:
        with rt.unit(ORIGIN):
            raise AssertionError("never entered")

    def the_orm() -> None:
        with rt.database.reading():
            raise AssertionError("never entered")

    found = on_a_loop(rt, a_unit, the_orm, rt.ring.load)
    assert [type(one) for one in found] == [Elsewhere] * 3
    a_user(rt)  # A thread may.


def test_who_waits_in_a_lost_connection_goes_elsewhere_and_it_is_replaced(rt: Runtime) -> None:
    async def run() -> tuple[list[Any], list[Any]]:
        await opened(rt)
        asleep = asyncio.ensure_future(begun(*[lambda: rt.database.row(_SLEEP, seconds=5.0)] * 4))
        await asyncio.sleep(0.2)
        rt.database.cut()  # As `follow` does when the name leads elsewhere.
        lost = await asleep
        redis.Redis.from_url(the_valkey().url).script_flush()
        lost += await begun(lambda: rt.limiter.hit(Policy.STANDARD, "u", budget="9/minute"))
        await until_open(*channels_of(rt))
        return lost, await begun(
            lambda: rt.database.row(_SLEEP, seconds=0.0),
            lambda: rt.limiter.hit(Policy.STANDARD, "v", budget="9/minute"),
        )

    began = time.monotonic()
    lost, after = asyncio.run(run())
    assert [type(one) for one in lost] == [Elsewhere] * 5
    assert not any(isinstance(one, Exception) for one in after)
    assert time.monotonic() - began < 4


def test_a_server_that_does_not_answer_holds_up_nobody_else(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity.lanes._PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr("identity.instruments.resp._PATIENCE_SECONDS", 0.4)

    async def run() -> tuple[list[Any], list[Any]]:
        await opened(rt)
        asleep = asyncio.ensure_future(begun(lambda: rt.database.row(_SLEEP, seconds=3.0)))
        await asyncio.sleep(0)
        beside = await begun(*[lambda: rt.database.row(_SLEEP, seconds=0.0)] * (LANES - 1))
        assert not asleep.done()
        redis.Redis.from_url(the_valkey().url).client_pause(1500)
        uncounted = await begun(lambda: rt.limiter.hit(Policy.STANDARD, "u", budget="9/minute"))
        redis.Redis.from_url(the_valkey().url).client_unpause()
        return beside, await asleep + uncounted

    beside, late = asyncio.run(run())
    assert not any(isinstance(one, Exception) for one in beside)
    assert [one.problem for one in late] == [UNAVAILABLE] * 2


def test_a_pooler_keeps_no_statement_prepared_so_threads_serve(settings: Settings) -> None:
    pooled = dataclasses.replace(settings, database_pooler="transaction")
    from identity.app import create_runtime

    rt = create_runtime(pooled, migrate=False)

    async def run() -> bool:
        return rt.database.serve_aside(asyncio.get_running_loop())

    assert not asyncio.run(run())
    rt.close()


def test_an_errand_that_is_done_does_the_next_work() -> None:
    errands, done = Errands(), []
    for number in range(3):
        errands.run(lambda number=number: (number, aside.is_errand()), done.append)
    assert done == [(0, True), (1, True), (2, True)]
    assert not aside.is_errand()
    assert len(errands._idle) == 1


def a_channel(loop: asyncio.AbstractEventLoop) -> tuple[Calls, socket.socket]:
    """One over TCP to a server that this test plays."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plug = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return Calls(loop, plug, "0" * 40, plug.close), server


def test_an_errand_that_loses_a_connection_leaves_nobody_behind() -> None:
    async def run() -> list[Any]:
        calls, server = a_channel(asyncio.get_running_loop())

        def loses() -> str:
            calls.lose(Elsewhere)
            return "goes on"

        with server:
            return await begun(lambda: calls.call("k", 1, 1), lambda: calls.call("k", 1, 1), loses)

    first, second, third = uvloop.run(run())
    assert [type(first), type(second), third] == [Elsewhere, Elsewhere, "goes on"]


def test_a_connection_that_cannot_be_watched_is_closed_and_not_made_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made.append(socket.create_connection(listener.getsockname()))
        return made[-1]

    def full(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        channels = Channels(loop, 1, connect, lambda loop, plug: Calls(loop, plug, "0" * 40, plug.close))
        for _ in range(20):
            with pytest.raises(Elsewhere):
                channels.choose()
            await asyncio.sleep(0.01)

    monkeypatch.setattr(os, "dup", full)
    asyncio.run(run())
    assert [plug.fileno() for plug in made] == [-1]


@pytest.mark.parametrize("run_on", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_a_connection_that_is_reset_within_an_answer_is_noticed_soon(run_on: Callable[[Any], Any]) -> None:
    async def run() -> list[Any]:
        calls, server = a_channel(asyncio.get_running_loop())
        asked = asyncio.ensure_future(begun(lambda: calls.call("k", 1, 1)))
        await asyncio.sleep(0.05)
        server.sendall(b"*4\r\n:1\r\n$17\r\n")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        return await asyncio.wait_for(asked, 0.8)  # Before its patience is over.

    assert [type(one) for one in run_on(run())] == [Elsewhere]
