"""A guess as an object: it ends once, whatever becomes of its unit, and nothing but a `Guess` touches its reservation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import select

import identity
from identity.core.proofs import attempts, guesses
from identity.core.proofs.attempts import ACCOUNT, SECOND_FACTOR, Charge, Meter
from identity.core.proofs.guesses import Guess
from identity.core.record import audit
from identity.errors import CONFLICT, INVALID_CODE, UNAVAILABLE, Refused
from identity.runtime import Runtime
from identity.storage import Contention
from tests.builders import a_user
from tests.world import ORIGIN, FakeClock, open_guesses

WHO = Charge(ACCOUNT, "someone")
SECOND = Charge(SECOND_FACTOR, "someone")


def failures(rt: Runtime, charge: Charge = WHO) -> int:
    """How many failures the counter of a charge holds."""
    with rt.database.reading() as session:
        failed = session.scalar(select(Meter.failed).where(Meter.key == charge.key))
    return len(re.findall(r"\d+", failed or ""))


def a_guess(rt: Runtime) -> Guess:
    return Guess(rt, ORIGIN, (WHO,))


@pytest.mark.parametrize(("end", "count"), [("right", 0), ("wrong", 1), ("give_back", 0)])
def test_a_guess_ends_as_it_is_told_and_only_once(rt: Runtime, end: str, count: int) -> None:
    guess = a_guess(rt)
    assert open_guesses(rt)
    with guess.unit() as unit:
        getattr(guess, end)(unit)
    assert (open_guesses(rt), failures(rt)) == ([], count)
    with pytest.raises(RuntimeError), guess.unit():
        pass


@pytest.mark.parametrize("first", ["right", "wrong", "give_back"])
@pytest.mark.parametrize("second", ["right", "wrong", "give_back"])
@pytest.mark.leaves_guesses
def test_a_second_end_undoes_its_unit_and_counts_as_a_failure(
    rt: Runtime, clock: FakeClock, first: str, second: str
) -> None:
    guess = a_guess(rt)
    with pytest.raises(RuntimeError):
        end(guess, first, second)
    assert_abandoned(rt, clock)


@pytest.mark.leaves_guesses
def test_a_path_that_forgets_the_end_fails_loudly_and_its_writes_are_undone(rt: Runtime, clock: FakeClock) -> None:
    guess = a_guess(rt)
    with pytest.raises(RuntimeError, match="without an end"), guess.unit() as unit:
        audit.record(rt, unit, audit.Action.LOGIN_FAILED, actor="nobody")
    assert audit.count(rt, actor="nobody") == 0
    assert_abandoned(rt, clock)


@pytest.mark.leaves_guesses
def test_a_guess_ends_in_its_own_unit_only(rt: Runtime, clock: FakeClock) -> None:
    guess = a_guess(rt)
    with pytest.raises(RuntimeError), rt.unit(ORIGIN) as unit:
        guess.right(unit)
    assert_abandoned(rt, clock)


def end(guess: Guess, *ends: str, then: Exception | None = None) -> None:
    """End it in its unit in these ways, one after the other."""
    with guess.unit() as unit:
        for each in ends:
            getattr(guess, each)(unit)
        if then is not None:
            raise then


def assert_abandoned(rt: Runtime, clock: FakeClock) -> None:
    """The guess is open, and a failure once nobody can still be looking at it."""
    assert open_guesses(rt)
    clock.tick(31)
    end(a_guess(rt), "right")
    assert failures(rt) == 1


def test_a_refusal_that_keeps_its_unit_counts_as_wrong(rt: Runtime) -> None:
    with pytest.raises(Refused, match="INVALID_CODE"), a_guess(rt).unit():
        raise Refused(INVALID_CODE)
    assert (open_guesses(rt), failures(rt)) == ([], 1)


@pytest.mark.parametrize("error", [Refused(CONFLICT), Refused(UNAVAILABLE), Contention()], ids=str)
@pytest.mark.parametrize("ended", [None, "right", "wrong", "give_back"])
def test_what_was_undone_was_told_to_nobody_and_is_given_back(rt: Runtime, error: Exception, ended: str | None) -> None:
    guess = a_guess(rt)
    with pytest.raises(type(error)):
        end(guess, *([ended] if ended else []), then=error)
    assert (open_guesses(rt), failures(rt), len(rt.owed)) == ([], 0, 0)


def test_work_before_the_end_that_is_refused_gives_the_guess_back(rt: Runtime) -> None:
    guess = a_guess(rt)
    with guess.held():
        pass
    assert open_guesses(rt), "work that went well leaves it open"
    with pytest.raises(Refused), guess.held():
        raise Refused(UNAVAILABLE)
    assert (open_guesses(rt), failures(rt)) == ([], 0)


@pytest.mark.parametrize(
    ("end", "options", "first", "second"),
    [
        ("right", {}, 0, 0),
        ("give_back", {}, 0, 0),
        ("wrong", {}, 1, 1),
        ("wrong", {"second_seen": False}, 1, 0),
    ],
)
def test_a_second_factor_ends_with_the_guess(
    rt: Runtime, end: str, options: dict[str, bool], first: int, second: int
) -> None:
    guess = a_guess(rt)
    guess.add_second_factor("someone")
    with guess.unit() as unit:
        getattr(guess, end)(unit, **options)
    assert (open_guesses(rt), failures(rt), failures(rt, SECOND)) == ([], first, second)


def test_a_day_of_wrong_second_factors_gives_the_first_back(rt: Runtime) -> None:
    with rt.unit(ORIGIN) as unit:
        for _ in range(SECOND_FACTOR.amount):
            attempts.fail(rt, unit, (SECOND,))
    guess = a_guess(rt)
    with pytest.raises(Refused, match="LOCKED_OUT|RATE_LIMITED"):
        guess.add_second_factor("someone")
    assert (open_guesses(rt), failures(rt)) == ([], 0)


def test_a_wrong_password_counts_even_where_its_unit_fails(
    rt: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = a_user(rt)
    guess = guesses.at_password(rt, ORIGIN, ada.id)
    with monkeypatch.context() as broken:
        broken.setattr(audit, "record", lambda *_, **__: (_ for _ in ()).throw(Refused(UNAVAILABLE)))
        with pytest.raises(Refused, match="UNAVAILABLE"):
            guess.refuse(actor="", detail="wrong")
    assert open_guesses(rt)
    assert not rt.owed
    clock.tick(31)
    guess = guesses.at_password(rt, ORIGIN, ada.id)
    end(guess, "right")
    assert failures(rt, Charge(ACCOUNT, f"user:{ada.id}")) == 1


def test_nothing_but_a_guess_touches_reservations() -> None:
    home = Path(identity.__file__).parent
    found = {
        str(path.relative_to(home))
        for path in home.rglob("*.py")
        if re.search(r"\battempts\.(reserve|settle|owe|Reservation)\b|import .*\bReservation\b", path.read_text())
    }
    assert found == {"core/proofs/guesses.py"}
