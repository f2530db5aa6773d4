"""What happens without anybody asking: leases, the sweep and its backlog, clocks that were ahead."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert

from identity.ambient import later
from identity.app import create_runtime
from identity.core import keeping, upkeep
from identity.core.clients import decoys
from identity.core.proofs.attempts import Meter
from identity.errors import NOT_FOUND, Refused
from identity.runtime import Runtime
from tests.builders import a_token, a_user
from tests.world import ORIGIN, FakeClock, fast_settings


def test_a_lease_that_a_fast_clock_took_is_stale(rt: Runtime, clock: FakeClock) -> None:
    clock.tick(86_400)
    assert upkeep.take_lease(rt, "sweep", 270)
    clock.tick(-86_400)
    assert upkeep.take_lease(rt, "sweep", 270)
    assert not upkeep.take_lease(rt, "sweep", 270)
    clock.tick(270)
    assert upkeep.take_lease(rt, "sweep", 270)


def test_the_sweep_goes_on_until_little_is_left_and_tells_what_is(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    old = later(rt.clock.now(), -10)
    rows = [
        {"key": f"{number:032}".encode(), "failed": "[]", "pending": "{}", "expires_at": old} for number in range(2_500)
    ]
    with rt.unit(ORIGIN) as unit:
        unit.execute(insert(Meter).values(rows))

    def broken(*_: object) -> int:
        raise ValueError("one kind that cannot be swept")

    assert upkeep.backlog(rt.database, rt.settings, rt.clock.now())["proofs.attempts"] == 2_500
    kinds = dict(keeping.keepings()) | {"access.first": keeping.Keeping((), purge=broken)}
    monkeypatch.setattr(upkeep, "keepings", lambda: dict(sorted(kinds.items())))
    upkeep.sweep(rt)
    monkeypatch.undo()
    assert set(upkeep.backlog(rt.database, rt.settings, rt.clock.now()).values()) == {0}


def test_an_outage_is_said_in_one_line_and_ends_in_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rt = create_runtime(fast_settings(database_url=f"sqlite:///{tmp_path}/i.db"))
    stop = threading.Event()
    holder = sqlite3.connect(tmp_path / "i.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    rt.database.outage.began("as if somebody had waited already")  # From then on nobody waits for long.
    told = None
    for _ in range(3):
        with pytest.raises(Refused, match="SQLITE_BUSY") as refused, rt.unit(ORIGIN):
            stop.set()
        assert rt.database.outage.explains(refused.value)
        told = upkeep._tell_outage(rt.database, told)
    assert not stop.is_set()
    assert not rt.database.outage.explains(Refused(NOT_FOUND))
    holder.close()
    with rt.unit(ORIGIN):
        pass
    for _ in range(2):
        told = upkeep._tell_outage(rt.database, told)
    said = [record.getMessage() for record in caplog.records if record.name == "identity.upkeep"]
    assert said == ["the database does not serve", "the database serves again"]
    rt.close()


def test_a_first_start_with_a_clock_ahead_signs_once_the_clock_is_right(tmp_path: Path, clock: FakeClock) -> None:
    clock.tick(86_400)
    rt = create_runtime(fast_settings(database_url=f"sqlite:///{tmp_path}/i.db"), clock=clock)
    ada = a_user(rt)
    clock.tick(-86_400)
    token = a_token(rt, ada)
    assert rt.ring.verify(token)["sub"] == ada.id
    assert rt.ring.is_ready()
    assert [key.state for key in rt.ring.list()].count("active") == 1
    rt.close()


def test_notes_that_cannot_be_written_hold_up_no_others(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def broken(*_given: object) -> None:
        raise ValueError("a note that nobody can write")

    monkeypatch.setattr(decoys, "tell", broken)
    monkeypatch.setattr(rt.explanations, "flush", lambda *_given: written.append("refusals"))
    with pytest.raises(ValueError, match="nobody can write"):
        upkeep.write_notes(rt)
    assert written == ["refusals"]
