"""The encoding of status lists against the draft's own vectors, and how places are given out."""

from __future__ import annotations

import base64
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select, update

from identity.ambient import later
from identity.app import create_runtime
from identity.core.tokens import status
from identity.errors import UNAVAILABLE, Refused
from identity.instruments import statuslists
from identity.instruments.statuslists import PLACES, Places, StatusEntry, StatusList
from identity.runtime import Runtime
from identity.storage import Unit
from tests.stranger import value_at
from tests.world import ORIGIN, FakeClock

# Appendix "Test vectors for Status List encoding" of draft-ietf-oauth-status-list: 2^20 places, all valid but these.
ONE_BIT = {
    0: 1,
    1993: 1,
    25460: 1,
    159495: 1,
    495669: 1,
    554353: 1,
    645645: 1,
    723232: 1,
    854545: 1,
    934534: 1,
    1000345: 1,
}
ONE_BIT_LST = (
    "eNrt3AENwCAMAEGogklACtKQPg9LugC9k_ACvreiogE"
    "AAKkeCQAAAAAAAAAAAAAAAAAAAIBylgQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAXG9IAAAAAAAAAPwsJAAAAAAAAAAAAAAAvhsSAAAAAAAAAAA"
    "A7KpLAAAAAAAAAAAAAAAAAAAAAJsLCQAAAAAAAAAAADjelAAAAAAAAAAAKjDMAQAAA"
    "ACAZC8L2AEb"
)
TWO_BITS = {
    0: 1,
    1993: 2,
    25460: 1,
    159495: 3,
    495669: 1,
    554353: 1,
    645645: 2,
    723232: 1,
    854545: 1,
    934534: 2,
    1000345: 3,
}
TWO_BITS_LST = (
    "eNrt2zENACEQAEEuoaBABP5VIO01fCjIHTMStt9ovGV"
    "IAAAAAABAbiEBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEB5WwIAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAID0ugQAAAAAAAAAAAAAAAAAQG12SgAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAOCSIQEAAAAAAAAAAAAAAAAAAAAAAAD8ExIAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAwJEuAQAAAAAAAAAAAAAAAAAAAAAAAMB9S"
    "wIAAAAAAAAAAAAAAAAAAACoYUoAAAAAAAAAAAAAAEBqH81gAQw"
)


@pytest.mark.parametrize(("lst", "bits", "expected"), [(ONE_BIT_LST, 1, ONE_BIT), (TWO_BITS_LST, 2, TWO_BITS)])
def test_the_tests_own_reader_reads_the_vectors_of_the_draft(lst: str, bits: int, expected: dict[int, int]) -> None:
    around = {index + step for index in expected for step in (-1, 0, 1)} & set(range(PLACES)) | {PLACES - 1}
    assert {index: value for index in around if (value := value_at(lst, bits, index))} == expected


def test_we_write_the_vector_of_the_draft() -> None:
    places = Places()
    for index, value in TWO_BITS.items():
        places.set(index, value)
    assert places.encode() == TWO_BITS_LST


def test_a_place_can_be_set_again_and_touches_no_neighbour() -> None:
    places = Places()
    for index in range(8):
        places.set(index, 3)
    places.set(5, 1)
    assert [places.get(index) for index in range(9)] == [3, 3, 3, 3, 3, 1, 3, 3, 0]
    assert [value_at(places.encode(), 2, index) for index in range(9)] == [3, 3, 3, 3, 3, 1, 3, 3, 0]


def test_no_place_is_given_out_twice(rt: Runtime) -> None:
    other = create_runtime(rt.settings, clock=rt.clock, migrate=False)

    def some(one: Runtime) -> list[int]:
        taken = []
        for _ in range(60):
            with one.unit(ORIGIN) as unit:
                taken.append(status.take(one, unit))
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [place for places in pool.map(some, [rt, rt, other, other]) for place in places]
    other.close()
    assert len(set(taken)) == len(taken) == 240


def test_what_was_leased_in_a_unit_that_is_undone_is_nobodys(rt: Runtime) -> None:
    with pytest.raises(Refused), rt.unit(ORIGIN) as unit:  # noqa: PT012 -- the unit is what is undone
        status.take(rt, unit)
        raise Refused(UNAVAILABLE)
    with rt.unit(ORIGIN) as unit:
        place = status.take(rt, unit)
    with rt.database.reading() as session:
        row = session.scalars(select(StatusList).order_by(StatusList.id.desc())).first()
        assert row is not None
        assert place < row.id * PLACES + row.used


def test_giving_out_costs_a_write_once_in_thousands_of_times(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    lease = rt.status_lists.lease

    def counted(unit: Unit, count: int) -> range:
        writes.append(count)
        return lease(unit, count)

    monkeypatch.setattr(rt.status_lists, "lease", counted)
    for _ in range(6):
        with rt.unit(ORIGIN) as unit:
            status.take(rt, unit)
        with rt.unit(ORIGIN) as unit:
            for _ in range(writes[-1] - 1):
                status.take(rt, unit)
    assert writes == [16, 64, 256, 1024, 4096, 4096], "a command that signs one user in wastes few"


def test_a_list_that_is_full_is_followed_by_the_next(rt: Runtime) -> None:
    with rt.unit(ORIGIN) as unit:
        status.take(rt, unit)
        unit.execute(update(StatusList).values(used=PLACES - 10))
    with rt.unit(ORIGIN) as unit:
        assert status.take_several(rt, unit, 10)[-1] == PLACES - 1
        assert status.take_several(rt, unit, 11) == range(PLACES, PLACES + 11)
    assert [uri.rpartition("/")[2] for uri in rt.status_lists.uris()] == ["0", "1"]


def test_places_that_lay_unused_for_a_day_are_not_given_out(rt: Runtime, clock: FakeClock) -> None:
    with rt.unit(ORIGIN) as unit:
        first = status.take(rt, unit)
    with rt.unit(ORIGIN) as unit:
        assert status.take(rt, unit) == first + 1
    clock.tick(86_400)
    with rt.unit(ORIGIN) as unit:
        assert status.take(rt, unit) > first + 2


# What is signed.


def enter(rt: Runtime, *rows: tuple[int, int], seconds: float = 7000, age: float = 0, token_id: str = "") -> None:
    with rt.unit(ORIGIN) as unit:
        for place, value in rows:
            dates = {"entered_at": later(unit.now, -age), "expires_at": later(unit.now, seconds)}
            unit.execute(insert(StatusEntry).values(place=place, value=value, token_id=token_id, **dates))


def signed(rt: Runtime, number: int = 0) -> dict[str, object]:
    found = rt.status_lists.find(number)
    assert found is not None
    payload = found.body.split(b".")[1]
    claims: dict[str, object] = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    return claims


@pytest.fixture
def listed(rt: Runtime) -> Runtime:
    """A service that has a list."""
    with rt.unit(ORIGIN) as unit:
        status.take(rt, unit)
    return rt


def test_every_process_signs_the_same_bytes(listed: Runtime) -> None:
    enter(listed, (5, 1), (6, 3))
    other = create_runtime(listed.settings, clock=listed.clock, migrate=False)
    assert listed.status_lists.find(0) == other.status_lists.find(0)
    other.close()


def test_a_copy_is_signed_once_in_a_ttl_and_once_for_a_change(listed: Runtime, clock: FakeClock) -> None:
    copies = []
    for _ in range(3):
        copies.append(listed.status_lists.find(0))
        listed.status_lists.refresh()
    assert len({id(copy) for copy in copies}) == 1
    enter(listed, (5, 1))
    listed.status_lists.refresh()
    changed = listed.status_lists.find(0)
    assert changed is not copies[0]
    clock.tick(listed.settings.status_ttl_seconds)
    listed.status_lists.refresh()
    again = listed.status_lists.find(0)
    assert again is not None
    assert changed is not None
    assert again.body != changed.body, "it says when it was made"
    assert signed(listed)["iat"] % listed.settings.status_ttl_seconds == 0  # type: ignore[operator]


def test_a_place_that_is_invalid_for_good_stays_it(listed: Runtime) -> None:
    enter(listed, (5, 3), (5, 1), (6, 1), (6, 3))
    lst = signed(listed)["status_list"]["lst"]  # type: ignore[index]
    assert [value_at(lst, 2, index) for index in (4, 5, 6)] == [0, 1, 1]


def test_an_entry_that_is_committed_late_is_seen_all_the_same(listed: Runtime, clock: FakeClock) -> None:
    # It is dated when its transaction begins, by a host whose clock may be slow.
    listed.status_lists.refresh()
    clock.tick(175)
    listed.status_lists.refresh()
    enter(listed, (7, 1), age=179)
    listed.status_lists.refresh()
    lst = signed(listed)["status_list"]["lst"]  # type: ignore[index]
    assert value_at(lst, 2, 7) == 1


def test_an_entry_of_a_host_whose_clock_is_wrong_is_seen_within_five_minutes(
    listed: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(statuslists.time, "monotonic", lambda: now)
    listed.status_lists.refresh()
    enter(listed, (7, 1), age=3000)
    for seconds, value in ((299, 0), (1, 1)):
        now += seconds
        listed.status_lists.refresh()
        lst = signed(listed)["status_list"]["lst"]  # type: ignore[index]
        assert value_at(lst, 2, 7) == value


def test_what_has_expired_leaves_the_list_and_then_the_database(listed: Runtime, clock: FakeClock) -> None:
    enter(listed, (5, 1), seconds=60)
    enter(listed, (6, 1), seconds=7200)
    enter(listed, (7, 1), seconds=60, token_id="a-jti")
    assert signed(listed)["revoked_tokens"] == ["a-jti"]
    clock.tick(3600)
    lst = signed(listed)["status_list"]["lst"]  # type: ignore[index]
    assert [value_at(lst, 2, index) for index in (5, 6)] == [0, 1]
    assert "revoked_tokens" not in signed(listed)
    with listed.unit(ORIGIN) as unit:
        assert status.purge(listed, unit) == 2
        assert status.purge(listed, unit) == 0
    with listed.database.reading() as session:
        assert session.scalars(select(StatusEntry.place)).all() == [6]


def test_what_is_known_serves_on_while_the_database_is_down(
    listed: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(listed, (5, 1))
    known = listed.status_lists.find(0)

    def down(*_: object, **__: object) -> None:
        raise Refused(UNAVAILABLE)

    monkeypatch.setattr(listed.database, "rows", down)
    for _ in range(5):
        clock.tick(listed.settings.status_ttl_seconds)
        assert listed.status_lists.find(0) is known, "not signed anew: nobody knows whether it still holds"
    with pytest.raises(Refused):
        listed.status_lists.refresh()
    assert listed.status_lists.find(0) is known


def test_a_list_is_signed_anew_when_its_key_is_withdrawn(listed: Runtime) -> None:
    before = listed.status_lists.find(0)
    listed.ring.ensure_standby()
    with listed.unit(ORIGIN) as unit:
        listed.ring.revoke(unit, listed.ring.active_kid(listed.clock.now()))
    after = listed.status_lists.find(0)
    assert before is not None
    assert after is not None
    assert before.body.split(b".")[0] != after.body.split(b".")[0]


def test_a_day_of_a_million_sessions_is_one_small_list_that_is_quickly_made(listed: Runtime) -> None:
    # 10,000 of them have ended, here and there. Processor time, of this process: other work on the machine is not the question.
    ended = random.Random(7).sample(range(PLACES), 10_000)
    with listed.unit(ORIGIN) as unit:
        dates = {"entered_at": unit.now, "expires_at": later(unit.now, 86_400)}
        rows = [{"place": place, "value": 1, "token_id": "", **dates} for place in ended]
        unit.session.execute(insert(StatusEntry.__table__), rows)
    fresh = create_runtime(listed.settings, clock=listed.clock, migrate=False)
    started = time.thread_time()
    found = fresh.status_lists.find(0)
    spent = time.thread_time() - started
    fresh.close()
    assert found is not None
    assert len(found.body) < 60_000
    assert spent < 0.3
    claims = json.loads(base64.urlsafe_b64decode(found.body.split(b".")[1] + b"=="))
    assert all(value_at(claims["status_list"]["lst"], 2, place) == 1 for place in ended[:20])
