"""Users: who may sign in and when, what is checked again at the last moment, and that the last administrator stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from identity.ambient import later
from identity.core.people import accounts
from identity.core.people.accounts import AccessWindow, User, UserInfo, window_is_open
from identity.core.proofs import attempts, guesses
from identity.core.record import audit
from identity.core.signin import password_proof
from identity.core.signin.password_proof import PasswordProof
from identity.errors import Refused
from identity.runtime import Runtime
from identity.storage import Contention
from tests.builders import PASSWORD, Person, a_user
from tests.world import ORIGIN, FakeClock, Web


def login(web: Web, identifier: str, password: str = PASSWORD) -> tuple[int, str]:
    answer = web.post("/user/token", {"email": identifier, "password": password})
    return answer.status_code, answer.json.get("error", "")


def change(rt: Runtime, person: Person, **values: object) -> None:
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == person.id).values(**values))


# Finding.


def test_a_user_is_found_by_a_verified_address_or_the_alias_only(rt: Runtime) -> None:
    ada = a_user(rt, email="ada@acme.example", alias="ada")
    eve = a_user(rt, email="ada@acme.example", alias="eve", verified=False)
    for identifier in ("ada@acme.example", "ADA@acme.example", "ada", "Ada"):
        found = accounts.find_by_identifier(rt, identifier)
        assert found
        assert found.id == ada.id
    found = accounts.find_by_identifier(rt, "eve")
    assert found
    assert found.id == eve.id
    for identifier in ("", "nobody", "eve@acme.example", ada.id, "%", "ada@acme.exampl_"):
        assert accounts.find_by_identifier(rt, identifier) is None


@pytest.mark.parametrize("user_id", ["", "x", "0191d1e0-7a5c-7000-8000-000000000001", "' OR 1=1 --"])
def test_an_unknown_user_is_not_found(rt: Runtime, user_id: str) -> None:
    with pytest.raises(Refused, match="NOT_FOUND"):
        accounts.get(rt, user_id)


# Signing in.


def test_unknown_disabled_wrong_and_password_less_look_alike(web: Web) -> None:
    ada, off, bare = a_user(web.rt), a_user(web.rt, enabled=False), a_user(web.rt, password=None)
    tries = [
        (ada.email, "wrong"),
        ("nobody@acme.example", PASSWORD),
        ("nobody", PASSWORD),
        (off.email, PASSWORD),
        (off.email, "wrong"),
        (bare.email, "wrong"),
        (bare.email, PASSWORD),
    ]
    answers = [web.post("/user/token", {"email": email, "password": password}) for email, password in tries]
    own = {"X-Request-Id", "x-error-id"}
    told = {(a.status_code, a.get_data(), tuple(sorted(h for h in a.headers if h[0] not in own))) for a in answers}
    assert len(told) == 1
    assert answers[0].status_code == 401


@pytest.mark.parametrize(
    ("starts", "ends", "open_"),
    [
        (None, None, True),
        (-1, None, True),
        (0, None, True),
        (1, None, False),
        (None, 1, True),
        (None, 0, False),
        (None, -1, False),
        (-1, 1, True),
        (1, -1, False),
    ],
)
def test_the_access_window_is_open_from_its_start_until_just_before_its_end(
    web: Web, starts: int | None, ends: int | None, open_: bool
) -> None:
    now = web.clock.now()
    at = [None if seconds is None else now + timedelta(seconds=seconds) for seconds in (starts, ends)]
    ada = a_user(web.rt, starts_at=at[0], ends_at=at[1])
    assert login(web, ada.email) == ((200, "") if open_ else (401, "ACCESS_WINDOW_EXPIRED"))
    assert login(web, ada.email, "wrong") == (401, "INVALID_CREDENTIALS"), (
        "the window is told only with the right password"
    )


def test_a_login_outside_the_window_costs_no_budget_and_is_in_the_audit(web: Web) -> None:
    late = a_user(web.rt, ends_at=web.clock.now())
    assert {login(web, late.email) for _ in range(8)} == {(401, "ACCESS_WINDOW_EXPIRED")}
    events = audit.search(web.rt, actor=late.id, action="login.failed")
    assert [event.data["reason"] for event in events] == ["access window"] * 8


def admit(proof: PasswordProof) -> UserInfo:
    """Let a proven user in, for nothing."""
    with proof.guess.unit() as unit:
        proof.guess.right(unit)
        return password_proof.admit(unit, proof)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"enabled": False}, "INVALID_CREDENTIALS"),
        ({"password_hash": "$argon2id$another"}, "INVALID_CREDENTIALS"),
        ({"ends_at": "now"}, "ACCESS_WINDOW_EXPIRED"),
    ],
    ids=["disabled", "password changed", "window closed"],
)
def test_what_changed_while_the_hash_was_computed_is_seen(
    rt: Runtime, clock: FakeClock, values: dict[str, object], code: str
) -> None:
    ada = a_user(rt)
    proof = password_proof.check_password(rt, ORIGIN, ada.email, PASSWORD)
    change(rt, ada, **{name: clock.now() if value == "now" else value for name, value in values.items()})
    with pytest.raises(Refused) as caught:
        admit(proof)
    assert caught.value.problem.code == code


def test_a_user_who_was_deleted_meanwhile_is_refused(rt: Runtime) -> None:
    ada = a_user(rt)
    proof = password_proof.check_password(rt, ORIGIN, ada.email, PASSWORD)
    with rt.unit(ORIGIN) as unit:
        accounts.erase_row(unit, ada.id)
    with pytest.raises(Refused, match="INVALID_CREDENTIALS"):
        admit(proof)


def test_a_right_password_gives_its_guess_back(rt: Runtime) -> None:
    ada = a_user(rt)
    for _ in range(8):
        proof = password_proof.check_password(rt, ORIGIN, ada.email, PASSWORD)
        assert isinstance(admit(proof), UserInfo)
    attempts.check(rt, guesses.guess_charges(f"user:{ada.id}", ORIGIN))


# Making.


def test_an_alias_and_a_verified_address_are_one_users_only(rt: Runtime) -> None:
    a_user(rt, email="ada@acme.example", alias="ada")
    for email, alias, field in (("eve@acme.example", "ADA", "alias"), ("ADA@acme.example.", "eve", "email")):
        with pytest.raises(Refused) as caught:
            a_user(rt, email=email, alias=alias)
        assert (caught.value.problem.code, caught.value.field) == ("CONFLICT", field)
    assert accounts.find_by_identifier(rt, "eve") is None, "a refused user leaves nothing"


@pytest.mark.parametrize("name", ["", " ", "\u200b", "a\x00b", "a" * 201, "a\u202eb", "a\x1bb"])
def test_a_name_is_one_line_of_printable_text(name: str) -> None:
    with pytest.raises(Refused) as caught:
        accounts.clean_name(name)
    assert caught.value.field == "fullName"


def test_blanks_in_a_name_are_made_single() -> None:
    assert accounts.clean_name("  Ada \t\r\n Lovelace ") == "Ada Lovelace"


# The last administrator.


def test_the_last_administrator_stays(rt: Runtime) -> None:
    root = a_user(rt, roles=("users_admin",))
    a_user(rt, roles=("users_admins",))
    a_user(rt, roles=("users_admin",), enabled=False)
    a_user(rt, roles=("users_admin",), ends_at=rt.clock.now())
    for values in ({"enabled": False}, {"roles": ("analyst",)}, {"ends_at": rt.clock.now()}):
        with pytest.raises(Refused, match="CONFLICT"), rt.unit(ORIGIN) as unit:
            demote(unit, root, values)
        assert accounts.get(rt, root.id).roles == ("users_admin",)


def demote(unit: object, person: Person, values: dict[str, object]) -> None:
    unit.execute(update(User).where(User.id == person.id).values(**values))  # type: ignore[attr-defined]
    accounts.guard_last_admin(unit, person.id)  # type: ignore[arg-type]


def test_two_administrators_cannot_both_go_at_once(rt: Runtime) -> None:
    pair = [a_user(rt, roles=("users_admin",)) for _ in range(2)]

    def go(person: Person) -> str:
        try:
            with rt.unit(ORIGIN) as unit:
                demote(unit, person, {"enabled": False})
        except Refused as refused:
            return refused.problem.code
        except Contention:
            return go(person)  # As the pipeline does: each waited for the other, and one was chosen to begin again.
        return "gone"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(go, pair)) == ["CONFLICT", "gone"]


@pytest.mark.parametrize("starts", [None, -1, 0, 1])
@pytest.mark.parametrize("ends", [None, -1, 0, 1])
def test_the_access_window_means_the_same_in_python_and_in_sql(
    rt: Runtime, clock: FakeClock, starts: int | None, ends: int | None
) -> None:
    now = clock.now()
    bounds = [None if seconds is None else later(now, seconds) for seconds in (starts, ends)]
    ada = a_user(rt)
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(starts_at=bounds[0], ends_at=bounds[1]))
        by_row = unit.execute(select(window_is_open(now)).where(User.id == ada.id)).scalar_one()
    assert bool(by_row) is AccessWindow(*bounds).is_open(now)
