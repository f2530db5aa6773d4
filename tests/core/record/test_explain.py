"""Explanations of refusals: what they tell operators, that they hold no secret, and that no flood fills the disk."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyotp
import pytest
from sqlalchemy import func, select, update

from identity import errors
from identity.ambient import Origin
from identity.core import upkeep
from identity.core.admin import applications, users
from identity.core.admin.by import By
from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.people import accounts
from identity.core.record import explain
from identity.core.signin import factors
from identity.documents import explanation
from identity.errors import FORBIDDEN, INVALID_CODE, NOT_FOUND, UNAVAILABLE, Refused
from identity.instruments.refusals import CLIENTS_WORTH, Explanations, Refusal
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Database
from tests.builders import Person, a_token, a_user, an_application
from tests.world import ORIGIN, FakeClock, Web

BY = By("boss", ORIGIN)
PER_CLIENT_A_MINUTE = 30
PER_PROCESS_A_MINUTE = PER_CLIENT_A_MINUTE * CLIENTS_WORTH


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, explain_per_minute=PER_CLIENT_A_MINUTE)


def error_ids() -> Iterator[str]:
    for number in range(10**6):
        yield f"00000000-0000-4000-8000-{number:012d}"


IDS = error_ids()


def refuse(rt: Runtime, *, address: str = "192.0.2.1", refused: Refused | None = None, route: str = "GET /x") -> str:
    """Note a refusal; return its id."""
    error_id = next(IDS)
    origin = Origin(address=address, request_id="r", error_id=error_id)
    explain.note(rt, origin, route, 403, refused or Refused(FORBIDDEN, detail="no"), caller="")
    return error_id


def a_user_with_totp(web: Web) -> tuple[Person, str]:
    """A user with a confirmed authenticator, and its seed."""
    ada = a_user(web.rt)
    user = accounts.get(web.rt, ada.id)
    seed = factors.enrol(web.rt, ORIGIN, user).seed.reveal()
    factors.confirm(web.rt, ORIGIN, user, pyotp.TOTP(seed).at(web.clock.now()))
    web.clock.tick(3600)
    return ada, seed


def kept(rt: Runtime) -> int:
    rt.explanations.flush(rt.database, rt.clock.now())
    with rt.database.reading() as session:
        return session.scalar(select(func.count()).select_from(Refusal)) or 0


def told(web: Web, answer: Any) -> dict[str, Any]:
    """What an administrator reads of a refused answer."""
    return explanation(explain.get(web.rt, answer.headers["x-error-id"]))


# What it tells.


def test_a_refusal_is_kept_with_all_that_the_check_knew(rt: Runtime) -> None:
    evidence = {"expected": ["a"], "seen": ["b"], "skew_seconds": 3, "near_miss": "almost", "policy": "auth"}
    refused = Refused(FORBIDDEN, detail="lacks a role", field="role", evidence=evidence)
    shown = explanation(explain.get(rt, refuse(rt, refused=refused)))
    assert shown["check"] == "lacks a role"
    assert (shown["expected"], shown["seen"]) == (["a"], ["b"])
    assert (shown["clockSkewSeconds"], shown["nearMiss"], shown["field"]) == (3, "almost", "role")
    assert shown["evidence"] == {"policy": "auth"}


@pytest.mark.parametrize("late", [0, 1, 60, 61, 3600])
def test_an_expired_token_tells_how_late_it_was(web: Web, late: int) -> None:
    token = a_token(web.rt, a_user(web.rt))
    web.clock.tick(3600 + late)
    shown = told(web, web.get("/verify?tenant=optional", bearer=token))
    assert (shown["error"], shown["clockSkewSeconds"]) == ("TOKEN_EXPIRED", late)
    assert (shown["nearMiss"] is not None) is (late <= 60)


def test_a_token_of_another_service_tells_which_keys_were_expected(web: Web) -> None:
    import jwt

    stranger = jwt.encode({"sub": "x"}, "k" * 32, "HS256", headers={"kid": "theirs", "x": "y"})
    shown = told(web, web.get("/verify?tenant=optional", bearer=stranger))
    assert shown["check"] == "not a header of ours"
    assert shown["seen"] == {"alg": "HS256", "typ": "JWT", "kid": "theirs"}
    assert shown["expected"] == {"kid": [key.kid for key in web.rt.ring.list()]}
    assert stranger.split(".")[2] not in json.dumps(shown)


def test_each_kind_of_missing_or_foreign_token_is_told_apart(web: Web) -> None:
    import jwt

    def check(headers: dict[str, str]) -> tuple[str, Any]:
        shown = told(web, web.get("/verify", headers=headers))
        return shown["check"], shown["seen"]

    foreign = jwt.encode({"sub": "x", "iss": "https://other.example"}, "k" * 32, "HS256")
    seen = {
        "nothing": check({}),
        "placeholder": check({"Authorization": "Bearer undefined"}),
        "empty": check({"Authorization": "Bearer "}),
        "bare": check({"Authorization": "abc"}),
        "basic": check({"Authorization": "Basic abc"}),
        "foreign": check({"Authorization": f"Bearer {foreign}"}),
        "tenant": check({"Authorization": f"Bearer {a_token(web.rt, a_user(web.rt))}"}),
    }
    assert seen["placeholder"] == ("a placeholder where a token should be", "undefined")
    assert seen["bare"] == ("Authorization without the scheme Bearer", {"scheme": "none"})
    assert seen["basic"][1] == {"scheme": "Basic"}
    assert seen["foreign"][0] == "a token of another issuer"
    assert seen["foreign"][1]["iss"] == "https://other.example"
    assert seen["tenant"][0].startswith("the route needs a tenant")
    assert len({words for words, _ in seen.values()}) == 5  # an empty one is a placeholder, Basic like no scheme


def test_a_token_whose_application_is_gone_disabled_or_without_its_secret_is_told_apart(web: Web) -> None:
    def a_token_of(machine: Any) -> str:
        answer = web.post("/application/token", {"clientId": machine.client_id, "secret": machine.secret})
        text: str = answer.json["data"]["accessToken"]
        return text

    def check(token: str) -> str:
        words: str = told(web, web.get("/verify?tenant=optional", bearer=token))["check"]
        return words

    off, bare, gone = (an_application(web.rt) for _ in range(3))
    tokens = [a_token_of(one) for one in (off, bare, gone)]
    applications.change_application(web.rt, BY, off.client_id, enabled=False)
    applications.delete_secret(web.rt, BY, bare.client_id, bare.secret_id)
    applications.delete_application(web.rt, BY, gone.client_id)
    assert [check(token) for token in tokens] == [
        "the application is disabled",
        "the secret that earned this token was removed",
        "the application was deleted",
    ]
    applications.change_application(web.rt, BY, off.client_id, enabled=True)
    assert check(tokens[0]).startswith("the application was disabled after this token was issued")
    replaced = web.post("/application/token", {"clientId": bare.client_id, "secret": bare.secret})
    assert told(web, replaced)["check"] == "a secret that this application does not have (any more)"


def test_every_refusal_of_a_catalogue_problem_names_its_check() -> None:
    # A problem in words of its own (`saying`) tells the check already; one of the catalogue needs a detail.
    package = Path(explain.__file__).parents[2]
    catalogue = {name for name, value in vars(errors).items() if any(value is row for row, _ in errors.CATALOGUE)}
    nameless = [
        f"{path.name}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Refused"
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id in catalogue
        and not any(keyword.arg == "detail" for keyword in node.keywords)
        and not path.match("wire/dialects/documentation.py")
    ]
    assert nameless == []


def test_a_check_is_never_empty(rt: Runtime) -> None:
    for problem, _ in errors.CATALOGUE:
        assert explain.get(rt, refuse(rt, refused=Refused(problem))).detail


def test_who_is_told_an_id_has_it_explained_while_another_worker_still_writes_it(rt: Runtime) -> None:
    other = replace_explanations(rt)
    error_id = next(IDS)
    explain.note(other, Origin(error_id=error_id), "GET /x", 403, Refused(FORBIDDEN, detail="slow"), caller="")
    stop = threading.Event()
    writer = threading.Thread(target=explain.write_until, args=(other, stop))
    writer.start()
    try:
        assert explain.get(rt, error_id).detail == "slow"
    finally:
        stop.set()
        writer.join()


def replace_explanations(rt: Runtime) -> Runtime:
    """Another worker: the same database, refusals of its own."""
    return replace(rt, explanations=Explanations())


def test_a_login_tells_what_was_wrong_to_operators_only(web: Web) -> None:
    ada, off, bare = a_user(web.rt), a_user(web.rt, enabled=False), a_user(web.rt, password=None)
    seen = {}
    for email, password in (
        ("nobody@acme.example", "x"),
        (ada.email, "wrong"),
        (off.email, off.password),
        (bare.email, "x"),
    ):
        answer = web.post("/user/token", {"email": email, "password": password})
        assert answer.json["message"] == "Email and password do not match"
        seen[email] = told(web, answer)["check"]
    assert list(seen.values()) == [
        "unknown user",
        "wrong password",
        "right password of a disabled user",
        "a user without a password",
    ]


def test_a_client_secret_that_nearly_passed_is_told(web: Web) -> None:
    machine = an_application(web.rt)

    def ask(secret: str, client_id: str = machine.client_id) -> dict[str, Any]:
        answer = web.post("/application/token", {"clientId": client_id, "secret": secret})
        assert answer.json["message"] == "Client ID and secret do not match"
        shown = told(web, answer)
        assert secret not in json.dumps(shown)
        return shown

    assert ask(machine.secret, "01a20000-0000-7000-8000-000000000000")["check"] == "unknown client"
    mistyped = ask(machine.secret[:-1])
    assert mistyped["check"] == "wrong secret"
    assert mistyped["nearMiss"].startswith("not the shape of a client secret")
    assert ask(an_application(web.rt).secret)["nearMiss"].startswith("well-formed, but no living secret")
    with web.rt.unit(ORIGIN) as unit:
        end = web.clock.now() - timedelta(seconds=90)
        unit.execute(update(ClientSecret).where(ClientSecret.id == machine.secret_id).values(expires_at=end))
    expired = ask(machine.secret)
    assert (expired["check"], expired["clockSkewSeconds"]) == ("the secret has expired", 90)
    assert expired["seen"] == {"secret": machine.secret_id}
    with web.rt.unit(ORIGIN) as unit:
        unit.execute(update(ClientSecret).values(expires_at=None))
    applications.change_application(web.rt, BY, machine.client_id, enabled=False)
    assert ask(machine.secret)["check"] == "the application is disabled"


def test_a_key_pair_that_nearly_passed_is_told(web: Web) -> None:
    ada = a_user(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(
            web.rt, unit, ada.id, name="feed", days=1, actor="test", verified=False, cidrs=("198.51.100.0/24",)
        )

    def ask(api_secret: str = secret.reveal()) -> dict[str, Any]:
        answer = web.get("/keypair", headers={"api-key": pair.api_key, "api-secret": api_secret})
        assert answer.json["message"] == "API key and secret do not match"
        shown = told(web, answer)
        assert api_secret not in json.dumps(shown)
        return shown

    assert ask()["check"] == "the pair waits for its code"
    with web.rt.unit(ORIGIN) as unit:
        unit.execute(update(KeyPair).values(verified=True))
    foreign = ask()
    assert (foreign["check"], foreign["expected"], foreign["seen"]) == (
        "foreign network",
        ["198.51.100.0/24"],
        "127.0.0.1",
    )
    users.set_enabled(web.rt, BY, ada.id, enabled=False)
    assert ask()["check"] == "its user is disabled"
    web.clock.tick(86_400 + 5)
    expired = ask()
    assert (expired["check"], expired["clockSkewSeconds"]) == ("the pair has expired", 5)


@pytest.mark.parametrize(("seconds", "skew"), [(-60, 60), (60, -60), (-90, None), (90, None)])
def test_a_device_whose_clock_is_off_is_told(web: Web, seconds: int, skew: int | None) -> None:
    ada, seed = a_user_with_totp(web)
    code = pyotp.TOTP(seed).at(web.clock.now() + timedelta(seconds=seconds))
    answer = web.post("/user/token", {"email": ada.email, "password": ada.password, "totpCode": code})
    shown = told(web, answer)
    assert (shown["error"], shown["clockSkewSeconds"]) == ("INVALID_CODE", skew)
    assert (shown["nearMiss"] is None) is (skew is None)
    assert code not in json.dumps(shown)


def test_a_code_that_was_used_before_is_told(web: Web) -> None:
    ada, seed = a_user_with_totp(web)
    body = {"email": ada.email, "password": ada.password, "totpCode": pyotp.TOTP(seed).at(web.clock.now())}
    assert web.post("/user/token", body).status_code == 200
    assert told(web, web.post("/user/token", body))["nearMiss"] == "the right code, but it was used before"


def test_an_error_id_that_never_was_is_not_found(rt: Runtime) -> None:
    for text in ("", "x", "00000000-0000-4000-8000-ffffffffffff", "\x00", "\ud800"):
        with pytest.raises(Refused) as refused:
            explain.get(rt, text)
        assert refused.value.problem.code == NOT_FOUND.code


def test_what_a_check_knew_is_cut_where_it_is_too_long(rt: Runtime) -> None:
    long = Refused(FORBIDDEN, detail="d" * 5000, evidence={"seen": "s" * 5000, "odd": "\x00\ud800"})
    found = explain.get(rt, refuse(rt, refused=long, route="r" * 500))
    assert (len(found.detail), len(found.route)) == (300, 200)
    assert len(found.evidence["cut"]) == 2000


# That nothing fills the disk.


def test_one_client_is_noted_thirty_times_a_minute(rt: Runtime, clock: FakeClock) -> None:
    for _ in range(PER_CLIENT_A_MINUTE + 50):
        refuse(rt)
    last = refuse(rt, address="192.0.2.2")
    assert kept(rt) == PER_CLIENT_A_MINUTE + 1
    assert explain.get(rt, last)
    clock.tick(60)
    assert explain.get(rt, refuse(rt))


def test_one_host_of_ipv6_is_one_client(rt: Runtime) -> None:
    for number in range(PER_CLIENT_A_MINUTE * 2):
        refuse(rt, address=f"2001:db8::{number:x}")
    assert kept(rt) == PER_CLIENT_A_MINUTE


def test_a_flood_from_everywhere_is_bounded_a_minute_and_told_in_the_log(
    rt: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(PER_PROCESS_A_MINUTE * 3):
        refuse(rt, address=f"10.0.{number // 256}.{number % 256}")
    with caplog.at_level("WARNING", "identity.explain"):
        assert kept(rt) == PER_PROCESS_A_MINUTE
    assert [record.fields for record in caplog.records] == [{"count": PER_PROCESS_A_MINUTE * 2}]


def test_a_flood_over_http_is_refused_alike_whether_it_is_noted_or_not(web: Web) -> None:
    answers = [web.get("/nowhere") for _ in range(PER_CLIENT_A_MINUTE + 10)]
    assert {answer.status_code for answer in answers} == {404}
    assert all(answer.headers["x-error-id"] for answer in answers)
    assert kept(web.rt) == PER_CLIENT_A_MINUTE


def test_above_the_bound_a_flood_pushes_out_only_itself(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MAX_KEPT", 20)
    monkeypatch.setattr(explain, "_PURGE_STEP", 7)
    quiet = [refuse(rt, route="GET /quiet", refused=Refused(INVALID_CODE)) for _ in range(3)]
    for _ in range(PER_CLIENT_A_MINUTE):
        refuse(rt, address="192.0.2.9")
    assert kept(rt) == 33
    upkeep.sweep(rt)
    assert kept(rt) == 20
    assert all(explain.get(rt, one) for one in quiet)
    upkeep.sweep(rt)
    assert kept(rt) == 20


@pytest.mark.parametrize(("seconds", "left"), [(-1, 1), (0, 1), (1, 0)])
def test_explanations_are_forgotten_after_thirty_days(rt: Runtime, clock: FakeClock, seconds: int, left: int) -> None:
    refuse(rt)
    assert kept(rt) == 1
    clock.tick(30 * 86_400 + seconds)
    upkeep.sweep(rt)
    assert kept(rt) == left


def test_what_cannot_be_written_waits_and_the_memory_is_bounded(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    one = refuse(rt)

    def down(_self: Database, _now: datetime, _origin: Origin) -> None:
        raise Refused(UNAVAILABLE)

    with monkeypatch.context() as broken:
        broken.setattr(Database, "unit", down)
        for _ in range(3):
            with pytest.raises(Refused):
                rt.explanations.flush(rt.database, rt.clock.now())
    assert explain.get(rt, one)
    waiting = Explanations()
    for number in range(10_000):
        waiting.add({"number": number})
    assert len(waiting._waiting) == 2_000


def test_no_explanation_holds_what_was_sent(web: Web) -> None:
    ada = a_user(web.rt)
    sent = "hunter2-is-my-secret"
    token = a_token(web.rt, ada)
    web.post("/user/token", {"email": ada.email, "password": sent})
    web.post("/application/token", {"clientId": "x", "secret": sent})
    web.get("/verify", bearer=token[:-4] + "AAAA", headers={"api-key": sent, "api-secret": sent})
    web.put("/session/verification", {"verificationCodeID": "x", "code": sent})
    web.post("/auth/refresh", {"refreshToken": sent})
    web.rt.explanations.flush(web.rt.database, web.rt.clock.now())
    with web.rt.database.reading() as session:
        rows = [
            [getattr(row, column.key) for column in row.__table__.columns] for row in session.scalars(select(Refusal))
        ]
    assert len(rows) >= 5
    assert sent not in str(rows)
    assert token.split(".")[2][:20] not in str(rows)
