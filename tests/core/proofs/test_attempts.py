"""Attempt budgets: exact at their borders, shared by everything that names an account, kept under parallel guessing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from identity.ambient import Origin
from identity.core import upkeep
from identity.core.clients import secrets
from identity.core.proofs import attempts, machines
from identity.core.proofs.attempts import (
    ACCOUNT,
    ACCOUNT_AND_ADDRESS,
    ADDRESS,
    Budget,
    Charge,
    Meter,
)
from identity.core.signin import password_proof
from identity.errors import UNAVAILABLE, Refused
from identity.instruments.counts import LOCKOUTS
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import PASSWORD, Person, a_user, an_application
from tests.world import ORIGIN, FakeClock, Web

SMALL = Budget("small", 3, 300)


def from_address(number: int) -> Origin:
    return ORIGIN._replace(address=f"198.51.{number // 250}.{number % 250}")


def guess(rt: Runtime, identifier: str, password: str = "wrong", origin: Origin = ORIGIN) -> str:
    """How a login attempt ends."""
    try:
        proof = password_proof.check_password(rt, origin, identifier, password)
    except Refused as refused:
        return refused.problem.code
    password_proof.waste(proof)
    return "right"


def fail(rt: Runtime, charge: Charge, times: int = 1) -> None:
    for _ in range(times):
        reservation = attempts.reserve(rt, ORIGIN, (charge,))
        with rt.unit(ORIGIN) as unit:
            attempts.settle(unit, failed=[reservation])


# The budgets and their borders.


@pytest.mark.parametrize(
    "budget",
    [ACCOUNT_AND_ADDRESS, ACCOUNT, ADDRESS, attempts.SECOND_FACTOR],
    ids=lambda budget: budget.name,
)
def test_a_budget_holds_exactly_its_amount_in_its_time(rt: Runtime, clock: FakeClock, budget: Budget) -> None:
    charge = Charge(budget, "someone")
    fail(rt, charge)
    clock.tick(1)
    fail(rt, charge, budget.amount - 1)
    for reads_only in (True, False):
        with pytest.raises(Refused) as caught:
            attempts.check(rt, (charge,)) if reads_only else fail(rt, charge)
        assert caught.value.problem.code == "RATE_LIMITED"
        assert caught.value.retry_after_seconds == budget.seconds - 1
    clock.tick(budget.seconds - 1.001)
    with pytest.raises(Refused):
        fail(rt, charge)
    clock.tick(0.001)
    fail(rt, charge)
    with pytest.raises(Refused):
        fail(rt, charge)


def test_the_budgets_are_those_of_the_contract() -> None:
    rows = [(budget.amount, budget.seconds) for budget in (ACCOUNT_AND_ADDRESS, ACCOUNT, ADDRESS)]
    assert rows == [(5, 300), (50, 300), (100, 300)]
    machine = [(budget.amount, budget.seconds) for budget in (machines.NAME_AND_ADDRESS, machines.ADDRESS)]
    assert machine == [(20, 300), (100, 300)]
    assert (attempts.SECOND_FACTOR.amount, attempts.SECOND_FACTOR.seconds) == (100, 86_400)


def test_five_failures_lock_an_account_for_one_address_only(rt: Runtime) -> None:
    ada = a_user(rt)
    assert [guess(rt, ada.email) for _ in range(6)] == ["INVALID_CREDENTIALS"] * 5 + ["RATE_LIMITED"]
    assert guess(rt, ada.email, ada.password) == "RATE_LIMITED", "a right password during the lockout is refused too"
    assert guess(rt, ada.email, ada.password, from_address(1)) == "right"


def test_fifty_failures_from_anywhere_lock_an_account(rt: Runtime) -> None:
    # Row 45: the limit of an account holds over any number of addresses.
    ada = a_user(rt)
    ends = Counter(guess(rt, ada.email, origin=from_address(number)) for number in range(60))
    assert ends == {"INVALID_CREDENTIALS": 50, "RATE_LIMITED": 10}
    assert guess(rt, ada.alias, ada.password, from_address(200)) == "RATE_LIMITED"


def test_a_hundred_failures_lock_an_address(rt: Runtime) -> None:
    ada = a_user(rt)
    ends = Counter(guess(rt, f"nobody{number}@acme.example") for number in range(105))
    assert ends == {"INVALID_CREDENTIALS": 100, "RATE_LIMITED": 5}
    assert guess(rt, ada.email, ada.password) == "RATE_LIMITED"
    assert guess(rt, ada.email, ada.password, from_address(1)) == "right"


def test_twenty_failures_lock_a_machine_for_one_address(rt: Runtime) -> None:
    feed = an_application(rt)

    def ends(secret: str, origin: Origin = ORIGIN, client_id: str = feed.client_id) -> str:
        try:
            secrets.authenticate(rt, origin, client_id, secret)
        except Refused as refused:
            return refused.problem.code
        return "right"

    assert [ends("wrong") for _ in range(21)] == ["INVALID_CREDENTIALS"] * 20 + ["RATE_LIMITED"]
    assert ends(feed.secret) == "RATE_LIMITED"
    assert ends(feed.secret, client_id=feed.client_id.upper()) == "RATE_LIMITED"
    assert ends(feed.secret, from_address(1)) == "right"


def test_an_ipv6_host_does_not_escape_by_its_other_addresses(rt: Runtime) -> None:
    ada = a_user(rt)
    addresses = [ORIGIN._replace(address=f"2001:db8:1:1::{number:x}") for number in range(1, 7)]
    assert [guess(rt, ada.email, origin=origin) for origin in addresses][-1] == "RATE_LIMITED"
    assert guess(rt, ada.email, ada.password, ORIGIN._replace(address="2001:db8:1:2::1")) == "right"


def test_right_passwords_cost_no_budget(rt: Runtime) -> None:
    ada = a_user(rt)
    assert {guess(rt, ada.email, ada.password) for _ in range(12)} == {"right"}
    assert guess(rt, ada.email) == "INVALID_CREDENTIALS"


def test_a_right_password_does_not_clear_the_failures(rt: Runtime) -> None:
    ada = a_user(rt)
    for _ in range(4):
        guess(rt, ada.email)
    assert guess(rt, ada.email, ada.password) == "right"
    assert [guess(rt, ada.email) for _ in range(2)] == ["INVALID_CREDENTIALS", "RATE_LIMITED"]


def test_live_sessions_go_on_during_a_lockout(web: Web) -> None:
    # Row 36: whoever guesses at a victim cannot put them out.
    ada = a_user(web.rt)
    token = web.post("/user/token", {"email": ada.email, "password": ada.password}).json["data"]["accessToken"]
    for _ in range(6):
        web.post("/user/token", {"email": ada.email, "password": "wrong"})
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 429
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200


def test_a_lockout_is_counted_when_it_begins_also_where_nothing_was_reserved(rt: Runtime) -> None:
    counted = []
    for _ in range(SMALL.amount + 1):
        with rt.unit(ORIGIN) as unit:
            attempts.fail(rt, unit, (Charge(SMALL, "links"),))
        counted.append(rt.counts.take()[LOCKOUTS,])
    assert counted == [0, 0, 1, 0]


# Unknown accounts look alike (row 35).


def test_a_lockout_begins_for_unknown_accounts_as_for_known_ones(web: Web) -> None:
    ada, off, bare = a_user(web.rt), a_user(web.rt, enabled=False), a_user(web.rt, password=None)
    told = []
    for identifier in (ada.email, off.email, bare.email, "nobody@acme.example", "nobody", "\u2713 no name at all"):
        answers = [web.post("/user/token", {"email": identifier, "password": "wrong"}) for _ in range(7)]
        own = ("X-Request-Id", "x-error-id", "Date")
        told.append([(a.status_code, a.get_data(), [h for h in a.headers if h[0] not in own]) for a in answers])
    assert [status for status, _, _ in told[0]] == [401] * 5 + [429] * 2
    assert all(each == told[0] for each in told)


# Parallel guesses.


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Patient, so that a busy machine is not taken for a lockout."""
    return replace(settings, hash_wait_seconds=60)


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_parallel_wrong_guesses_never_exceed_a_budget(
    rt: Runtime, crowd: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Row 38: what counts is how many guesses were evaluated, not how many were refused as wrong.
    ada = a_user(rt)
    evaluated = Counter[str]()
    verify = rt.passwords.verify
    lock = threading.Lock()

    def counting(stored: str | None, password: str) -> bool:
        with lock:
            evaluated["all"] += 1
        return verify(stored, password)

    monkeypatch.setattr(rt.passwords, "verify", counting)
    ends = Counter(crowd.map(lambda _: guess(rt, ada.email), range(60)))
    assert evaluated["all"] == 5
    assert ends == {"INVALID_CREDENTIALS": 5, "RATE_LIMITED": 55}


def test_parallel_guesses_from_many_addresses_share_the_account(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    ada = a_user(rt)
    ends = Counter(crowd.map(lambda number: guess(rt, ada.email, origin=from_address(number)), range(80)))
    assert ends == {"INVALID_CREDENTIALS": 50, "RATE_LIMITED": 30}


def test_parallel_right_passwords_are_never_locked_out(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    ada = a_user(rt)
    for _ in range(4):
        guess(rt, ada.email)
    assert set(crowd.map(lambda _: guess(rt, ada.email, ada.password), range(24))) == {"right"}


def test_parallel_guesses_at_different_accounts_all_end(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    people = [a_user(rt) for _ in range(8)]

    def one(number: int) -> str:
        person: Person = people[number % 8]
        return guess(rt, person.email, PASSWORD if number % 3 else "wrong")

    ends = Counter(crowd.map(one, range(48)))
    assert set(ends) == {"right", "INVALID_CREDENTIALS"}


# Guesses whose process died.


@pytest.mark.leaves_guesses
def test_a_guess_under_way_counts_until_it_ends(rt: Runtime) -> None:
    rt.settings = replace(rt.settings, hash_wait_seconds=0)
    charge = Charge(SMALL, "someone")
    held = [attempts.reserve(rt, ORIGIN, (charge,)) for _ in range(3)]
    with pytest.raises(Refused) as caught:
        attempts.reserve(rt, ORIGIN, (charge,))
    assert caught.value.problem.code == "UNAVAILABLE", "busy, not locked out: nobody has failed yet"
    with rt.unit(ORIGIN) as unit:
        attempts.settle(unit, forgotten=[held[0]])
    attempts.reserve(rt, ORIGIN, (charge,))


@pytest.mark.leaves_guesses
@pytest.mark.parametrize(("seconds", "code"), [(29, "UNAVAILABLE"), (30, "UNAVAILABLE"), (31, "RATE_LIMITED")])
def test_an_abandoned_guess_becomes_a_failure(rt: Runtime, clock: FakeClock, seconds: int, code: str) -> None:
    rt.settings = replace(rt.settings, hash_wait_seconds=0)
    charge = Charge(SMALL, "someone")
    for _ in range(3):
        attempts.reserve(rt, ORIGIN, (charge,))
    clock.tick(seconds)
    with pytest.raises(Refused) as caught:
        attempts.reserve(rt, ORIGIN, (charge,))
    assert caught.value.problem.code == code
    clock.tick(300)
    attempts.reserve(rt, ORIGIN, (charge,))


@pytest.mark.leaves_guesses
def test_a_waiting_guess_goes_on_when_the_one_before_it_ends(rt: Runtime) -> None:
    charge = Charge(Budget("one", 1, 300), "someone")
    first = attempts.reserve(rt, ORIGIN, (charge,))

    def refund() -> None:
        with rt.unit(ORIGIN) as unit:
            attempts.settle(unit, forgotten=[first])

    timer = threading.Timer(0.1, refund)
    timer.start()
    assert attempts.reserve(rt, ORIGIN, (charge,))
    timer.join()


# Keeping.


def test_failures_that_no_longer_count_are_not_kept(rt: Runtime, clock: FakeClock) -> None:
    charge = Charge(SMALL, "someone")
    for _ in range(20):
        with rt.unit(ORIGIN) as unit:
            attempts.fail(rt, unit, (charge,))
        clock.tick(200)
    with rt.database.reading() as session:
        assert len(session.get_one(Meter, charge.key).failed) < 60


def test_the_janitor_forgets_only_what_is_over(rt: Runtime, clock: FakeClock) -> None:
    fail(rt, Charge(SMALL, "early"))
    clock.tick(200)
    fail(rt, Charge(SMALL, "late"))
    clock.tick(101)
    with rt.unit(ORIGIN) as unit:
        assert attempts.purge(rt, unit) == 1
    fail(rt, Charge(SMALL, "late"), 2)
    with pytest.raises(Refused):
        fail(rt, Charge(SMALL, "late"))


def test_budgets_of_different_names_and_subjects_never_meet() -> None:
    keys = {Charge(budget, subject).key for budget in (SMALL, ACCOUNT, ADDRESS) for subject in ("a", "b", "a b", "")}
    assert len(keys) == 12


# Outages and clocks.


def test_a_right_guess_that_an_outage_kept_from_its_end_is_given_back(
    rt: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = a_user(rt)
    proofs = [password_proof.check_password(rt, ORIGIN, ada.email, PASSWORD) for _ in range(4)]

    def down(*_: object, **__: object) -> None:
        raise Refused(UNAVAILABLE)

    with monkeypatch.context() as broken:
        broken.setattr(Runtime, "unit", down)
        for proof in proofs:
            with pytest.raises(Refused):
                password_proof.waste(proof)
    # Longer than any guess takes, and somebody asked before what is owed was paid: all of them were taken for abandoned.
    clock.tick(31)
    assert guess(rt, ada.email) == "INVALID_CREDENTIALS"
    assert guess(rt, ada.email, PASSWORD) == "RATE_LIMITED"
    upkeep.write_notes(rt)
    assert guess(rt, ada.email, PASSWORD) == "right"
    assert len(rt.owed) == 0


def test_a_clock_that_is_turned_back_locks_nobody_out_for_longer_than_the_window(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    clock.tick(3_600)
    assert [guess(rt, ada.email) for _ in range(6)][-1] == "RATE_LIMITED"
    clock.tick(-3_600)
    assert guess(rt, ada.email, PASSWORD) == "right"
