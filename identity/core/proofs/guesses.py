"""The right to guess: counted before the guess is looked at, given back if it was right.

A `Guess` is reserved in a unit of its own, carried as one object through whatever the proof takes, and ends once, in the unit that
its `unit` opens: right, wrong, or given back because nothing was looked at. One whose process dies ends as a failure after 30 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from identity.ambient import Origin
from identity.core.proofs import attempts, codes
from identity.core.proofs.attempts import ACCOUNT, ACCOUNT_AND_ADDRESS, ADDRESS, SECOND_FACTOR, Charge, Reservation
from identity.core.proofs.codes import Consumed, Purpose, WrongCode
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import INVALID_CODE, INVALID_CREDENTIALS, Refused
from identity.instruments.counts import LOCKOUTS, LOGINS
from identity.instruments.limits import address_key
from identity.runtime import Runtime
from identity.storage import Contention, Unit


class Guess:
    """One guess, counted until it ends, which it does once: `right`, `wrong` or `give_back`, inside `unit`.

    A path that leaves `unit` without an end is a fault of ours (RuntimeError): its writes are undone, and the guess counts as a failure.
    So is a second end. What is refused with a problem that `keeps_writes`, before the guess ended, counts as wrong; any other refusal
    gives it back, since what was decided was undone and told to nobody.
    """

    __slots__ = ("_first", "_open_in", "_origin", "_over", "_rt", "_second")

    def __init__(self, rt: Runtime, origin: Origin, charges: Sequence[Charge]) -> None:
        """Reserve it, in a unit of its own. Raises what `attempts.reserve` raises: Refused(LOCKED_OUT), Refused(UNAVAILABLE)."""
        self._rt = rt
        self._origin = origin
        self._over = False
        self._open_in: Unit | None = None
        self._second: tuple[Reservation, ...] = ()
        self._first = attempts.reserve(rt, origin, charges)

    def add_second_factor(self, user_id: str) -> None:
        """Guess at the user's second factor as well as at a password, or at a code that anybody may ask for: both end together.

        Raises Refused(LOCKED_OUT) when too many of a day were wrong; this guess is then over, given back.
        """
        with self.held():
            self._second = (attempts.reserve(self._rt, self._origin, (Charge(SECOND_FACTOR, user_id),)),)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around work that comes before the end: when it is refused, or the database fails, the guess is given back."""
        try:
            yield
        except (Refused, Contention) as exc:
            if not (isinstance(exc, Refused) and exc.problem.keeps_writes):
                self._over = True
                attempts.owe(self._rt, self._origin, self._all)
            raise

    @contextmanager
    def unit(self) -> Iterator[Unit]:
        """The unit in which the guess ends, with what a right one brings about."""
        if self._over:
            raise RuntimeError("this guess has ended")
        with self.held(), self._rt.unit(self._origin) as unit:
            self._open_in = unit
            try:
                yield unit
            except Refused as refused:
                if refused.problem.keeps_writes and not self._over:
                    self.wrong(unit)
                raise
            finally:
                self._open_in = None
            if not self._over:
                raise RuntimeError("a guess was left without an end")

    def right(self, unit: Unit) -> None:
        """It was right: it counts nowhere."""
        self._end(unit, forgotten=self._all)

    def wrong(self, unit: Unit, *, second_seen: bool = True) -> None:
        """It was wrong, and so is the second factor's, which is given back where it was not looked at (`second_seen` False)."""
        if second_seen:
            self._end(unit, failed=self._all)
        else:
            self._end(unit, failed=(self._first,), forgotten=self._second)

    def give_back(self, unit: Unit) -> None:
        """Nothing was looked at, or what was right leads nowhere: it counts nowhere."""
        self._end(unit, forgotten=self._all)

    def refuse(self, *, actor: str, detail: str) -> NoReturn:
        """End it as wrong in a unit of its own, and raise Refused(INVALID_CREDENTIALS). Counted even where that unit fails: after 30 s."""
        with self._rt.unit(self._origin) as unit:
            self._open_in = unit
            self.wrong(unit)
            audit.record(self._rt, unit, Action.LOGIN_FAILED, actor=actor, reason=detail)
            self.count_failure(unit, "pwd")
        raise Refused(INVALID_CREDENTIALS, detail=detail, evidence={"user": actor} if actor else None)

    @property
    def _all(self) -> tuple[Reservation, ...]:
        return (self._first, *self._second)

    def _end(self, unit: Unit, *, failed: Sequence[Reservation] = (), forgotten: Sequence[Reservation] = ()) -> None:
        if self._over or unit is not self._open_in:
            raise RuntimeError("this guess has ended, or ends in another unit")
        self._over = True
        lockouts = attempts.settle(unit, failed=failed, forgotten=forgotten)
        if lockouts:
            unit.after_commit(lambda: self._rt.counts.add(LOCKOUTS, by=lockouts))

    def count_failure(self, unit: Unit, way: str) -> None:
        """Have a login that failed by `way` counted for the metrics."""
        unit.after_commit(lambda: self._rt.counts.add(LOGINS, way, "failure"))


def guess_charges(account: str, origin: Origin) -> tuple[Charge, ...]:
    """What a failed guess at `account` from `origin` counts against."""
    address = address_key(origin.address)
    return (
        Charge(ACCOUNT_AND_ADDRESS, f"{account} {address}"),
        Charge(ACCOUNT, account),
        Charge(ADDRESS, address),
    )


def at_password(rt: Runtime, origin: Origin, account: str) -> Guess:
    """The right to try one password of a user id, or of what stands for one that nobody has. Raises Refused(LOCKED_OUT)."""
    return Guess(rt, origin, guess_charges(f"user:{account}", origin))


def at_code(rt: Runtime, origin: Origin, account: str, *, by_anybody: bool = False) -> Guess:
    """The right to try one code of the user. Raises Refused(LOCKED_OUT).

    `by_anybody`: a stranger may ask for such a code, without password or session. Wrong ones fill a budget of the day of their own, so
    that strangers do not use up what the owner needs.
    """
    proven, stranger = second_factor_charges(account)
    return Guess(rt, origin, (*guess_charges(f"user:{account}", origin), stranger if by_anybody else proven))


def second_factor_charges(account: str) -> tuple[Charge, Charge]:
    """What a failed code of the user counts against for a day: one that needs a password or a session, one that anybody may ask for."""
    return Charge(SECOND_FACTOR, account), Charge(SECOND_FACTOR, f"asked by anybody {account}")


@contextmanager
def mailed_code(
    rt: Runtime, origin: Origin, purpose: Purpose, verification_id: str, code: str
) -> Iterator[tuple[Unit, Consumed]]:
    """The unit in which a right emailed code is spent, and what it was for; a wrong one counts like every guess at its account.

    Raises Refused(INVALID_CODE), Refused(LOCKED_OUT). A refusal inside that rolls back gives the code back too.
    """
    account = codes.find_account(rt, purpose, verification_id)
    if account is None:
        raise Refused(INVALID_CODE, detail="no code that could be tried has this id")
    guess = at_code(rt, origin, account, by_anybody=purpose is Purpose.RESET)
    with guess.unit() as unit:
        with unless_wrong(guess, unit, signs_in=purpose is Purpose.LOGIN):
            consumed = codes.consume(rt, unit, purpose, verification_id, code)
        guess.right(unit)
        yield unit, consumed


@contextmanager
def unless_wrong(guess: Guess, unit: Unit, *, signs_in: bool) -> Iterator[None]:
    """Around a look at an emailed code: a wrong one ends the guess, and so does one that somebody else spent first, for nothing."""
    try:
        yield
    except WrongCode:
        guess.wrong(unit, second_seen=False)
        if signs_in:
            guess.count_failure(unit, "email")
        raise
    except Refused as refused:
        if refused.problem.keeps_writes:
            guess.give_back(unit)
        raise
