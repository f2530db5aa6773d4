"""Second factors, through their entry points and on both databases: authenticators, recovery codes, fixed one-time codes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyotp
import pytest
from sqlalchemy import select

from identity.ambient import later
from identity.core.mail import outbox
from identity.core.people import accounts
from identity.core.people.accounts import UserInfo
from identity.core.proofs import guesses
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import factors, password_proof
from identity.core.signin.factors import Factor, FixedOtp, RecoveryCode, Totp
from identity.errors import CONFLICT, FORBIDDEN, INVALID_CODE, LOCKED_OUT, NOT_FOUND, VALIDATION, Problem, Refused
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import Person, a_user, an_authenticator
from tests.world import ORIGIN, FakeClock, Mailbox


def user_of(rt: Runtime, person: Person) -> UserInfo:
    return accounts.get(rt, person.id)


def problem_of(excinfo: pytest.ExceptionInfo[Refused]) -> Problem:
    return excinfo.value.problem


def takes(rt: Runtime, person: Person, code: str) -> bool:
    """Whether a TOTP code is taken, without counting anything."""
    with rt.unit(ORIGIN) as unit:
        return factors.take_totp(rt, unit, person.id, code)


def subjects(rt: Runtime, mailbox: Mailbox) -> list[str]:
    outbox.deliver_due(rt)
    return [str(mail["Subject"]) for mail in mailbox.mails]


# Enrolling.


def test_a_seed_holds_160_bits_and_its_uri_names_service_and_user(rt: Runtime) -> None:
    ada = a_user(rt)
    enrolment = factors.enrol(rt, ORIGIN, user_of(rt, ada))
    parsed = pyotp.parse_uri(enrolment.uri.reveal())
    assert isinstance(parsed, pyotp.TOTP)
    assert (parsed.secret, parsed.name, parsed.issuer) == (enrolment.seed.reveal(), ada.email, "127.0.0.1")
    assert (len(parsed.byte_secret()), parsed.digits, parsed.interval) == (20, 6, 30)
    assert enrolment.expires_in == 600
    assert enrolment.seed.reveal() not in repr(enrolment)


def test_a_seed_is_sealed_for_its_user_alone(rt: Runtime) -> None:
    ada, eve = a_user(rt), a_user(rt)
    seed = factors.enrol(rt, ORIGIN, user_of(rt, ada)).seed.reveal()
    with rt.database.reading() as session:
        sealed = session.get_one(Totp, ada.id).sealed
    assert pyotp.TOTP(seed).byte_secret() not in sealed
    assert rt.ring.vault.open(sealed, context=f"totp:{ada.id}") == pyotp.TOTP(seed).byte_secret()
    with pytest.raises(Exception, match="does not open"):
        rt.ring.vault.open(sealed, context=f"totp:{eve.id}")


def test_a_pending_authenticator_asks_nobody_for_a_code(rt: Runtime) -> None:
    ada = a_user(rt)
    factors.enrol(rt, ORIGIN, user_of(rt, ada))
    assert not factors.is_enrolled(rt, ada.id)


def test_a_wrong_code_confirms_nothing(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    seed = factors.enrol(rt, ORIGIN, user_of(rt, ada)).seed.reveal()
    wrong = f"{(int(pyotp.TOTP(seed).at(clock.now())) + 1) % 10**6:06d}"
    with pytest.raises(Refused) as refused:
        factors.confirm(rt, ORIGIN, user_of(rt, ada), wrong)
    assert problem_of(refused) == INVALID_CODE
    assert not factors.is_enrolled(rt, ada.id)


def test_a_pending_authenticator_can_be_confirmed_for_600_seconds(rt: Runtime, clock: FakeClock) -> None:
    works = {}
    for seconds in (599, 600, 601):
        ada = a_user(rt)
        seed = factors.enrol(rt, ORIGIN, user_of(rt, ada)).seed.reveal()
        clock.tick(seconds)
        with contextlib.suppress(Refused):
            factors.confirm(rt, ORIGIN, user_of(rt, ada), pyotp.TOTP(seed).at(clock.now()))
        works[seconds] = factors.is_enrolled(rt, ada.id)
    assert works == {599: True, 600: False, 601: False}


def test_a_second_enrolment_replaces_the_pending_one(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    first = factors.enrol(rt, ORIGIN, user_of(rt, ada)).seed.reveal()
    clock.tick(1)
    second = factors.enrol(rt, ORIGIN, user_of(rt, ada)).seed.reveal()
    with pytest.raises(Refused):
        factors.confirm(rt, ORIGIN, user_of(rt, ada), pyotp.TOTP(first).at(clock.now()))
    assert factors.confirm(rt, ORIGIN, user_of(rt, ada), pyotp.TOTP(second).at(clock.now()))


def test_who_has_an_authenticator_must_remove_it_before_another(rt: Runtime) -> None:
    ada = a_user(rt)
    an_authenticator(rt, ada)
    with pytest.raises(Refused) as refused:
        factors.enrol(rt, ORIGIN, user_of(rt, ada))
    assert problem_of(refused).code == CONFLICT.code


def test_enrolling_and_removing_are_told_by_mail_and_recorded(rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    clock.tick(30)
    factors.remove_own(rt, ORIGIN, user_of(rt, ada), factor=Factor.TOTP, code=app.at(clock.now()))
    assert subjects(rt, mailbox).count("Your second factor at 127.0.0.1:8000 was changed") == 2
    assert audit.count(rt, actor=ada.id, action=Action.FACTOR_ENROLLED) == 1
    assert audit.count(rt, actor=ada.id, action=Action.FACTOR_REMOVED) == 1


def test_50_parallel_confirmations_with_the_right_code_switch_on_once(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    seed = factors.enrol(rt, ORIGIN, user_of(rt, ada)).seed.reveal()
    code, user = pyotp.TOTP(seed).at(clock.now()), user_of(rt, ada)

    def confirm(_: int) -> bool:
        try:
            return bool(factors.confirm(rt, ORIGIN, user, code))
        except Refused:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(confirm, range(50))) == 1
    with rt.database.reading() as session:
        assert len(session.scalars(select(RecoveryCode).where(RecoveryCode.user_id == ada.id)).all()) == 10


# The memory of steps.


def test_the_confirming_code_does_not_sign_in(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    assert not takes(rt, ada, app.at(clock.now()))
    clock.tick(30)
    assert takes(rt, ada, app.at(clock.now()))


SPELLINGS: dict[str, Callable[[str], str]] = {
    "same": lambda code: code,
    "full width": lambda code: in_other_digits(code, 0xFF10),
    "mathematical bold": lambda code: in_other_digits(code, 0x1D7CE),
    "arabic": lambda code: in_other_digits(code, 0x0660),
    "leading space": lambda code: f" {code}",
    "trailing space": lambda code: f"{code} ",
    "inner space": lambda code: f"{code[:3]} {code[3:]}",
    "newline": lambda code: f"{code}\n",
    "leading zero": lambda code: f"0{code}",
}


def in_other_digits(code: str, zero: int) -> str:
    return "".join(chr(zero + int(digit)) for digit in code)


def test_only_six_ascii_digits_are_a_code_and_a_step_is_taken_once_in_any_spelling(
    rt: Runtime, clock: FakeClock
) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    clock.tick(30)
    code = app.at(clock.now())
    before = {name for name, spell in SPELLINGS.items() if name != "same" and takes(rt, ada, spell(code))}
    assert before == set()
    assert takes(rt, ada, code)
    after = {name for name, spell in SPELLINGS.items() if takes(rt, ada, spell(code))}
    assert after == set()


def test_what_has_not_the_shape_of_a_code_is_wrong_and_nothing_more(rt: Runtime) -> None:
    ada = a_user(rt)
    an_authenticator(rt, ada)
    for junk in ("", "12345", "1234567", "\ud800", "12345\0", "0" * 10_000, "-12345", "1e5000"):
        assert not takes(rt, ada, junk)


def steps_taken(rt: Runtime, clock: FakeClock) -> list[int]:
    """Which steps around the present one are taken, each from a user of its own."""
    taken = []
    for step in (-2, -1, 0, 1, 2):
        ada = a_user(rt)
        app = an_authenticator(rt, ada)
        clock.tick(90)
        if takes(rt, ada, app.at(later(clock.now(), 30 * step))):
            taken.append(step)
    return taken


def test_a_code_may_be_one_step_off(rt: Runtime, clock: FakeClock) -> None:
    """People type slowly, and clocks differ: every peer takes one step (RFC 6238 section 5.2)."""
    assert steps_taken(rt, clock) == [-1, 0, 1]


def test_a_step_before_a_spent_one_is_spent_too(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    clock.tick(90)
    assert takes(rt, ada, app.at(later(clock.now(), 30)))
    assert not takes(rt, ada, app.at(clock.now()))
    assert not takes(rt, ada, app.at(later(clock.now(), -30)))


class TestWithoutDrift:
    """`IDENTITY_TOTP_DRIFT_STEPS=0`."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, totp_drift_steps=0)

    def test_only_the_present_step_counts(self, rt: Runtime, clock: FakeClock) -> None:
        assert steps_taken(rt, clock) == [0]


def test_the_same_code_is_dead_30_seconds_later(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    clock.tick(30)
    code = app.at(clock.now())
    assert takes(rt, ada, code)
    clock.tick(30)
    assert not takes(rt, ada, code)


# Recovery codes.


def try_recovery(rt: Runtime, person: Person, code: str) -> bool:
    with rt.unit(ORIGIN) as unit:
        return factors.take_recovery_code(rt, unit, person.id, code)


def test_ten_recovery_codes_each_work_once(rt: Runtime) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    assert len(set(app.recovery_codes)) == 10
    assert [try_recovery(rt, ada, code) for code in app.recovery_codes] == [True] * 10
    assert [try_recovery(rt, ada, code) for code in app.recovery_codes] == [False] * 10


def test_recovery_codes_are_stored_hashed_for_their_user_alone(rt: Runtime) -> None:
    ada, eve = a_user(rt), a_user(rt)
    app = an_authenticator(rt, ada)
    an_authenticator(rt, eve)
    with rt.database.reading() as session:
        digests = session.scalars(select(RecoveryCode.digest)).all()
    plain = app.recovery_codes[0].replace("-", "").encode()
    assert all(plain not in digest for digest in digests)
    assert not try_recovery(rt, eve, app.recovery_codes[0])


def test_a_recovery_code_may_be_typed_without_dashes_or_in_capitals(rt: Runtime) -> None:
    ada = a_user(rt)
    first, second, *_ = an_authenticator(rt, ada).recovery_codes
    assert try_recovery(rt, ada, first.upper())
    assert not try_recovery(rt, ada, first)
    assert try_recovery(rt, ada, second.replace("-", ""))
    assert not try_recovery(rt, ada, second)


@pytest.mark.parametrize("between", [" ", "  ", "\u00a0", "\u2013", " - ", "\n"])
def test_a_recovery_code_may_be_grouped_in_any_way(rt: Runtime, between: str) -> None:
    """Letters turn dashes into other dashes, and people into blanks."""
    ada = a_user(rt)
    assert try_recovery(rt, ada, f" {an_authenticator(rt, ada).recovery_codes[0].replace('-', between)} ")


class TestNamed:
    """`IDENTITY_NAME`."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, name="Acme Sign-In")

    def test_apps_and_mails_say_the_name(self, rt: Runtime, mailbox: Mailbox) -> None:
        ada = a_user(rt)
        parsed = pyotp.parse_uri(factors.enrol(rt, ORIGIN, user_of(rt, ada)).uri.reveal())
        assert parsed.issuer == "Acme Sign-In"
        an_authenticator(rt, a_user(rt))
        assert "Your second factor at Acme Sign-In was changed" in subjects(rt, mailbox)


def test_20_parallel_uses_of_one_recovery_code_succeed_once(rt: Runtime) -> None:
    ada = a_user(rt)
    code = an_authenticator(rt, ada).recovery_codes[0]
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: try_recovery(rt, ada, code), range(20))) == 1


def test_new_recovery_codes_void_the_old_ones(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    clock.tick(30)
    fresh = factors.renew_recovery_codes(rt, ORIGIN, user_of(rt, ada), app.at(clock.now()))
    assert len(fresh) == 10
    assert not try_recovery(rt, ada, app.recovery_codes[0])
    assert try_recovery(rt, ada, fresh[0].reveal())


def test_new_recovery_codes_need_a_right_totp_code(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    with pytest.raises(Refused) as refused:
        factors.renew_recovery_codes(rt, ORIGIN, user_of(rt, ada), app.at(clock.now()))  # spent by the confirmation
    assert problem_of(refused) == INVALID_CODE
    assert try_recovery(rt, ada, app.recovery_codes[0])


# Removing.


def test_removing_takes_the_recovery_codes_too(rt: Runtime) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    factors.remove_own(rt, ORIGIN, user_of(rt, ada), factor=Factor.RECOVERY, code=app.recovery_codes[0])
    assert not factors.is_enrolled(rt, ada.id)
    assert not try_recovery(rt, ada, app.recovery_codes[1])


def test_removing_needs_a_right_code(rt: Runtime) -> None:
    ada = a_user(rt)
    an_authenticator(rt, ada)
    with pytest.raises(Refused) as refused:
        factors.remove_own(rt, ORIGIN, user_of(rt, ada), factor=Factor.RECOVERY, code="aaaa-bbbb-cccc-dddd")
    assert problem_of(refused) == INVALID_CODE
    assert factors.is_enrolled(rt, ada.id)


def test_an_administrator_removes_without_a_code(rt: Runtime) -> None:
    ada, root = a_user(rt), a_user(rt)
    an_authenticator(rt, ada)
    with rt.unit(ORIGIN) as unit:
        factors.remove(rt, unit, user_of(rt, ada), actor=root.id)
    assert not factors.is_enrolled(rt, ada.id)
    assert audit.count(rt, actor=root.id, target=ada.id, action=Action.FACTOR_REMOVED) == 1
    with pytest.raises(Refused) as refused, rt.unit(ORIGIN) as unit:
        factors.remove(rt, unit, user_of(rt, ada), actor=root.id)
    assert problem_of(refused) == NOT_FOUND


def test_erasing_a_user_erases_the_factors(rt: Runtime) -> None:
    ada = a_user(rt)
    an_authenticator(rt, ada)
    with rt.unit(ORIGIN) as unit:
        accounts.erase_row(unit, ada.id)
    with rt.database.reading() as session:
        assert session.get(Totp, ada.id) is None
        assert not session.scalars(select(RecoveryCode)).all()


# Counting.


def test_five_wrong_codes_lock_the_account_for_this_address(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    app = an_authenticator(rt, ada)
    clock.tick(30)
    for _ in range(5):
        with pytest.raises(Refused) as wrong:
            factors.renew_recovery_codes(rt, ORIGIN, user_of(rt, ada), "000000")
        assert problem_of(wrong) == INVALID_CODE
    with pytest.raises(Refused) as refused:
        guesses.at_code(rt, ORIGIN, ada.id)
    assert problem_of(refused) == LOCKED_OUT
    with pytest.raises(Refused) as by_password:
        password_proof.check_password(rt, ORIGIN, ada.email, ada.password)
    assert problem_of(by_password) == LOCKED_OUT
    clock.tick(300)
    assert factors.renew_recovery_codes(rt, ORIGIN, user_of(rt, ada), app.at(clock.now()))


def test_the_hundredth_wrong_code_of_a_day_is_the_last_from_any_address(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    for number in range(100):
        origin = ORIGIN._replace(address=f"198.51.100.{number % 50}")
        if number % 50 == 0:
            clock.tick(300)
        guess = guesses.at_code(rt, origin, ada.id)
        with pytest.raises(Refused), guess.unit() as unit:
            factors.settle(rt, unit, ada.id, guess, right=False)
    clock.tick(300)
    elsewhere = ORIGIN._replace(address="203.0.113.9")
    with pytest.raises(Refused) as refused:
        guesses.at_code(rt, elsewhere, ada.id)
    assert problem_of(refused) == LOCKED_OUT
    clock.tick(86_400)
    guess = guesses.at_code(rt, elsewhere, ada.id)
    with guess.unit() as unit:
        guess.give_back(unit)


def test_a_unit_that_rolls_back_gives_the_guess_back(rt: Runtime) -> None:
    ada = a_user(rt)
    for _ in range(10):
        guess = guesses.at_code(rt, ORIGIN, ada.id)
        with pytest.raises(Refused), guess.unit():
            raise Refused(CONFLICT)


# Fixed one-time codes.


def test_a_fixed_code_is_refused_where_it_is_not_permitted(rt: Runtime) -> None:
    ada = a_user(rt)
    with pytest.raises(Refused) as refused, rt.unit(ORIGIN) as unit:
        factors.set_fixed_otp(rt, unit, user_of(rt, ada), "482901", actor="admin")
    assert problem_of(refused).code == FORBIDDEN.code


class TestFixedOtp:
    """`IDENTITY_FIXED_OTP=1`."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, fixed_otp=True)

    def fix(self, rt: Runtime, person: Person, otp: str) -> None:
        with rt.unit(ORIGIN) as unit:
            factors.set_fixed_otp(rt, unit, user_of(rt, person), otp, actor="admin")

    def holds(self, rt: Runtime, person: Person, otp: str) -> bool:
        with rt.unit(ORIGIN) as unit:
            return factors.is_fixed_otp(rt, unit, person.id, otp)

    def test_it_is_stored_hashed_and_works_for_its_user_alone(self, rt: Runtime) -> None:
        ada, eve = a_user(rt), a_user(rt)
        self.fix(rt, ada, "482901")
        self.fix(rt, eve, "111222")
        with rt.database.reading() as session:
            assert b"482901" not in session.get_one(FixedOtp, ada.id).digest
        assert self.holds(rt, ada, "482901")
        assert not self.holds(rt, eve, "482901")

    def test_a_new_one_replaces_it_and_clearing_ends_it(self, rt: Runtime) -> None:
        ada = a_user(rt)
        self.fix(rt, ada, "482901")
        self.fix(rt, ada, "777888")
        assert (self.holds(rt, ada, "482901"), self.holds(rt, ada, "777888")) == (False, True)
        with rt.unit(ORIGIN) as unit:
            factors.clear_fixed_otp(rt, unit, user_of(rt, ada), actor="admin")
        with rt.database.reading() as session:
            assert factors.among(session, [ada.id]) == (set(), set())
        with pytest.raises(Refused) as refused, rt.unit(ORIGIN) as unit:
            factors.clear_fixed_otp(rt, unit, user_of(rt, ada), actor="admin")
        assert problem_of(refused) == NOT_FOUND

    def test_it_has_6_to_64_ascii_letters_and_digits(self, rt: Runtime) -> None:
        ada = a_user(rt)
        for otp in ("", "12345", "1" * 65, "12 456", in_other_digits("123456", 0xFF10), "12345\ud800"):
            with pytest.raises(Refused) as refused:
                self.fix(rt, ada, otp)
            assert (problem_of(refused).code, refused.value.field) == (VALIDATION.code, "otp")

    def test_an_authenticator_comes_before_it(self, rt: Runtime) -> None:
        ada = a_user(rt)
        self.fix(rt, ada, "482901")
        with rt.unit(ORIGIN) as unit:
            assert factors.factor_of(rt, unit, ada.id, allows_fixed=True) is Factor.FIXED
            assert factors.factor_of(rt, unit, ada.id, allows_fixed=False) is Factor.EMAIL
        an_authenticator(rt, ada)
        with rt.unit(ORIGIN) as unit:
            assert factors.factor_of(rt, unit, ada.id, allows_fixed=True) is Factor.TOTP


def test_who_has_no_authenticator_has_no_right_code(rt: Runtime) -> None:
    ada = a_user(rt)
    assert not takes(rt, ada, "123456")
    assert not try_recovery(rt, ada, "aaaa-bbbb-cccc-dddd")
