"""Lists by cursor: nothing is skipped or repeated while rows go, no cursor but ours is taken, and prefixes are found by index."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from identity.canonical import encode_base64url
from identity.core.admin import users
from identity.core.admin.by import By
from identity.errors import Refused
from identity.paging import Part, cut
from tests.builders import a_session, a_tenant, a_token, a_user, an_application
from tests.world import ORIGIN, Web

BY = By("boss", ORIGIN)


def walked(web: Web, bearer: str, path: str, plural: str, *, limit: int = 3, between: Any = None) -> list[Any]:
    """Every item of a list, read by its cursors."""
    found: list[Any] = []
    after = ""
    while True:
        sign = "&" if "?" in path else "?"
        answer = web.get(f"{path}{sign}limit={limit}{after}", bearer=bearer)
        assert answer.status_code == 200, answer.text
        assert ("items" in answer.json) is (after == "")
        found += answer.json[plural]
        if "next" not in answer.json:
            return found
        after = f"&after={answer.json['next']}"
        if between:
            between()


@pytest.fixture
def boss(web: Web) -> str:
    return a_token(web.rt, a_user(web.rt, alias="boss", roles=("users_admin",)))


def test_nobody_is_skipped_while_others_are_deleted(web: Web, boss: str) -> None:
    people = []
    for _ in range(20):
        web.clock.tick(0.01)
        people.append(a_user(web.rt, password=None).id)
    doomed = iter(people[:6])
    seen = walked(web, boss, "/admin/users", "users", between=lambda: users.erase_user(web.rt, BY, next(doomed)))
    assert set(people[6:]) <= {one["userID"] for one in seen}
    assert len({one["userID"] for one in seen}) == len(seen)


def test_every_list_is_walked_whole(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme")
    for number in range(7):
        web.clock.tick(0.01)
        ada = a_user(web.rt, tenants={"acme": []}, password=None)
        an_application(web.rt, name=f"app {number}", tenant="acme")
        a_tenant(web.rt, f"tenant-{number}")
        a_session(web.rt, ada)
        web.post("/session", {"email": ada.email})
    for path, plural, count in (
        ("/admin/users", "users", 8),
        ("/admin/applications", "applications", 8),
        ("/admin/applications?tenant=acme", "applications", 7),
        ("/admin/tenants", "tenants", 8),
        ("/admin/tenant/acme/members", "members", 7),
        ("/admin/sessions", "sessions", 15),
        ("/admin/sessions?tenant=acme", "sessions", 14),
        ("/admin/mails", "mails", 7),
        ("/admin/audit?action=user.created", "events", 8),
        ("/admin/roles", "roles", None),
        ("/admin/signing-keys", "keys", None),
    ):
        seen = walked(web, boss, path, plural)
        whole = web.get(f"{path}{'&' if '?' in path else '?'}limit=200", bearer=boss).json
        assert seen == whole[plural], path
        assert len(seen) == whole["items"] == (count or len(seen)), path


@pytest.mark.parametrize(
    "values", ["[]", "[1]", '["a", "b"]', "[true]", "{}", "x", "[" * 5000, '["\\u0000"]', "[null]"]
)
def test_a_cursor_of_another_list_or_of_nobody_is_refused(web: Web, boss: str, values: str) -> None:
    for path in ("/admin/audit", "/admin/signing-keys", "/admin/applications"):
        if (path == "/admin/signing-keys" and values == "[1]") or (path == "/admin/applications" and values == "[1]"):
            continue
        answer = web.get(f"{path}?after={encode_base64url(values.encode())}", bearer=boss)
        assert (answer.status_code, answer.json["field"]) == (400, "after"), path
    assert web.get("/admin/users?after=%21", bearer=boss).status_code == 400
    assert web.get("/admin/users?after=WzFd&page=2", bearer=boss).json["field"] == "after"


def test_people_are_found_by_how_a_name_alias_address_or_id_begins(web: Web, boss: str) -> None:
    ada = a_user(web.rt, alias="countess", email="lovelace@acme.example", full_name="Ada King")
    a_user(web.rt, alias="babbage", full_name="Charles B")
    for q in ("ada", "Ada K", "ADA", "count", "COUNT", "lovelace@", ada.id, ada.id[:30]):
        found = web.get("/admin/users", bearer=boss, query_string={"q": q}).json["users"]
        assert ada.id in [one["userID"] for one in found], q
    for q in ("king", "%", "_da", "ess", "\U0010ffff"):
        assert web.get("/admin/users", bearer=boss, query_string={"q": q}).json["users"] == [], q
    an_application(web.rt, name="Feed of prices")
    assert web.get("/admin/applications?q=feed", bearer=boss).json["items"] == 1
    a_tenant(web.rt, "acme-bank", name="Acme Bank")
    for q in ("acme", "Acme B", "acme b"):
        assert web.get("/admin/tenants", bearer=boss, query_string={"q": q}).json["items"] == 1


def test_what_names_nobody_or_nothing_is_refused_and_names_serve_as_ids(web: Web, boss: str) -> None:
    ada = a_user(web.rt, alias="ada", email="ada+x@acme.example")
    a_session(web.rt, ada)
    for path, field in (
        ("/admin/users?email=ada+x@acme.example", "email"),
        ("/admin/users?tenant=nowhere", "tenant"),
        ("/admin/users?role=No Role", "role"),
        ("/admin/audit?action=user.creatd", "action"),
        ("/admin/audit?actor=adda", "actor"),
        ("/admin/sessions?user=adda", "user"),
        ("/admin/keypairs?user=adda", "user"),
        ("/admin/errors?error=NONSENSE", "error"),
        ("/admin/errors?address=10.0.0", "address"),
        ("/admin/audit?address=here", "address"),
        ("/admin/mails?state=lost", "state"),
    ):
        answer = web.get(path, bearer=boss)
        assert (answer.status_code, answer.json.get("field")) == (400, field), path
    assert web.get("/admin/users?email=ada%2Bx@acme.example", bearer=boss).json["items"] == 1
    for name in ("ada", "ADA%2Bx@acme.example", ada.id):
        assert web.get(f"/admin/sessions?user={name}", bearer=boss).json["items"] == 1
        assert web.get(f"/admin/audit?actor={name}", bearer=boss).json["items"] >= 1
    told = [
        web.get(f"/admin/audit?address={one}", bearer=boss).json["items"] for one in ("127.0.0.1", "::ffff:127.0.0.1")
    ]
    assert told[0] == told[1], "an address has one form"


def test_the_last_login_is_told(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    assert web.get(f"/admin/user/{ada.id}", bearer=boss).json["lastLoginAt"] is None
    web.clock.tick(5)
    web.post("/auth/login", {"email": ada.email, "password": ada.password})
    assert web.get(f"/admin/user/{ada.id}", bearer=boss).json["lastLoginAt"] is None  # a factor waits
    opened = a_session(web.rt, ada)
    assert opened
    assert web.get(f"/admin/user/{ada.id}", bearer=boss).json["lastLoginAt"] == int(web.clock.now().timestamp())


def test_sessions_end_by_user_tenant_application_and_all(web: Web, boss: str) -> None:
    ada, eve, tim = (a_user(web.rt, tenants={tenant: []}) for tenant in ("acme", "acme", "other"))
    for one in (ada, ada, eve, tim):
        a_session(web.rt, one)
    end = "/admin/sessions"
    assert web.delete(f"{end}?user={ada.id}", bearer=boss).json == {"ended": 2}
    assert web.delete(f"{end}?tenant=acme", bearer=boss).json == {"ended": 1}
    for query in ("", "?user=adda", f"?user={ada.id}&tenant=acme", "?all=false", "?all=true&tenant=acme"):
        assert web.delete(f"{end}{query}", bearer=boss).status_code == 400, query
    assert web.delete(f"{end}?all=true", bearer=boss).json == {"ended": 2}
    assert web.get("/admin/users", bearer=boss).status_code == 401


def test_an_account_is_unlocked(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    login = {"email": ada.email, "password": "wrong"}
    for _ in range(5):
        web.post("/auth/login", login)
    assert web.post("/auth/login", {**login, "password": ada.password}).status_code == 429
    assert web.put(f"/admin/user/{ada.id}/unlock", bearer=boss).json["forgotten"] >= 2
    assert web.post("/auth/login", {**login, "password": ada.password}).status_code == 200


def test_a_person_is_exported_without_secrets(web: Web, boss: str) -> None:
    ada = a_user(web.rt, alias="ada")
    opened = a_session(web.rt, ada)
    web.post("/session", {"email": ada.email})
    answer = web.get(f"/admin/user/{ada.id}/export", bearer=boss)
    held = answer.json
    assert held["user"]["alias"] == "ada"
    assert len(held["sessions"]) == 2
    assert [mail["to"] for mail in held["mails"]] == [ada.email]
    assert {event["action"] for event in held["events"]} >= {"user.created", "session.created", "login.succeeded"}
    assert opened.bearer
    for secret in (opened.bearer.reveal(), "$argon2"):
        assert secret not in answer.text


def test_a_short_list_is_cut_alike() -> None:
    first = cut("ecadb", Part(limit=2), tuple)
    assert (first.items, first.total) == (["a", "b"], 5)
    second = cut(
        "cde", Part(limit=2, after=first.next or ""), tuple
    )  # "a" and "b" are gone by then: nothing is skipped.
    assert (second.items, second.total) == (["c", "d"], None)
    assert cut("abcde", Part(limit=2, after=second.next or ""), tuple).next is None
    assert cut("abcde", Part(limit=2, page=3), tuple).items == ["e"]
    assert cut("", Part(after=second.next or ""), tuple).items == []
    with pytest.raises(Refused):
        cut([1], Part(after=second.next or ""), lambda one: (one,))


def test_a_search_reads_an_index_on_either_database(web: Web) -> None:
    from sqlalchemy import select

    from identity import paging
    from identity.core.people.accounts import User

    condition = paging.begins(User.alias, "ada", is_sqlite=web.rt.database.is_sqlite)
    statement = select(User.id).where(condition)
    with web.rt.database.reading() as session:
        compiled = statement.compile(session.connection(), compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN QUERY PLAN" if web.rt.database.is_sqlite else "EXPLAIN"
        if not web.rt.database.is_sqlite:
            session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = str(session.connection().exec_driver_sql(f"{explain} {compiled}").all())
    assert "ix_user_account_alias_prefix" in plan or "sqlite_autoindex" in plan, plan
