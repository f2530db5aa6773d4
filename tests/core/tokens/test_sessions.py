"""What a session is: its secrets, its ends, and who may see it. Signing in is told in the dialects' tests."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select

from identity.core.clients import applications
from identity.core.people import accounts
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import by_code
from identity.core.tokens import refresh, sessions
from identity.core.tokens.sessions import UserSession
from identity.errors import INVALID_TOKEN, NOT_FOUND, TOKEN_EXPIRED, Refused
from identity.instruments.counts import LOGINS
from identity.instruments.opaque import Kind, is_well_formed
from identity.runtime import Runtime
from tests.builders import a_session, a_user
from tests.world import ORIGIN, FakeClock


def refusal(deed: object, *arguments: object, **options: object) -> str:
    with pytest.raises(Refused) as caught:
        deed(*arguments, **options)  # type: ignore[operator] -- whatever is under test
    return caught.value.problem.code


def test_ids_and_secrets_are_always_fresh_and_only_a_keyed_hash_is_kept(rt: Runtime) -> None:
    ada = a_user(rt)
    first, second = a_session(rt, ada), a_session(rt, ada)
    assert first.bearer is not None
    assert second.bearer is not None
    assert first.session.id != second.session.id
    assert first.bearer != second.bearer
    assert is_well_formed(Kind.SESSION, first.bearer.reveal())
    with rt.database.reading() as session:
        row = session.get_one(UserSession, first.session.id)
        assert len(row.bearer or b"") == 32
        assert first.bearer.reveal().encode() not in (row.bearer or b"")
    assert first.bearer.reveal() not in repr(first)


def test_every_login_is_told_and_counted_once_and_only_when_somebody_is_in(rt: Runtime) -> None:
    ada = a_user(rt)
    rt.counts.take()

    def logins() -> tuple[int, int]:
        return audit.count(rt, actor=ada.id, action=Action.LOGIN_SUCCEEDED), rt.counts.take()[
            LOGINS, "email", "success"
        ]

    a_session(rt, ada)
    assert logins() == (1, 1)
    waiting = a_session(rt, ada, verified=False)
    assert logins() == (1, 0), "nobody has proven anything yet"
    with rt.unit(ORIGIN) as unit:
        sessions.mark_proven(rt, unit, waiting.session.id, amr=("email",))
    assert logins() == (2, 1)


def test_a_waiting_session_is_good_for_nothing_until_verified(rt: Runtime) -> None:
    opened = a_session(rt, a_user(rt), verified=False)
    assert opened.bearer is not None
    assert opened.refresh is not None
    bearer, token = opened.bearer.reveal(), opened.refresh.reveal()
    assert refusal(sessions.find_live_bearer, rt, bearer) == INVALID_TOKEN.code
    assert refusal(sessions.find_live, rt, opened.session.id) == INVALID_TOKEN.code
    with rt.unit(ORIGIN) as unit:
        assert refusal(refresh.turn, rt, unit, token) == INVALID_TOKEN.code
    with rt.unit(ORIGIN) as unit:
        sessions.mark_proven(rt, unit, opened.session.id, amr=("email", "otp"))
    assert sessions.find_live_bearer(rt, bearer).session.amr == ("email", "otp")


def test_verifying_sets_the_time_of_the_login(rt: Runtime, clock: FakeClock) -> None:
    opened = a_session(rt, a_user(rt), verified=False)
    clock.tick(300)
    with rt.unit(ORIGIN) as unit:
        sessions.mark_proven(rt, unit, opened.session.id, amr=("email",))
    assert sessions.find_live(rt, opened.session.id).session.auth_time == clock.now()


def test_a_session_that_is_over_cannot_be_verified(rt: Runtime, clock: FakeClock) -> None:
    opened = a_session(rt, a_user(rt), verified=False)
    clock.tick(rt.settings.session_idle_seconds)
    with rt.unit(ORIGIN) as unit:
        assert refusal(sessions.mark_proven, rt, unit, opened.session.id, amr=()) == INVALID_TOKEN.code
        assert refusal(sessions.extend, rt, unit, opened.session.id, idle_seconds=60, actor="x") == INVALID_TOKEN.code


def test_a_session_of_nobody_can_be_used_verified_and_found_by_nobody(rt: Runtime) -> None:
    waiting = by_code.begin(rt, ORIGIN, "nobody@acme.example")
    assert waiting.opened.bearer is not None
    session_id = waiting.opened.session.id
    assert refusal(sessions.find_live_bearer, rt, waiting.opened.bearer.reveal()) == INVALID_TOKEN.code
    with rt.unit(ORIGIN) as unit:
        assert refusal(sessions.mark_proven, rt, unit, session_id, amr=()) == INVALID_TOKEN.code
        assert refusal(sessions.revoke_own, rt, unit, "", session_id) == NOT_FOUND.code
    assert sessions.find(rt, session_id) is None


def test_unknown_and_known_addresses_leave_the_same_number_of_rows_everywhere(rt: Runtime) -> None:
    from identity.storage import Base

    def counted() -> dict[str, int]:
        with rt.database.reading() as session:
            return {
                table.name: session.execute(select(func.count()).select_from(table)).scalar_one()
                for table in Base.metadata.sorted_tables
            }

    ada, bob = a_user(rt), a_user(rt, enabled=False)
    grown = []
    for address in (ada.email, bob.email, "nobody@acme.example"):
        before = counted()
        by_code.begin(rt, ORIGIN, address)
        grown.append({name: count - before[name] for name, count in counted().items() if count != before[name]})
    assert grown[0] == grown[1] == grown[2] == {"user_session": 1, "code": 1, "mail": 1, "audit_event": 1}


def test_revoking_twice_ends_once(rt: Runtime) -> None:
    ada = a_user(rt)
    opened = a_session(rt, ada)
    with rt.unit(ORIGIN) as unit:
        assert sessions.revoke(rt, unit, opened.session.id, actor=ada.id, reason="test")
        assert not sessions.revoke(rt, unit, opened.session.id, actor=ada.id, reason="test")


def test_revoking_all_keeps_the_one_that_asked(rt: Runtime) -> None:
    ada, eve = a_user(rt), a_user(rt)
    kept, hers = a_session(rt, ada), a_session(rt, eve)
    ended = [a_session(rt, ada) for _ in range(3)]
    with rt.unit(ORIGIN) as unit:
        assert sessions.revoke_all(rt, unit, ada.id, actor=ada.id, reason="test", keep=kept.session.id) == 3
    assert [one.id for one in sessions.listing_of(rt, ada.id)] == [kept.session.id]
    assert sessions.find_live(rt, hers.session.id).user_id == eve.id
    assert refusal(sessions.find_live, rt, ended[0].session.id) == INVALID_TOKEN.code


@pytest.mark.parametrize(("seconds", "is_live"), [(-1, True), (0, False), (1, False)])
def test_a_session_ends_with_the_access_window(rt: Runtime, clock: FakeClock, seconds: int, *, is_live: bool) -> None:
    ada = a_user(rt, ends_at=clock.now() + timedelta(seconds=600))
    opened = a_session(rt, ada)
    clock.tick(600 + seconds)
    if is_live:
        assert sessions.find_live(rt, opened.session.id).user_id == ada.id
    else:
        assert refusal(sessions.find_live, rt, opened.session.id) == INVALID_TOKEN.code


def test_enabling_a_user_again_revives_nothing_that_was_ended(rt: Runtime) -> None:
    ada = a_user(rt)
    opened = a_session(rt, ada)
    with rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, ada.id).enabled = False
        sessions.revoke_all(rt, unit, ada.id, actor="test", reason="user disabled")
    with rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, ada.id).enabled = True
    assert refusal(sessions.find_live, rt, opened.session.id) == INVALID_TOKEN.code


def test_a_token_never_outlives_its_session(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    with rt.unit(ORIGIN) as unit:
        opened = sessions.open_session(
            rt,
            unit,
            accounts.recheck(unit, ada.id),
            kind="session",
            amr=("email",),
            client_id=applications.standard_client(rt),
            resource=rt.settings.default_audience,
            idle_seconds=600,
            absolute_seconds=900,
        )
    clock.tick(500)
    assert sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=3600).expires_in == 100
    clock.tick(100)
    assert refusal(sessions.find_live, rt, opened.session.id) == TOKEN_EXPIRED.code


def test_the_janitor_forgets_a_session_that_has_waited_for_a_day(rt: Runtime, clock: FakeClock) -> None:
    a_session(rt, a_user(rt), verified=False)
    by_code.begin(rt, ORIGIN, "nobody@acme.example")
    a_session(rt, a_user(rt))
    for seconds, gone in ((86_400, 0), (1, 2)):
        clock.tick(seconds)
        with rt.unit(ORIGIN) as unit:
            assert sessions.purge(rt, unit) == gone


def test_the_janitor_forgets_only_what_has_long_been_over(rt: Runtime, clock: FakeClock) -> None:
    opened = a_session(rt, a_user(rt))
    end = rt.settings.session_absolute_seconds + 86_400
    for seconds, gone in ((end, 0), (1, 1)):
        clock.tick(seconds)
        with rt.unit(ORIGIN) as unit:
            assert sessions.purge(rt, unit) == gone
    assert sessions.find(rt, opened.session.id) is None


def test_a_user_sees_a_living_session_behind_any_number_that_were_not_used(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    kept = a_session(rt, ada)
    with rt.unit(ORIGIN) as unit:
        sessions.extend(rt, unit, kept.session.id, idle_seconds=rt.settings.session_absolute_seconds, actor=ada.id)
        row = unit.execute(select(UserSession.__table__).where(UserSession.id == kept.session.id)).one()._asdict()
        idle = {"created_at": clock.now() + timedelta(1), "idle_expires_at": clock.now() + timedelta(2), "bearer": None}
        copies = [row | idle | {"id": rt.new_id()} for _ in range(500)]
        unit.session.execute(insert(UserSession), copies)
    clock.tick(2 * 86_400)
    assert [one.id for one in sessions.listing_of(rt, ada.id)] == [kept.session.id]
