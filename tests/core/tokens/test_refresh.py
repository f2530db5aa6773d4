"""Refresh tokens: one successor however often and at once they are used, one row, and an end for whoever copied one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from identity.core.clients import applications
from identity.core.mail import outbox
from identity.core.people.accounts import User, recheck
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import by_password
from identity.core.tokens import claims, sessions
from identity.core.tokens.sessions import Opened, UserSession
from identity.errors import INVALID_TOKEN, TOKEN_EXPIRED, Problem, Refused
from identity.instruments.opaque import Kind, encode
from identity.runtime import Runtime
from tests.builders import Person, a_user
from tests.world import ORIGIN, FakeClock, Mailbox

DAY = 86_400


def opened_for(rt: Runtime, person: Person) -> tuple[Opened, str]:
    """A session as a login in two steps opens it, and its first refresh token."""
    with rt.unit(ORIGIN) as unit:
        opened = sessions.open_session(
            rt,
            unit,
            recheck(unit, person.id),
            kind="login",
            amr=("pwd", "otp"),
            client_id=applications.standard_client(rt),
            resource=rt.settings.default_audience,
            idle_seconds=rt.settings.refresh_idle_seconds,
            absolute_seconds=rt.settings.session_absolute_seconds,
            with_refresh=True,
        )
    assert opened.refresh is not None
    return opened, opened.refresh.reveal()


def turn(rt: Runtime, token: str) -> str:
    """The successor of a refresh token."""
    return by_password.refresh(rt, ORIGIN, token)[1].reveal()


def refusal(rt: Runtime, token: str) -> Problem:
    with pytest.raises(Refused) as refused:
        turn(rt, token)
    return refused.value.problem


@pytest.fixture
def ada(rt: Runtime) -> Person:
    return a_user(rt)


@pytest.fixture
def first(rt: Runtime, ada: Person) -> str:
    return opened_for(rt, ada)[1]


def test_a_refresh_gives_an_hours_token_of_the_same_login(rt: Runtime, ada: Person, clock: FakeClock) -> None:
    opened, token = opened_for(rt, ada)
    clock.tick(60)
    access, successor = by_password.refresh(rt, ORIGIN, token)
    said = claims.read(rt, access.text)
    assert (access.expires_in, said.subject, said.session_id) == (3600, ada.id, opened.session.id)
    assert (said.amr, said.auth_time) == (("otp", "pwd"), int(opened.session.auth_time.timestamp()))
    assert successor.reveal() != token


def test_a_session_stays_one_row_and_keeps_no_token(rt: Runtime, first: str) -> None:
    token = first
    for _ in range(20):
        token = turn(rt, token)
    with rt.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(UserSession)) == 1
        row = session.scalars(select(UserSession)).one()
    assert row.generation == 20
    assert all(token.encode() not in value for value in vars(row).values() if isinstance(value, bytes))


def test_the_previous_token_gets_the_same_successor_for_ten_seconds(
    rt: Runtime, ada: Person, clock: FakeClock, mailbox: Mailbox
) -> None:
    outcomes = {}
    for seconds in (9, 10, 11):
        _, token = opened_for(rt, ada)
        successor = turn(rt, token)
        clock.tick(seconds)
        try:
            outcomes[seconds] = turn(rt, token) == successor
        except Refused as refused:
            outcomes[seconds] = refused.problem
    assert outcomes == {9: True, 10: INVALID_TOKEN, 11: INVALID_TOKEN}


def test_a_lost_answer_is_recovered_by_a_retry_and_the_chain_goes_on(rt: Runtime, first: str, clock: FakeClock) -> None:
    turn(rt, first)  # the answer is lost
    clock.tick(3)
    second = turn(rt, first)
    clock.tick(60)
    assert turn(rt, second)


def test_a_retry_does_not_renew_the_grace(rt: Runtime, first: str, clock: FakeClock) -> None:
    turn(rt, first)
    clock.tick(9)
    turn(rt, first)
    clock.tick(9)
    assert refusal(rt, first) == INVALID_TOKEN


def test_reuse_after_the_grace_ends_the_session_and_tells_its_user_once(
    rt: Runtime, ada: Person, clock: FakeClock, mailbox: Mailbox
) -> None:
    opened, token = opened_for(rt, ada)
    other, _ = opened_for(rt, ada)
    successor = turn(rt, token)
    clock.tick(10)
    assert refusal(rt, token) == INVALID_TOKEN
    assert refusal(rt, successor) == INVALID_TOKEN
    assert refusal(rt, token) == INVALID_TOKEN
    with pytest.raises(Refused):
        sessions.find_live(rt, opened.session.id)
    assert sessions.find_live(rt, other.session.id)
    assert audit.count(rt, target=opened.session.id, action=Action.REFRESH_REUSED) == 1
    outbox.deliver_due(rt)
    told = [mail for mail in mailbox.mails if "A session of yours" in str(mail["Subject"])]
    assert [str(mail["To"]) for mail in told] == [ada.email]


def test_a_token_two_generations_old_is_a_copy_even_within_the_grace(rt: Runtime, first: str) -> None:
    third = turn(rt, turn(rt, first))
    assert refusal(rt, first) == INVALID_TOKEN
    assert refusal(rt, third) == INVALID_TOKEN


def test_four_generations_each_used_twice_at_once_end_with_any_reuse(rt: Runtime, first: str, clock: FakeClock) -> None:
    generations = [first]
    for _ in range(4):
        with ThreadPoolExecutor(2) as pool:
            pair = set(pool.map(lambda token: turn(rt, token), [generations[-1]] * 2))
        assert len(pair) == 1
        generations.append(pair.pop())
        clock.tick(11)
    assert len(set(generations)) == 5
    assert refusal(rt, generations[1]) == INVALID_TOKEN
    assert {refusal(rt, token) for token in generations} == {INVALID_TOKEN}


def test_50_parallel_refreshes_have_one_successor(rt: Runtime, first: str) -> None:
    token = first
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            successors = set(pool.map(lambda spent: turn(rt, spent), [token] * 50))
        assert len(successors) == 1
        token = successors.pop()


# Ends.


def test_a_refresh_token_dies_after_seven_days_without_use(rt: Runtime, ada: Person, clock: FakeClock) -> None:
    outcomes = {}
    for seconds in (7 * DAY - 1, 7 * DAY, 7 * DAY + 1):
        _, token = opened_for(rt, ada)
        clock.tick(seconds)
        try:
            outcomes[seconds] = bool(turn(rt, token))
        except Refused as refused:
            outcomes[seconds] = refused.problem
    assert outcomes == {7 * DAY - 1: True, 7 * DAY: TOKEN_EXPIRED, 7 * DAY + 1: TOKEN_EXPIRED}


def test_use_keeps_it_alive_for_30_days_in_all(rt: Runtime, first: str, clock: FakeClock) -> None:
    token = first
    for _ in range(4):
        clock.tick(7 * DAY - 1)
        token = turn(rt, token)
    clock.tick(2 * DAY + 3)
    token = turn(rt, token)
    clock.tick(1)
    assert refusal(rt, token) == TOKEN_EXPIRED


def test_the_last_access_token_does_not_outlive_the_session(rt: Runtime, first: str, clock: FakeClock) -> None:
    token = first
    for _ in range(4):
        clock.tick(7 * DAY - 1)
        token = turn(rt, token)
    clock.tick(2 * DAY - 60)
    access, _ = by_password.refresh(rt, ORIGIN, token)
    assert access.expires_in == 64


def test_expiry_comes_before_the_grace(rt: Runtime, first: str, clock: FakeClock) -> None:
    token = first
    for _ in range(4):
        clock.tick(7 * DAY - 1)
        token = turn(rt, token)
    clock.tick(2 * DAY)
    turn(rt, token)
    clock.tick(5)
    assert refusal(rt, token) == TOKEN_EXPIRED


def test_a_refresh_token_ends_with_its_session_and_its_user(rt: Runtime, clock: FakeClock) -> None:
    for how in ("logout", "all ended", "disabled", "window closed", "erased"):
        person = a_user(rt)
        opened, token = opened_for(rt, person)
        successor = turn(rt, token)
        with rt.unit(ORIGIN) as unit:
            match how:
                case "logout":
                    sessions.revoke(rt, unit, opened.session.id, actor=person.id, reason="logout")
                case "all ended":
                    sessions.revoke_all(rt, unit, person.id, actor=person.id, reason="password changed")
                case "disabled":
                    unit.execute(update(User).where(User.id == person.id).values(enabled=False))
                case "window closed":
                    unit.execute(update(User).where(User.id == person.id).values(ends_at=clock.now()))
                case _:
                    sessions.forget(unit, person.id)
        assert (refusal(rt, successor), refusal(rt, token)) == (INVALID_TOKEN, INVALID_TOKEN), how


def test_a_refusal_turns_nothing(rt: Runtime, ada: Person) -> None:
    _, token = opened_for(rt, ada)
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(enabled=False))
    assert refusal(rt, token) == INVALID_TOKEN
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(enabled=True))
    assert turn(rt, token)


# Forgeries.


def test_no_other_spelling_of_a_refresh_token_works(rt: Runtime, first: str) -> None:
    with rt.database.reading() as session:
        session_id = session.scalars(select(UserSession.id)).one()
    invented = encode(Kind.REFRESH, bytes.fromhex(session_id.replace("-", "")) + bytes(24)).reveal()
    spellings = [
        *(first[:cut] for cut in range(len(first))),
        f"{first} ",
        f"{first}=",
        first.swapcase(),
        first.replace("idr_", "ids_"),
        invented,
        "\ud800",
        "x" * 100_000,
    ]
    for spelling in spellings:
        assert refusal(rt, spelling) == INVALID_TOKEN, spelling
    assert turn(rt, first)


def test_a_token_ahead_of_its_row_ends_the_session(rt: Runtime, ada: Person) -> None:
    opened, token = opened_for(rt, ada)
    ahead = turn(rt, turn(rt, token))
    with rt.unit(ORIGIN) as unit:  # what a restored backup looks like
        unit.execute(update(UserSession).where(UserSession.id == opened.session.id).values(generation=0))
    assert refusal(rt, ahead) == INVALID_TOKEN
    assert refusal(rt, token) == INVALID_TOKEN
