"""Six digits, ten minutes, five tries, one success: for every purpose, on both databases, however many try at once."""

import collections
import functools
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy

from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.proofs import codes
from identity.core.proofs.codes import Consumed, Purpose
from identity.errors import INVALID_CODE, MAIL_LIMITED, VALIDATION, Refused
from tests import servers
from tests.core.mail_world import ORIGIN, World, fresh_url, opened

ADA = "ada@example.com"
# The long form, 200 rounds, takes a minute and a half.
ROUNDS = int(os.environ.get("IDENTITY_TEST_ROUNDS", "10"))


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[], servers.Postgres]]:
    started = functools.cache(servers.start_postgres)
    yield started
    if started.cache_info().currsize:
        started().stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def world(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, postgres: Callable[[], servers.Postgres]
) -> Iterator[World]:
    with opened(fresh_url(request.param, tmp_path, postgres)) as world:
        yield world


@pytest.fixture
def sqlite(tmp_path: pathlib.Path) -> Iterator[World]:
    with opened(f"sqlite:///{tmp_path}/identity.db") as world:
        yield world


def issue(world: World, purpose: Purpose = Purpose.SESSION, subject: str = "s1", address: str = ADA) -> tuple[str, str]:
    """A verification id and the code that came by mail."""
    values = {"key_name": "build"} if purpose is Purpose.KEYPAIR else {}
    with world.rt.unit(ORIGIN) as unit:
        verification_id = codes.issue(
            world.rt, unit, purpose, subject=subject, user_id="u1", address=address, values=values
        )
    outbox.deliver_due(world.rt)
    return verification_id, code_in_last_mail(world)


def issue_nothing(world: World, subject: str = "s0", address: str = "nobody@example.com") -> str:
    with world.rt.unit(ORIGIN) as unit:
        return codes.issue_nothing(world.rt, unit, Purpose.SESSION, subject=subject, address=address)


def code_in_last_mail(world: World) -> str:
    [code] = set(re.findall(r"\b[0-9]{6}\b", world.mailbox.mails[-1].as_string()))
    return code


def consume(world: World, verification_id: str, code: str, purpose: Purpose = Purpose.SESSION) -> Consumed:
    with world.rt.unit(ORIGIN) as unit:
        return codes.consume(world.rt, unit, purpose, verification_id, code)


def refused(world: World, verification_id: str, code: str, purpose: Purpose = Purpose.SESSION) -> Refused:
    with pytest.raises(Refused) as caught:
        consume(world, verification_id, code, purpose)
    assert caught.value.problem == INVALID_CODE
    return caught.value


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def row(world: World, verification_id: str) -> codes.Code:
    with world.rt.database.reading() as session:
        return session.get_one(codes.Code, verification_id)


# --- One success ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", Purpose)
def test_a_right_code_tells_what_it_was_for_and_works_once(world: World, purpose: Purpose) -> None:
    verification_id, code = issue(world, purpose)
    assert consume(world, verification_id, code, purpose) == Consumed("s1", "u1", ADA)
    refused(world, verification_id, code, purpose)


def test_a_code_is_stored_as_a_keyed_hash_bound_to_its_id(world: World) -> None:
    verification_id, code = issue(world)
    stored = row(world, verification_id)
    assert len(stored.digest) == 32
    assert code not in repr(stored.__dict__)
    other, _ = issue(world, subject="s2")
    with world.rt.unit(ORIGIN) as unit:
        unit.execute(sqlalchemy.update(codes.Code).where(codes.Code.id == other).values(digest=stored.digest))
    refused(world, other, code)


@pytest.mark.parametrize("purpose", [purpose for purpose in Purpose if purpose is not Purpose.SESSION])
def test_a_code_for_one_purpose_is_none_for_another(world: World, purpose: Purpose) -> None:
    verification_id, code = issue(world)
    refused(world, verification_id, code, purpose)
    assert row(world, verification_id).attempts == 0
    consume(world, verification_id, code)


def test_the_code_of_another_verification_id_is_refused(world: World) -> None:
    first, code = issue(world)
    second, other = issue(world, subject="s2")
    if code != other:
        refused(world, second, code)
    refused(world, "01890000-0000-7000-8000-000000000000", code)
    consume(world, first, code)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "12345",
        "1234567",
        "12345a",
        " 12345",
        "12345\n",
        "123456\n",
        "１２３４５６",
        "𝟏𝟐𝟑𝟒𝟓𝟔",
        "١٢٣٤٥٦",
        "\ud800",
        "+12345",
    ],
)
def test_what_is_not_six_ascii_digits_is_refused_and_costs_no_try(sqlite: World, code: str) -> None:
    verification_id, _ = issue(sqlite)
    refused(sqlite, verification_id, code)
    assert row(sqlite, verification_id).attempts == 0


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        "{{{}}}".format,
        "urn:uuid:{}".format,
        lambda i: i.replace("-", ""),
        lambda i: i + "\n",
        lambda i: i[:-1],
        lambda i: "\ud800",
    ],
)
def test_a_verification_id_has_one_spelling(sqlite: World, change: Callable[[str], str]) -> None:
    verification_id, code = issue(sqlite)
    refused(sqlite, change(verification_id), code)
    consume(sqlite, verification_id, code)


def test_every_refusal_is_alike_to_the_caller(world: World) -> None:
    spent, code = issue(world)
    consume(world, spent, code)
    live, code = issue(world, subject="s2")
    every = [
        refused(world, spent, code),
        refused(world, live, wrong(code)),
        refused(world, live, code, Purpose.RESET),
        refused(world, "x", "y"),
        refused(world, "01890000-0000-7000-8000-000000000000", code),
        refused(world, issue_nothing(world), code),
    ]
    assert {(r.problem, r.field, r.retry_after_seconds) for r in every} == {(INVALID_CODE, None, None)}
    assert all(code not in f"{r.detail}{r.evidence}" for r in every)


@pytest.mark.parametrize("kind", ["spent", "dead", "exhausted", "unknown"])
def test_the_log_may_know_why(sqlite: World, kind: str) -> None:
    verification_id, code = issue(sqlite)
    if kind == "spent":
        consume(sqlite, verification_id, code)
    elif kind == "dead":
        issue(sqlite)
    elif kind == "exhausted":
        for _ in range(5):
            refused(sqlite, verification_id, wrong(code))
    else:
        verification_id = "01890000-0000-7000-8000-000000000000"
    evidence = refused(sqlite, verification_id, code).evidence
    assert evidence.get("state") == {"exhausted": "live", "unknown": None}.get(kind, kind)
    assert evidence.get("attempts") == {"spent": 1, "dead": 0, "exhausted": 5}.get(kind)


def test_a_refusal_after_the_code_gives_it_back(world: World) -> None:
    verification_id, code = issue(world)

    def deed() -> None:
        with world.rt.unit(ORIGIN) as unit:
            codes.consume(world.rt, unit, Purpose.SESSION, verification_id, code)
            raise Refused(VALIDATION)

    with pytest.raises(Refused):
        deed()
    consume(world, verification_id, code)


# --- Five tries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "works"), [(3, True), (4, True), (5, False)])
def test_a_code_allows_five_tries_in_all(world: World, failures: int, works: bool) -> None:
    verification_id, code = issue(world)
    for number in range(failures):
        assert refused(world, verification_id, wrong(code)).evidence == {"attempts": number + 1}
    if works:
        consume(world, verification_id, code)
    else:
        refused(world, verification_id, code)


# --- Ten minutes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "works"), [(599.999999, True), (600, False), (600.000001, False)])
def test_a_code_lives_ten_minutes(world: World, seconds: float, works: bool) -> None:
    verification_id, code = issue(world)
    world.clock.tick(seconds)
    if works:
        consume(world, verification_id, code)
    else:
        refused(world, verification_id, code)


# --- One live code ----------------------------------------------------------------------------------------------------


def test_the_old_code_dies_when_a_new_one_is_issued(world: World) -> None:
    old, old_code = issue(world)
    new, new_code = issue(world)
    assert old != new
    refused(world, old, old_code)
    consume(world, new, new_code)


def test_codes_for_other_subjects_and_purposes_live_on(world: World) -> None:
    first = issue(world, Purpose.SESSION, "s1")
    issue(world, Purpose.SESSION, "s2")
    issue(world, Purpose.RESET, "s1")
    consume(world, *first)


def test_a_cancelled_code_is_dead(world: World) -> None:
    verification_id, code = issue(world)
    with world.rt.unit(ORIGIN) as unit:
        codes.cancel(unit, Purpose.SESSION, "s1")
    refused(world, verification_id, code)


def test_a_code_that_dies_while_it_is_compared_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    verification_id, code = issue(world)
    real = codes._digest

    def deed() -> None:
        with world.rt.unit(ORIGIN) as unit:
            monkeypatch.setattr(codes, "_digest", lambda *a: (codes.cancel(unit, Purpose.SESSION, "s1"), real(*a))[1])
            codes.consume(world.rt, unit, Purpose.SESSION, verification_id, code)

    with pytest.raises(Refused) as caught:
        deed()
    assert caught.value.problem == INVALID_CODE


def test_the_schema_refuses_a_second_live_code(world: World) -> None:
    _, _ = issue(world)
    issue(world, subject="s2")
    with pytest.raises(sqlalchemy.exc.IntegrityError), world.rt.unit(ORIGIN) as unit:
        unit.execute(sqlalchemy.update(codes.Code).values(subject="s1"))


def test_a_rollback_takes_code_and_mail_with_it_and_leaves_the_old_code(world: World) -> None:
    old, code = issue(world)

    def deed() -> None:
        with world.rt.unit(ORIGIN) as unit:
            codes.issue(world.rt, unit, Purpose.SESSION, subject="s1", user_id="u1", address=ADA)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        deed()
    assert outbox.deliver_due(world.rt) == 0
    consume(world, old, code)


# --- Resending --------------------------------------------------------------------------------------------------------


def test_the_sixth_code_to_an_address_in_ten_minutes_is_refused(world: World) -> None:
    for number in range(5):
        issue(world, subject=f"s{number}")
        world.clock.tick(60)
    with pytest.raises(Refused) as caught:
        issue(world, subject="s9")
    assert caught.value.problem == MAIL_LIMITED
    assert caught.value.retry_after_seconds == 300
    issue(world, subject="s9", address="grace@example.com")


@pytest.mark.parametrize(("seconds", "works"), [(599.999999, False), (600, True), (600.000001, True)])
def test_the_resend_window_slides(world: World, seconds: float, works: bool) -> None:
    for _ in range(5):
        issue(world)
    world.clock.tick(seconds)
    if works:
        issue(world)
    else:
        with pytest.raises(Refused) as caught:
            issue(world)
        assert caught.value.retry_after_seconds == 1


def test_a_refused_resend_leaves_the_live_code_alone(world: World) -> None:
    for _ in range(5):
        verification_id, code = issue(world)
    with pytest.raises(Refused):
        issue(world)
    consume(world, verification_id, code)


def test_all_that_anybody_may_ask_for_shares_one_budget(world: World) -> None:
    for purpose in (Purpose.SESSION, Purpose.EMAIL, Purpose.RESET, Purpose.SESSION, Purpose.RESET):
        issue(world, purpose)
    with pytest.raises(Refused):
        issue(world, Purpose.EMAIL)


def test_strangers_cannot_use_up_the_second_factor_of_the_owner(world: World) -> None:
    for _ in range(5):
        issue(world, Purpose.SESSION)
    for _ in range(4):
        issue(world, Purpose.LOGIN)
    issue(world, Purpose.KEYPAIR)
    with pytest.raises(Refused):
        issue(world, Purpose.LOGIN)


def test_a_stranger_does_not_use_up_what_the_owner_may_send(world: World) -> None:
    """Counted by address and client; over all clients there is four times as much."""
    for number in range(4):
        for _ in range(5):
            ask_from(world, f"192.0.2.{number}")
        with pytest.raises(Refused):
            ask_from(world, f"192.0.2.{number}")
    with pytest.raises(Refused) as caught:
        ask_from(world, "198.51.100.1")
    assert caught.value.problem == MAIL_LIMITED
    world.clock.tick(600)
    ask_from(world, "198.51.100.1")


def ask_from(world: World, client: str) -> None:
    with world.rt.unit(ORIGIN._replace(address=client)) as unit:
        codes.issue(world.rt, unit, Purpose.SESSION, subject=client, user_id="u1", address=ADA)


# --- Nobody's address -------------------------------------------------------------------------------------------------


def test_an_unknown_address_gets_an_id_of_the_same_shape_and_no_mail(world: World) -> None:
    known, _ = issue(world)
    unknown = issue_nothing(world)
    assert re.sub("[0-9a-f]", "x", known) == re.sub("[0-9a-f]", "x", unknown)
    assert outbox.deliver_due(world.rt) == 0
    assert len(world.mailbox.mails) == 1


def test_an_unknown_address_is_throttled_like_a_known_one(world: World) -> None:
    for _ in range(5):
        issue_nothing(world)
        world.clock.tick(60)
    with pytest.raises(Refused) as caught:
        issue_nothing(world)
    assert (caught.value.problem, caught.value.retry_after_seconds) == (MAIL_LIMITED, 300)


def test_an_unknown_address_is_kept_as_a_hash_only(world: World) -> None:
    stored = row(world, issue_nothing(world))
    assert stored.address == ""
    assert b"nobody" not in stored.address_key
    assert [mail.recipient for mail in world.rows()] == [""]


def test_no_code_at_all_fits_an_id_given_for_an_unknown_address(sqlite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "_six_digits", lambda _: "123456")
    verification_id = issue_nothing(sqlite)
    assert refused(sqlite, verification_id, "123456").evidence == {"attempts": 1}


def test_known_and_unknown_addresses_cost_the_same_statements(world: World) -> None:
    def statements(deed: Callable[[], object]) -> list[str]:
        seen: list[str] = []

        def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement)

        sqlalchemy.event.listen(world.rt.database.engine, "before_cursor_execute", note)
        try:
            deed()
        finally:
            sqlalchemy.event.remove(world.rt.database.engine, "before_cursor_execute", note)
        return seen

    def known() -> None:
        with world.rt.unit(ORIGIN) as unit:
            codes.issue(world.rt, unit, Purpose.SESSION, subject="s1", user_id="u1", address=ADA)

    assert statements(known) == statements(lambda: issue_nothing(world))
    mine, code = issue(world)
    theirs = issue_nothing(world)
    assert statements(lambda: refused(world, mine, wrong(code))) == statements(lambda: refused(world, theirs, code))


# --- Many at once -----------------------------------------------------------------------------------------------------


def race(deed: Callable[[], object], count: int) -> collections.Counter[str]:
    """Start `count` threads on `deed` together; how often each outcome came."""
    outcomes: collections.Counter[str] = collections.Counter()
    gate, lock = threading.Barrier(count), threading.Lock()

    def run() -> None:
        gate.wait()
        try:
            deed()
            outcome = "ok"
        except Refused as exc:
            outcome = exc.problem.code
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the assertion shows it
            outcome = repr(exc)
        with lock:
            outcomes[outcome] += 1

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_fifty_who_submit_a_code_at_once_one_succeeds(world: World) -> None:
    for number in range(ROUNDS):
        verification_id, code = issue(world, subject=f"s{number}")
        outcomes = race(functools.partial(consume, world, verification_id, code), 50)
        assert outcomes == {"ok": 1, "INVALID_CODE": 49}, f"round {number}"
        world.clock.tick(120)  # so that the throttle lets the next round begin


def test_of_two_hundred_wrong_guesses_at_once_five_are_evaluated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, real = [], codes._digest
    verification_id, code = issue(world)
    monkeypatch.setattr(codes, "_digest", lambda *args: evaluated.append(args) or real(*args))
    assert race(lambda: consume(world, verification_id, wrong(code)), 200) == {"INVALID_CODE": 200}
    assert len(evaluated) == 5
    assert row(world, verification_id).attempts == 5
    refused(world, verification_id, code)


def test_of_fifty_resends_at_once_five_go_out_and_one_code_lives(world: World) -> None:
    def resend() -> None:
        with world.rt.unit(ORIGIN) as unit:
            codes.issue(world.rt, unit, Purpose.SESSION, subject="s1", user_id="u1", address=ADA)

    assert race(resend, 50) == {"ok": 5, "RATE_LIMITED": 45}
    assert outbox.deliver_due(world.rt) == 5
    with world.rt.database.reading() as session:
        states = session.scalars(sqlalchemy.select(codes.Code.state)).all()
    assert collections.Counter(states) == {"live": 1, "dead": 4}


def test_resends_to_several_addresses_of_one_subject_at_once_do_not_collide(world: World) -> None:
    numbers = iter(range(100))

    def resend() -> None:
        with world.rt.unit(ORIGIN) as unit:
            codes.issue(
                world.rt, unit, Purpose.RESET, subject="u1", user_id="u1", address=f"ada{next(numbers)}@example.com"
            )

    assert race(resend, 20) == {"ok": 20}


# --- Chance, keeping --------------------------------------------------------------------------------------------------


class Given:
    """Entropy that gives what it was given."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def bytes(self, count: int) -> bytes:
        return self._numbers.pop(0).to_bytes(count)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((0,), "000000"),
        ((999_999,), "999999"),
        ((1_000_000,), "000000"),
        ((15_999_999,), "999999"),
        ((16_000_000, 7), "000007"),
        ((2**24 - 1, 7), "000007"),
    ],
)
def test_each_code_is_as_likely_as_any_other(numbers: tuple[int, ...], code: str) -> None:
    assert codes._six_digits(Given(*numbers)) == code


def test_the_janitor_takes_only_what_is_long_over(world: World) -> None:
    issue(world)
    world.clock.tick(codes.KEEP_SECONDS)
    with world.rt.unit(ORIGIN) as unit:
        assert codes.purge(world.rt, unit) == 0
    world.clock.tick(1)
    verification_id, code = issue(world, subject="s2")
    with world.rt.unit(ORIGIN) as unit:
        assert codes.purge(world.rt, unit) == 1
    consume(world, verification_id, code)


def test_erasing_a_user_takes_their_codes(world: World) -> None:
    verification_id, code = issue(world)
    with world.rt.unit(ORIGIN) as unit:
        assert codes.forget(unit, "u2") == 0
        assert codes.forget(unit, "u1") == 1
    refused(world, verification_id, code)


def test_another_letter_may_carry_the_code(sqlite: World) -> None:
    with sqlite.rt.unit(ORIGIN) as unit:
        verification_id = codes.issue(
            sqlite.rt,
            unit,
            Purpose.RESET,
            subject="u1",
            user_id="u1",
            address=ADA,
            template=Template.EMAIL_CODE,
            values={"by": "Grace"},
        )
    outbox.deliver_due(sqlite.rt)
    assert "Confirm your address" in sqlite.mailbox.mails[-1]["Subject"]
    text = sqlite.mailbox.mails[-1].as_string()
    assert "Asked for by: Grace" in text
    assert f"Verification ID: {verification_id}" in text
    assert "Valid until: 2026-11-01 12:10:00 UTC" in text
