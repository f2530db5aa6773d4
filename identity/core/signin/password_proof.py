"""Proving a user by their password, whoever asks, in constant words and time."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import update

from identity.ambient import Origin
from identity.canonical import canonical_identifier
from identity.core.people.accounts import User, UserInfo, find_with_hash, recheck
from identity.core.proofs import codes, guesses
from identity.core.proofs.guesses import Guess
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import factors
from identity.errors import ACCESS_WINDOW_EXPIRED, Refused
from identity.runtime import Runtime
from identity.storage import Unit


@dataclass(frozen=True, slots=True)
class PasswordProof:
    """A right password: what `admit` needs to let its user in. Its guess is open still; whoever holds the proof ends it."""

    user: UserInfo
    password_hash: str
    fresh_hash: str | None
    guess: Guess


def check_password(rt: Runtime, origin: Origin, identifier: str, password: str) -> PasswordProof:
    """The proof that `password` is right for `identifier`, from this origin, now.

    Unknown, disabled and password-less users cost the same and are refused alike (INVALID_CREDENTIALS); so is a right password outside
    the access window, but in words of its own. Raises Refused(LOCKED_OUT) during a lockout, whatever the password.
    """
    found = find_with_hash(rt, identifier)
    account = found[0].id if found else codes.nobody(rt, canonical_identifier(identifier))
    # 1. A slot first, a reservation second: guesses that wait for a processor must not fill the budget.
    with rt.passwords.turn():
        guess = guesses.at_password(rt, origin, account)
        # 2. The slow work, outside of any unit.
        stored = found[1] if found else None
        with guess.held():
            right = rt.passwords.verify(stored, password)
            fresh = rt.passwords.hash(password) if right and stored and rt.passwords.is_outdated(stored) else None
    # 3. The verdict.
    if not right or found is None or stored is None or not found[0].enabled:
        guess.refuse(actor=found[0].id if found else "", detail=_flaw(found, right=right))
    user = found[0]
    if not user.window.is_open(rt.clock.now()):
        with guess.unit() as unit:
            guess.give_back(unit)
            audit.record(rt, unit, Action.LOGIN_FAILED, actor=user.id, reason="access window")
        evidence = {
            "expected": {"from": str(user.starts_at), "until": str(user.ends_at)},
            "seen": str(rt.clock.now()),
            "near_miss": "the password was right",
        }
        raise Refused(ACCESS_WINDOW_EXPIRED, detail="outside the access window", evidence=evidence)
    return PasswordProof(user, stored, fresh, guess)


def admit(unit: Unit, proof: PasswordProof) -> UserInfo:
    """Let the proven user in, in the unit that creates what they get, after its guess ended as right: upgrades an old hash.

    What was read before the slow work is checked again: a user who was disabled or whose password changed meanwhile is refused
    (INVALID_CREDENTIALS).
    """
    user = recheck(unit, proof.user.id, password_hash=proof.password_hash)
    if proof.fresh_hash:
        unit.execute(
            update(User)
            .where(User.id == user.id, User.password_hash == proof.password_hash)
            .values(password_hash=proof.fresh_hash)
        )
    return user


def has_second_factor(rt: Runtime, proof: PasswordProof) -> bool:
    """Whether the proven user has an authenticator, so that the password alone is not enough."""
    with proof.guess.held():
        return factors.is_enrolled(rt, proof.user.id)


def waste(proof: PasswordProof) -> None:
    """End a proof that leads nowhere (a second factor is missing): the password was right, so it counts as no failure."""
    with proof.guess.unit() as unit:
        proof.guess.give_back(unit)


def _flaw(found: tuple[UserInfo, str | None] | None, *, right: bool) -> str:
    """Why a guess does not pass, for operators only: clients and clocks see one refusal."""
    if found is None:
        return "unknown user"
    if found[1] is None:
        return "a user without a password"
    return "wrong password" if not right else "right password of a disabled user"
