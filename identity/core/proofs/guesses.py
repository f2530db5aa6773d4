"""The right to guess: counted before the guess is looked at, given back if it was right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from identity.ambient import Origin
from identity.core.proofs import attempts, codes
from identity.core.proofs.attempts import ACCOUNT, ACCOUNT_AND_ADDRESS, ADDRESS, SECOND_FACTOR, Charge, Reservation
from identity.core.proofs.codes import Consumed, Purpose, WrongCode
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import INVALID_CODE, INVALID_CREDENTIALS, Refused
from identity.instruments.limits import address_key
from identity.runtime import Runtime
from identity.storage import Unit


def guess_charges(account: str, origin: Origin) -> tuple[Charge, ...]:
    """What a failed guess at `account` from `origin` counts against."""
    address = address_key(origin.address)
    return (
        Charge(ACCOUNT_AND_ADDRESS, f"{account} {address}"),
        Charge(ACCOUNT, account),
        Charge(ADDRESS, address),
    )


def refuse_guess(rt: Runtime, origin: Origin, reservation: Reservation, *, actor: str, detail: str) -> NoReturn:
    """Count a wrong guess and refuse it."""
    with rt.unit(origin) as unit:
        attempts.charge(unit, reservation)
        audit.record(rt, unit, Action.LOGIN_FAILED, actor=actor, reason=detail)
    raise Refused(INVALID_CREDENTIALS, detail=detail)


def reserve_guess(rt: Runtime, origin: Origin, account: str, *, by_anybody: bool = False) -> Reservation:
    """The right to try one code of the user, in a unit of its own; it must end in `settle`. Raises Refused(LOCKED_OUT).

    `by_anybody`: a stranger may ask for such a code, without password or session. Wrong ones fill a budget of the day of their own, so
    that strangers do not use up what the owner needs.
    """
    subject = f"asked by anybody {account}" if by_anybody else account
    return attempts.reserve(rt, origin, (*guess_charges(f"user:{account}", origin), Charge(SECOND_FACTOR, subject)))


def reserve_second(rt: Runtime, origin: Origin, user_id: str) -> Reservation:
    """`reserve_guess` beside a first factor whose own reservation is still open: what both would count is counted there."""
    return attempts.reserve(rt, origin, (Charge(SECOND_FACTOR, user_id),))


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
    reservation = reserve_guess(rt, origin, account, by_anybody=purpose is Purpose.RESET)
    with attempts.given_back(rt, origin, reservation), rt.unit(origin) as unit:
        try:
            consumed = codes.consume(rt, unit, purpose, verification_id, code)
        except WrongCode:
            attempts.charge(unit, reservation)
            raise
        except Refused as refused:
            if refused.problem.keeps_writes:
                attempts.refund(unit, reservation)  # Somebody else was first: nothing was guessed.
            raise
        attempts.refund(unit, reservation)
        yield unit, consumed
