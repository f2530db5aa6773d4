"""The login that waits for its second step: one success, five looks, 300 seconds, and nobody who changed meanwhile."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from identity.ambient import Origin
from identity.core.clients import applications
from identity.core.mail import outbox
from identity.core.people import accounts
from identity.core.people.accounts import User
from identity.core.proofs import attempts
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import by_password, challenges, factors, password_proof
from identity.core.signin.by_password import Grant, Handout
from identity.core.signin.challenges import Challenge, Issued
from identity.core.signin.factors import Factor
from identity.core.tokens import claims, sessions
from identity.errors import (
    ACCESS_WINDOW_EXPIRED,
    INVALID_CODE,
    INVALID_CREDENTIALS,
    INVALID_TOKEN,
    LOCKED_OUT,
    MAIL_LIMITED,
    MFA_REQUIRED,
    Problem,
    Refused,
)
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import Authenticator, Person, a_user, an_authenticator
from tests.world import ORIGIN, FakeClock, Mailbox, code_in

RESOURCE = "https://api.acme.example"


def begin(rt: Runtime, person: Person, *, origin: Origin = ORIGIN, allows_fixed: bool = False) -> Issued:
    return by_password.begin(
        rt,
        origin,
        identifier=person.email,
        password=person.password,
        handout=Handout.REFRESHABLE,
        client_id=applications.standard_client(rt),
        resource=RESOURCE,
        allows_fixed=allows_fixed,
    )


def complete(rt: Runtime, issued: Issued, code: str, *, factor: Factor | None = None, origin: Origin = ORIGIN) -> Grant:
    return by_password.complete(
        rt, origin, token=issued.token.reveal(), handout=Handout.REFRESHABLE, code=code, factor=factor
    )


def outcome(rt: Runtime, issued: Issued, code: str, **options: Factor | Origin) -> Problem | None:
    """How a completion ends: None for success, else the problem."""
    try:
        complete(rt, issued, code, **options)  # type: ignore[arg-type] -- a factor and an origin
    except Refused as refused:
        return refused.problem
    return None


def mailed_code(rt: Runtime, mailbox: Mailbox) -> str:
    outbox.deliver_due(rt)
    return code_in(mailbox.mails[-1])


@pytest.fixture
def ada(rt: Runtime) -> Person:
    return a_user(rt, alias="ada")


@pytest.fixture
def app(rt: Runtime, ada: Person, clock: FakeClock) -> Authenticator:
    made = an_authenticator(rt, ada)
    clock.tick(30)
    return made


# Both methods.


def test_a_right_totp_code_opens_a_session_proven_by_both(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    issued = begin(rt, ada)
    assert (issued.factor, issued.expires_in) == (Factor.TOTP, 300)
    grant = complete(rt, issued, app.at(clock.now()), factor=Factor.TOTP)
    said = claims.read(rt, grant.access.text)
    assert (said.subject, said.amr, said.audience) == (ada.id, ("otp", "pwd"), (RESOURCE, rt.settings.issuer))
    assert (grant.access.expires_in, said.expires_at - said.issued_at) == (3600, 3600)
    assert grant.refresh is not None
    assert sessions.find_live(rt, said.session_id).session.kind == "login"


def test_who_has_no_authenticator_answers_with_a_mailed_code(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    issued = begin(rt, ada)
    assert issued.factor is Factor.EMAIL
    grant = complete(rt, issued, mailed_code(rt, mailbox), factor=Factor.EMAIL)
    assert claims.read(rt, grant.access.text).amr == ("email", "pwd")


def test_no_code_is_mailed_to_who_has_an_authenticator(
    rt: Runtime, ada: Person, app: Authenticator, mailbox: Mailbox
) -> None:
    outbox.deliver_due(rt)
    told = len(mailbox.mails)
    begin(rt, ada)
    outbox.deliver_due(rt)
    assert len(mailbox.mails) == told


def test_a_recovery_code_stands_in_for_the_authenticator_once(rt: Runtime, ada: Person, app: Authenticator) -> None:
    code = app.recovery_codes[0]
    assert outcome(rt, begin(rt, ada), code, factor=Factor.RECOVERY) is None
    assert outcome(rt, begin(rt, ada), code, factor=Factor.RECOVERY) == INVALID_CODE


def test_a_recovery_code_is_none_for_a_mailed_code(rt: Runtime, ada: Person, mailbox: Mailbox) -> None:
    issued = begin(rt, ada)
    assert outcome(rt, issued, mailed_code(rt, mailbox), factor=Factor.RECOVERY) == INVALID_CODE


def test_a_code_of_the_wrong_kind_is_a_wrong_code(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    assert outcome(rt, begin(rt, ada), app.at(clock.now()), factor=Factor.EMAIL) == INVALID_CODE


def test_each_challenge_has_its_own_mailed_code(rt: Runtime, ada: Person, mailbox: Mailbox, clock: FakeClock) -> None:
    first = begin(rt, ada)
    code = mailed_code(rt, mailbox)
    clock.tick(1)
    second = begin(rt, ada)
    assert outcome(rt, second, code) == INVALID_CODE
    assert outcome(rt, first, code) is None


class TestFixedOtp:
    """`IDENTITY_FIXED_OTP=1`."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, fixed_otp=True)

    def test_it_answers_where_the_dialect_allows_it(self, rt: Runtime, ada: Person) -> None:
        with rt.unit(ORIGIN) as unit:
            factors.set_fixed_otp(rt, unit, accounts.get(rt, ada.id), "482901", actor="admin")
        assert begin(rt, ada).factor is Factor.EMAIL
        issued = begin(rt, ada, allows_fixed=True)
        assert issued.factor is Factor.FIXED
        assert outcome(rt, issued, "482902") == INVALID_CODE
        assert outcome(rt, issued, "482901") is None

    def test_taking_it_away_ends_what_waits_for_it(self, rt: Runtime, ada: Person) -> None:
        user = accounts.get(rt, ada.id)
        with rt.unit(ORIGIN) as unit:
            factors.set_fixed_otp(rt, unit, user, "482901", actor="admin")
        issued = begin(rt, ada, allows_fixed=True)
        with rt.unit(ORIGIN) as unit:
            factors.clear_fixed_otp(rt, unit, user, actor="admin")
        assert outcome(rt, issued, "482901") == INVALID_CODE


# One success.


def test_an_answered_challenge_is_spent(rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock) -> None:
    issued = begin(rt, ada)
    assert outcome(rt, issued, app.at(clock.now())) is None
    clock.tick(30)
    assert outcome(rt, issued, app.at(clock.now())) == INVALID_CODE


def test_100_parallel_right_codes_succeed_once_and_lock_nobody_out(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    issued, code = begin(rt, ada), app.at(clock.now())
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: outcome(rt, issued, code), range(100)))
    assert outcomes.count(None) == 1
    assert set(outcomes) <= {None, INVALID_CODE}
    with rt.database.reading() as session:
        assert len(session.scalars(select(sessions.UserSession)).all()) == 1
    assert begin(rt, ada).factor is Factor.TOTP  # not locked: none of the 99 was a guess


def test_one_code_answers_one_of_many_challenges(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    many, code = [begin(rt, ada) for _ in range(4)], app.at(clock.now())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda issued: outcome(rt, issued, code), many)).count(None) == 1


# Five tries.


def test_the_fifth_wrong_code_is_the_last(rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock) -> None:
    issued = begin(rt, ada)
    for number in range(5):
        elsewhere = ORIGIN._replace(address=f"198.51.100.{number}")
        assert outcome(rt, issued, "junk", origin=elsewhere) == INVALID_CODE
    assert outcome(rt, issued, app.at(clock.now())) == INVALID_CODE
    assert outcome(rt, begin(rt, ada), app.at(clock.now())) is None


def test_the_fifth_try_may_be_the_right_one(rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock) -> None:
    issued = begin(rt, ada)
    for _ in range(4):
        assert outcome(rt, issued, "junk") == INVALID_CODE
    assert outcome(rt, issued, app.at(clock.now())) is None


def test_200_parallel_wrong_codes_are_looked_at_five_times(
    rt: Runtime, ada: Person, app: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(factors, "take_totp", lambda _rt, _unit, _user, code: looks.append(code) or False)
    issued = begin(rt, ada)

    def guess(number: int) -> Problem | None:
        return outcome(rt, issued, f"{number:06d}", origin=ORIGIN._replace(address=f"198.51.100.{number}"))

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(guess, range(200)))
    assert len(looks) == 5
    assert set(outcomes) <= {INVALID_CODE, LOCKED_OUT}


def test_wrong_codes_from_one_address_lock_every_way_in(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    issued = begin(rt, ada)
    for _ in range(5):
        assert outcome(rt, issued, "junk") == INVALID_CODE
    with pytest.raises(Refused) as refused:
        begin(rt, ada)
    assert refused.value.problem == LOCKED_OUT
    assert audit.count(rt, actor=ada.id, action=Action.LOGIN_FAILED) == 5


def test_who_is_locked_out_meanwhile_cannot_complete(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    issued = begin(rt, ada)
    for _ in range(5):
        with pytest.raises(Refused):
            password_proof.check_password(rt, ORIGIN, "ada", "wrong")
    assert outcome(rt, issued, app.at(clock.now())) == LOCKED_OUT


# 300 seconds.


def test_a_challenge_lives_300_seconds(rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock) -> None:
    outcomes = {}
    for seconds in (299, 300, 301):
        issued = begin(rt, ada)
        clock.tick(seconds)
        outcomes[seconds] = outcome(rt, issued, app.at(clock.now()))
    assert outcomes == {299: None, 300: INVALID_CODE, 301: INVALID_CODE}


def test_the_janitor_forgets_what_is_long_over_and_nothing_else(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    begin(rt, ada)
    clock.tick(86_400 + 301)
    begin(rt, ada)
    with rt.unit(ORIGIN) as unit:
        assert challenges.purge(rt, unit) == 1
    with rt.database.reading() as session:
        assert len(session.scalars(select(Challenge)).all()) == 1


# Looked at again.


@pytest.mark.parametrize("how", ["disabled", "outside the window", "new password", "new rights", "erased"])
def test_who_changed_since_the_first_step_is_refused_like_a_wrong_code(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock, how: str
) -> None:
    issued = begin(rt, ada)
    with rt.unit(ORIGIN) as unit:
        change = update(User).where(User.id == ada.id)
        match how:
            case "disabled":
                unit.execute(change.values(enabled=False))
            case "outside the window":
                unit.execute(change.values(ends_at=clock.now()))
            case "new password":
                accounts.set_password_hash(unit, ada.id, None)
            case "new rights":
                unit.execute(change.values(version=User.version + 1))
            case _:
                accounts.erase_row(unit, ada.id)
    assert outcome(rt, issued, app.at(clock.now())) == INVALID_CODE


def test_a_mailed_code_is_not_enough_once_there_is_an_authenticator(
    rt: Runtime, ada: Person, mailbox: Mailbox, clock: FakeClock
) -> None:
    issued = begin(rt, ada)
    code = mailed_code(rt, mailbox)
    an_authenticator(rt, ada)
    assert outcome(rt, issued, code) == INVALID_CODE


def test_a_removed_authenticator_ends_what_waits_for_it(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    issued = begin(rt, ada)
    with rt.unit(ORIGIN) as unit:
        factors.remove(rt, unit, accounts.get(rt, ada.id), actor="admin")
    assert outcome(rt, issued, app.at(clock.now())) == INVALID_CODE


# The first step.


def test_the_first_step_refuses_like_every_password_check(rt: Runtime, ada: Person) -> None:
    with pytest.raises(Refused) as refused:
        begin(rt, replace(ada, password="wrong"))
    assert refused.value.problem == INVALID_CREDENTIALS
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(ends_at=unit.now))
    with pytest.raises(Refused) as outside:
        begin(rt, ada)
    assert outside.value.problem == ACCESS_WINDOW_EXPIRED


def test_too_many_mailed_codes_are_refused_without_counting_as_guesses(
    rt: Runtime, ada: Person, clock: FakeClock
) -> None:
    for _ in range(5):
        begin(rt, ada)
    for _ in range(6):
        with pytest.raises(Refused) as refused:
            begin(rt, ada)
        assert refused.value.problem == MAIL_LIMITED
        clock.tick(40)
    clock.tick(600)
    assert begin(rt, ada).factor is Factor.EMAIL


class TestEnrolledOnly:
    """`IDENTITY_SECOND_FACTOR=enrolled`."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, second_factor="enrolled")

    def test_who_has_no_authenticator_is_in_at_once(self, rt: Runtime, ada: Person) -> None:
        grant = by_password.sign_in(rt, ORIGIN, identifier="ada", password=ada.password, resource=RESOURCE)
        assert isinstance(grant, Grant)
        assert claims.read(rt, grant.access.text).amr == ("pwd",)
        assert grant.refresh is not None

    def test_who_has_one_is_asked_for_it(self, rt: Runtime, ada: Person, app: Authenticator) -> None:
        issued = by_password.sign_in(rt, ORIGIN, identifier="ada", password=ada.password, resource=RESOURCE)
        assert isinstance(issued, Issued)
        assert issued.factor is Factor.TOTP

    def test_a_login_that_always_has_two_steps_has_two(self, rt: Runtime, ada: Person) -> None:
        assert begin(rt, ada).factor is Factor.EMAIL


# The password and the code in one request.


def day_token(rt: Runtime, person: Person, totp_code: str | None) -> Problem | None:
    try:
        by_password.by_password(
            rt, ORIGIN, identifier=person.alias, password=person.password, totp_code=totp_code, resource=RESOURCE
        )
    except Refused as refused:
        return refused.problem
    return None


def test_the_password_alone_is_not_enough_and_counts_as_no_failure(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    for _ in range(10):
        assert day_token(rt, ada, None) == MFA_REQUIRED
    assert day_token(rt, ada, app.at(clock.now())) is None


def test_a_right_password_buys_five_guesses_at_the_code(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    for _ in range(5):
        assert day_token(rt, ada, "000000") == INVALID_CODE
    assert day_token(rt, ada, app.at(clock.now())) == LOCKED_OUT
    clock.tick(299)
    assert day_token(rt, ada, app.at(clock.now())) == LOCKED_OUT
    clock.tick(1)
    assert day_token(rt, ada, app.at(clock.now())) is None
    assert audit.count(rt, actor=ada.id, action=Action.LOGIN_FAILED) == 5


def test_a_wrong_code_leaves_no_session_behind(rt: Runtime, ada: Person, app: Authenticator) -> None:
    assert day_token(rt, ada, "000000") == INVALID_CODE
    with rt.database.reading() as session:
        assert not session.scalars(select(sessions.UserSession)).all()


def test_100_wrong_codes_in_a_day_end_guessing_by_every_route(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    with rt.unit(ORIGIN) as unit:
        for _ in range(99):
            attempts.fail(rt, unit, (attempts.Charge(attempts.SECOND_FACTOR, ada.id),))
    assert day_token(rt, ada, "000000") == INVALID_CODE
    assert day_token(rt, ada, app.at(clock.now())) == LOCKED_OUT
    assert outcome(rt, begin(rt, ada), app.at(clock.now())) == LOCKED_OUT
    clock.tick(86_400)
    assert day_token(rt, ada, app.at(clock.now())) is None


def test_a_guess_that_a_full_day_refuses_is_not_held_against_the_password(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    with rt.unit(ORIGIN) as unit:
        for _ in range(100):
            attempts.fail(rt, unit, (attempts.Charge(attempts.SECOND_FACTOR, ada.id),))
    for _ in range(6):
        assert day_token(rt, ada, app.at(clock.now())) == LOCKED_OUT
    clock.tick(31)  # a reservation that was left behind would count by now
    password_proof.waste(password_proof.check_password(rt, ORIGIN, "ada", ada.password))


# The token.


def test_a_challenge_token_has_a_type_of_its_own_and_no_bearer_route_reads_it(
    rt: Runtime, ada: Person, app: Authenticator
) -> None:
    token = begin(rt, ada).token.reveal()
    header = json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
    assert header == {"alg": "HS256", "typ": "mfa-challenge+jwt"}
    with pytest.raises(Refused) as refused:
        claims.read(rt, token)
    assert refused.value.problem == INVALID_TOKEN


def test_an_access_token_is_no_challenge(rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock) -> None:
    grant = complete(rt, begin(rt, ada), app.at(clock.now()))
    with pytest.raises(Refused) as refused:
        challenges.get(rt, grant.access.text, handout=Handout.REFRESHABLE)
    assert refused.value.problem == INVALID_CODE


def test_a_challenge_of_one_handout_is_none_of_another(
    rt: Runtime, ada: Person, app: Authenticator, clock: FakeClock
) -> None:
    token = begin(rt, ada).token.reveal()
    with pytest.raises(Refused) as refused:
        by_password.complete(rt, ORIGIN, token=token, handout=Handout.DAY, code=app.at(clock.now()))
    assert refused.value.problem == INVALID_CODE


def test_a_forged_or_altered_challenge_token_is_refused(rt: Runtime, ada: Person, app: Authenticator) -> None:
    token = begin(rt, ada).token.reveal()
    head, payload, signature = token.split(".")
    other = base64.urlsafe_b64encode(b'{"alg":"none","typ":"mfa-challenge+jwt"}').decode().rstrip("=")
    flipped = signature[:-1] + ("A" if signature[-1] != "A" else "B")
    forgeries = [
        *(token[:cut] for cut in range(0, len(token), 7)),
        f"{token}=",
        f" {token}",
        f"{token}.",
        f"{token}A",
        f"{head}.{payload}.{flipped}",
        f"{head}.{payload}.",
        f"{other}.{payload}.{signature}",
        f"{other}.{payload}.",
        f"{head}.{payload}A.{signature}",
        "",
        "..",
        "\ud800",
        "x" * 100_000,
    ]
    for forgery in forgeries:
        with pytest.raises(Refused) as refused:
            challenges.get(rt, forgery, handout=Handout.REFRESHABLE)
        assert refused.value.problem == INVALID_CODE, forgery
    assert challenges.get(rt, token, handout=Handout.REFRESHABLE).user_id == ada.id
