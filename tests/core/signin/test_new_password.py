"""Changing a password and choosing a new one for a forgotten one: what is refused, what ends, who is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import update

from identity.core.admin import on_behalf
from identity.core.admin.by import By
from identity.core.clients import applications
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts
from identity.core.people.accounts import User
from identity.core.proofs import attempts, guesses
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import by_password, new_password, password_proof
from identity.core.signin.by_password import Handout
from identity.core.tokens import sessions
from identity.core.tokens.sessions import Opened
from identity.errors import (
    INVALID_CODE,
    INVALID_CREDENTIALS,
    INVALID_TOKEN,
    LOCKED_OUT,
    MAIL_LIMITED,
    MFA_REQUIRED,
    VALIDATION,
    Problem,
    Refused,
)
from identity.runtime import Runtime
from tests.builders import Person, a_session, a_user, an_authenticator
from tests.world import ORIGIN, FakeClock, Mailbox, code_in

FRESH = "a fresh and rather long phrase"


@pytest.fixture
def ada(rt: Runtime) -> Person:
    return a_user(rt, email="ada@acme.example", alias="ada.lovelace")


def change(rt: Runtime, person: Person, *, current: str = "", new: str = FRESH, keep: str = "") -> Problem | None:
    """How a change ends: None for success, else the problem."""
    try:
        new_password.change(
            rt,
            ORIGIN,
            accounts.get(rt, person.id),
            session_id=keep,
            current_password=current or person.password,
            new_password=new,
        )
    except Refused as refused:
        return refused.problem
    return None


def reset(rt: Runtime, verification_id: str, code: str, new: str = FRESH) -> Problem | None:
    """How a reset ends: None for success, else the problem."""
    try:
        new_password.reset(rt, ORIGIN, verification_id=verification_id, code=code, new_password=new)
    except Refused as refused:
        return refused.problem
    return None


def works(rt: Runtime, person: Person, password: str) -> bool:
    try:
        password_proof.waste(password_proof.check_password(rt, ORIGIN, person.email, password))
    except Refused:
        return False
    return True


def is_live(rt: Runtime, opened: Opened) -> bool:
    try:
        return bool(sessions.find_live(rt, opened.session.id))
    except Refused:
        return False


def letters(rt: Runtime, mailbox: Mailbox, word: str) -> int:
    outbox.deliver_due(rt)
    return sum(word in str(mail["Subject"]) for mail in mailbox.mails)


def mailed_code(rt: Runtime, mailbox: Mailbox) -> str:
    outbox.deliver_due(rt)
    return code_in(next(mail for mail in reversed(mailbox.mails) if "Choose a new password" in str(mail["Subject"])))


# Changing.


def test_a_change_ends_every_other_session_and_is_told(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    mine, other = a_session(rt, ada), a_session(rt, ada)
    assert change(rt, ada, keep=mine.session.id) is None
    assert (works(rt, ada, FRESH), works(rt, ada, ada.password)) == (True, False)
    assert (is_live(rt, mine), is_live(rt, other)) == (True, False)
    assert letters(rt, mailbox, "password at 127.0.0.1:8000 was changed") == 1
    assert audit.count(rt, actor=ada.id, action=Action.PASSWORD_CHANGED) == 1


def test_a_wrong_current_password_changes_nothing_and_counts(rt: Runtime, ada: Person) -> None:
    other = a_session(rt, ada)
    for _ in range(5):
        assert change(rt, ada, current="wrong") == INVALID_CREDENTIALS
    assert change(rt, ada) == LOCKED_OUT
    assert is_live(rt, other)


def test_a_weak_password_is_refused_before_the_old_one_is_looked_at(rt: Runtime, ada: Person) -> None:
    for weak in ("short", "password1", "aaaaaaaaaaaa", "ada.lovelace1", "x" * 1025):
        refused = change(rt, ada, current="wrong", new=weak)
        assert refused is not None
        assert refused.code == VALIDATION.code
    assert works(rt, ada, ada.password)


def test_a_user_without_a_password_cannot_change_one(rt: Runtime) -> None:
    eve = a_user(rt, password=None)
    assert change(rt, eve, current="anything at all") == INVALID_CREDENTIALS


def test_two_changes_at_once_leave_one_password(rt: Runtime, ada: Person) -> None:
    candidates = [f"{FRESH} {number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda new: change(rt, ada, new=new), candidates))
    assert ends.count(None) == 1
    assert [works(rt, ada, new) for new in candidates].count(True) == 1
    assert works(rt, ada, candidates[ends.index(None)])


def test_a_login_that_waits_for_its_code_ends_with_the_old_password(rt: Runtime, ada: Person, clock: FakeClock) -> None:
    app = an_authenticator(rt, ada)
    clock.tick(30)
    issued = by_password.begin(
        rt,
        ORIGIN,
        identifier=ada.email,
        password=ada.password,
        handout=Handout.DAY,
        client_id=applications.standard_client(rt),
        resource="https://api.acme.example",
        allows_fixed=False,
    )
    assert change(rt, ada) is None
    with pytest.raises(Refused) as refused:
        by_password.complete(rt, ORIGIN, token=issued.token.reveal(), handout=Handout.DAY, code=app.at(clock.now()))
    assert refused.value.problem == INVALID_CODE


# Forgotten.


def test_a_reset_ends_every_session_and_is_told(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    session = a_session(rt, ada)
    verification_id = new_password.forgot(rt, ORIGIN, "ADA@acme.example")
    assert reset(rt, verification_id, mailed_code(rt, mailbox)) is None
    assert (works(rt, ada, FRESH), works(rt, ada, ada.password)) == (True, False)
    assert not is_live(rt, session)
    assert session.refresh is not None
    with pytest.raises(Refused) as refused:
        by_password.refresh(rt, ORIGIN, session.refresh.reveal())
    assert refused.value.problem == INVALID_TOKEN
    assert letters(rt, mailbox, "password at 127.0.0.1:8000 was changed") == 1
    assert audit.count(rt, target=ada.id, action=Action.PASSWORD_RESET_ASKED) == 1


def test_a_reset_does_not_take_the_second_factor_away(
    rt: Runtime, ada: Person, mailbox: Mailbox, clock: FakeClock
) -> None:
    an_authenticator(rt, ada)
    clock.tick(30)
    verification_id = new_password.forgot(rt, ORIGIN, ada.email)
    assert reset(rt, verification_id, mailed_code(rt, mailbox)) is None
    with pytest.raises(Refused) as refused:
        by_password.by_password(
            rt, ORIGIN, identifier=ada.email, password=FRESH, totp_code=None, resource="https://api.acme.example"
        )
    assert refused.value.problem == MFA_REQUIRED


def test_a_reset_code_works_once(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    verification_id = new_password.forgot(rt, ORIGIN, ada.email)
    code = mailed_code(rt, mailbox)
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda number: reset(rt, verification_id, code, f"{FRESH} {number}"), range(8)))
    assert ends.count(None) == 1
    assert set(ends) <= {None, INVALID_CODE}
    assert works(rt, ada, f"{FRESH} {ends.index(None)}")


def test_five_wrong_codes_end_the_code_and_lock_the_account_for_this_address(
    rt: Runtime, ada: Person, mailbox: Mailbox, clock: FakeClock
) -> None:
    verification_id = new_password.forgot(rt, ORIGIN, ada.email)
    code = mailed_code(rt, mailbox)
    wrong = f"{(int(code) + 1) % 10**6:06d}"
    for _ in range(5):
        assert reset(rt, verification_id, wrong) == INVALID_CODE
    assert reset(rt, verification_id, code) == INVALID_CODE
    with pytest.raises(Refused) as refused:
        password_proof.check_password(rt, ORIGIN, ada.email, ada.password)
    assert refused.value.problem == LOCKED_OUT


def test_a_weak_password_does_not_cost_the_code(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    verification_id = new_password.forgot(rt, ORIGIN, ada.email)
    code = mailed_code(rt, mailbox)
    for weak in ("short", "password1", "ada.lovelace1"):
        refused = reset(rt, verification_id, code, weak)
        assert refused is not None
        assert refused.code == VALIDATION.code
    assert reset(rt, verification_id, code) is None


def test_strangers_who_guess_reset_codes_do_not_use_up_the_second_factor(
    rt: Runtime, ada: Person, mailbox: Mailbox, clock: FakeClock
) -> None:
    app = an_authenticator(rt, ada)
    with rt.unit(ORIGIN) as unit:
        for _ in range(99):
            stranger = attempts.Charge(attempts.SECOND_FACTOR, f"asked by anybody {ada.id}")
            attempts.fail(rt, unit, (stranger,))
    verification_id = new_password.forgot(rt, ORIGIN, ada.email)
    wrong = f"{(int(mailed_code(rt, mailbox)) + 1) % 10**6:06d}"
    assert reset(rt, verification_id, wrong) == INVALID_CODE
    assert reset(rt, verification_id, wrong) == LOCKED_OUT
    clock.tick(300)
    assert by_password.by_password(
        rt,
        ORIGIN,
        identifier=ada.email,
        password=ada.password,
        totp_code=app.at(clock.now()),
        resource="https://api.acme.example",
    )


def test_who_was_disabled_meanwhile_chooses_nothing(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    verification_id = new_password.forgot(rt, ORIGIN, ada.email)
    code = mailed_code(rt, mailbox)
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(enabled=False))
    assert reset(rt, verification_id, code) == INVALID_CODE


def test_an_address_that_cannot_reset_is_answered_alike_without_a_mail(rt: Runtime, mailbox: Mailbox) -> None:
    a_user(rt, email="disabled@acme.example", enabled=False)
    a_user(rt, email="unverified@acme.example", verified=False)
    for who in ("unknown", "disabled", "unverified"):
        verification_id = new_password.forgot(rt, ORIGIN, f"{who}@acme.example")
        assert len(verification_id) == 36
        assert reset(rt, verification_id, "123456") == INVALID_CODE
    assert letters(rt, mailbox, "") == 0


def test_known_and_unknown_addresses_are_throttled_alike(rt: Runtime, ada: Person) -> None:
    for address in (ada.email, "nobody@acme.example"):
        for _ in range(5):
            new_password.forgot(rt, ORIGIN, address)
        with pytest.raises(Refused) as refused:
            new_password.forgot(rt, ORIGIN, address)
        assert refused.value.problem == MAIL_LIMITED


def test_the_newest_reset_code_is_the_only_one(rt: Runtime, ada: Person, mailbox: Mailbox, clock: FakeClock) -> None:
    first = new_password.forgot(rt, ORIGIN, ada.email)
    old = mailed_code(rt, mailbox)
    clock.tick(1)
    second = new_password.forgot(rt, ORIGIN, ada.email)
    assert reset(rt, first, old) == INVALID_CODE
    assert reset(rt, second, mailed_code(rt, mailbox)) is None


def test_what_is_no_address_is_said_to_be_none(rt: Runtime) -> None:
    with pytest.raises(Refused) as refused:
        new_password.forgot(rt, ORIGIN, "not an address")
    assert (refused.value.problem.code, refused.value.field) == (VALIDATION.code, "email")


def test_a_reset_for_an_administrator_says_so_in_its_mail(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    with rt.unit(ORIGIN) as unit:
        verification_id = new_password.send_reset(
            rt, unit, accounts.get(rt, ada.id), address=ada.email, actor="an-admin-id"
        )
    outbox.deliver_due(rt)
    body = mailbox.mails[-1].get_body(("plain",))
    assert body is not None
    assert "an administrator" in body.get_content()
    assert reset(rt, verification_id, mailed_code(rt, mailbox)) is None


def test_a_user_without_a_password_gets_one_by_a_reset(rt: Runtime, mailbox: Mailbox) -> None:
    eve = a_user(rt, password=None)
    verification_id = new_password.forgot(rt, ORIGIN, eve.email)
    assert reset(rt, verification_id, mailed_code(rt, mailbox)) is None
    assert works(rt, replace(eve, password=FRESH), FRESH)
    assert Template.PASSWORD_CHANGED in {mail.template for mail in outbox.list_mails(rt)}


def test_unlocking_lets_in_who_strangers_have_locked_out_of_emailed_codes(rt: Runtime, ada: Person) -> None:
    _, stranger = guesses.second_factor_charges(ada.id)
    for _ in range(stranger.budget.amount):
        with rt.unit(ORIGIN) as unit:
            attempts.fail(rt, unit, [stranger])
    with pytest.raises(Refused) as caught:
        guesses.at_code(rt, ORIGIN, ada.id, by_anybody=True)
    assert caught.value.problem == LOCKED_OUT
    on_behalf.unlock(rt, By.command_line(), ada.id)
    guess = guesses.at_code(rt, ORIGIN, ada.id, by_anybody=True)
    with guess.unit() as unit:
        guess.give_back(unit)
