"""Importing people: by file and by route, again and again, through kills, with every kind of hash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from sqlalchemy import func, select

from identity.core.admin import importing
from identity.core.admin.by import By
from identity.core.admin.importing import Outcome
from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import a_tenant, a_token, a_user
from tests.instruments.test_old_hashes import hashes_of
from tests.world import ORIGIN, Web, environment_of

BY = By("boss", ORIGIN)
ADA = {"email": "ada@acme.example", "alias": "ada", "fullName": "Ada Lovelace", "externalID": "old-1"}


def outcomes(rt: Runtime, *rows: dict[str, Any], **options: bool) -> list[str]:
    return [str(one.outcome) for one in importing.take(rt, BY, rows, **options)]


def test_a_row_is_made_once_and_brought_up_to_date(rt: Runtime) -> None:
    a_tenant(rt, "acme")
    assert outcomes(rt, ADA, dry_run=True) == ["created"]
    assert outcomes(rt, ADA) == ["created"]
    assert outcomes(rt, ADA) == ["unchanged"]
    changed = {**ADA, "fullName": "Countess", "roles": ["analyst"], "tenants": {"acme": ["lead"]}}
    assert outcomes(rt, changed, only_new=True) == ["unchanged"]
    assert outcomes(rt, changed, dry_run=True) == ["updated"]
    assert outcomes(rt, changed) == ["updated"]
    assert outcomes(rt, changed) == ["unchanged"]
    # Without its externalID it is found by its address.
    assert outcomes(rt, {name: value for name, value in changed.items() if name != "externalID"}) == ["unchanged"]
    with rt.database.reading() as session:
        row = session.scalars(select(User).where(User.alias == "ada")).one()
        assert (row.full_name, row.roles, row.external_id) == ("Countess", ("analyst",), "old-1")
        assert session.scalars(select(Membership.roles)).all() == [("lead",)]


def test_a_row_that_cannot_be_taken_holds_up_no_other(rt: Runtime) -> None:
    a_user(rt, alias="taken")
    a_user(rt, alias="boss", email="boss@acme.example", roles=("users_admin",))
    bad: list[tuple[dict[str, Any], str | None]] = [
        ({**ADA, "email": "none"}, "email"),
        ({**ADA, "alias": "taken"}, "alias"),
        ({**ADA, "alias": ""}, "alias"),
        ({**ADA, "fullName": 7}, "fullName"),
        ({**ADA, "passwordHash": "$argon2id$broken"}, "passwordHash"),
        ({**ADA, "tenants": {"nowhere": []}}, "tenants"),
        ({**ADA, "tenants": []}, "tenants"),
        ({**ADA, "roles": "analyst"}, "roles"),
        ({**ADA, "roles": ["user_admin"]}, "roles"),
        ({**ADA, "isAdmin": True}, None),
        ({"email": "boss@acme.example", "alias": "boss", "fullName": "Boss", "roles": []}, "roles"),
    ]
    good = {**ADA, "email": "eve@acme.example", "alias": "eve", "externalID": "old-2"}
    taken = importing.take(rt, BY, [good, *(row for row, _ in bad), ADA])
    assert [str(one.outcome) for one in taken] == ["created", *["rejected"] * len(bad), "created"]
    assert [one.field for one in taken[1:-1]] == [field for _, field in bad]


def test_an_alias_that_somebody_takes_at_this_moment_costs_only_its_row(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_user(rt, alias="taken")
    # As if the look before the insert had come too early.
    monkeypatch.setattr(importing, "_check_uses", lambda *_, **__: None)
    eve = {"email": "eve@acme.example", "alias": "eve", "fullName": "Eve"}
    bob = {"email": "bob@acme.example", "alias": "taken", "fullName": "Bob"}
    assert outcomes(rt, ADA, bob, eve) == ["created", "rejected", "created"]
    assert outcomes(rt, ADA, eve) == ["unchanged", "unchanged"]


def test_an_import_leaves_a_tenant_its_last_owner(rt: Runtime) -> None:
    a_tenant(rt, "acme")
    owner = {**ADA, "tenants": {"acme": ["owner"]}}
    assert outcomes(rt, owner, {**ADA, "tenants": {"acme": ["lead"]}}) == ["created", "rejected"]
    a_user(rt, tenants={"acme": ("owner",)})
    assert outcomes(rt, {**ADA, "tenants": {"acme": ["lead"]}}) == ["updated"]


def test_a_hash_that_a_login_has_replaced_is_never_put_back(web: Web) -> None:
    for number, (kind, stored) in enumerate(hashes_of("correct horse battery").items()):
        row = {"email": f"u{number}@acme.example", "alias": f"old{number}", "fullName": kind, "passwordHash": stored}
        assert outcomes(web.rt, row) == ["created"]
        for password, status in (("wrong", 401), ("correct horse battery", 200), ("correct horse battery", 200)):
            answer = web.post("/user/token", {"email": row["email"], "password": password})
            assert answer.status_code == status, (kind, password)
        with web.rt.database.reading() as session:
            assert (
                session.scalars(select(User.password_hash).where(User.alias == f"old{number}"))
                .one()
                .startswith("$argon2id$v=19$m=8,")
            ), kind
        assert outcomes(web.rt, row) == ["unchanged"]


def test_the_route_takes_lines_and_tells_which_it_did_not(web: Web) -> None:
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    lines = [json.dumps(ADA), "", "{", '{"email":"a","email":"b"}', "[1]", json.dumps({**ADA, "alias": "x y"})]
    sent = {"Content-Type": "application/x-ndjson"}
    answer = web.call("POST", "/admin/users/import", bearer=boss, headers=sent, data="\n".join(lines))
    assert answer.status_code == 202
    assert (answer.json["created"], answer.json["updated"], answer.json["unchanged"]) == (1, 0, 0)
    assert [(one["line"], one["error"]) for one in answer.json["rejected"]] == [
        (2, "MALFORMED_REQUEST"),
        (3, "MALFORMED_REQUEST"),
        (4, "MALFORMED_REQUEST"),
        (5, "VALIDATION_ERROR"),
    ]
    post = {"bearer": boss, "headers": sent}
    many = "\n".join(["{}"] * 10_001)
    assert web.call("POST", "/admin/users/import", data=many, **post).status_code == 413
    assert web.call("POST", "/admin/users/import", data="x" * (8 * 1024 * 1024 + 1), **post).status_code == 413
    assert web.call("POST", "/admin/users/import", [], bearer=boss).status_code == 415
    assert web.call("POST", "/admin/users/import?dryRun=maybe", data="{}", **post).status_code == 400


# By file, through kills.


def environment(settings: Settings) -> dict[str, str]:
    chosen = environment_of(
        {
            "database_url": settings.database_url,
            "keys_dir": settings.keys_dir,
            "master_keys": settings.master_keys,
            "argon2_memory_kib": 8,
            "argon2_time_cost": 1,
        }
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    return {**kept, **chosen, "PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.mark.slow
def test_thousands_are_imported_through_two_kills(rt: Runtime, web: Web, settings: Settings, tmp_path: Path) -> None:
    count = int(os.environ.get("IDENTITY_TEST_IMPORT", "1200"))
    kinds = list(hashes_of("pw").values())[:8]
    file = tmp_path / "people.ndjson"
    with file.open("w") as out:
        for number in range(count):
            row = {
                "email": f"p{number}@acme.example",
                "alias": f"p{number:05}",
                "fullName": f"Person {number}",
                "externalID": f"old-{number}",
                "passwordHash": kinds[number % len(kinds)],
            }
            out.write(json.dumps(row) + "\n")
    call = [sys.executable, "-m", "identity", "user", "import", str(file), "--resume", "--json"]
    started = time.monotonic()
    for _ in range(2):
        killed = subprocess.Popen(
            call, env=environment(settings), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert killed.stderr is not None
        killed.stderr.readline()  # a batch is done
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stderr.close()
    whole = subprocess.run(call, env=environment(settings), cwd=tmp_path, capture_output=True, check=True, text=True)
    took = time.monotonic() - started
    print(f"{count} users in {took:.1f} s, killed twice")
    with rt.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(User)) == count
    assert json.loads(whole.stdout)["rejected"] == 0
    again = subprocess.run(
        [one for one in call if one != "--resume"],
        env=environment(settings), cwd=tmp_path, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert json.loads(again.stdout) == {"created": 0, "updated": 0, "unchanged": count, "rejected": 0}
    for number in range(8):
        answer = web.post("/user/token", {"email": f"p{number}@acme.example", "password": "pw"})
        assert answer.status_code == 200, number


def test_csv_is_read_and_rejects_are_kept_apart(settings: Settings, rt: Runtime, tmp_path: Path) -> None:
    a_tenant(rt, "acme")
    file = tmp_path / "people.csv"
    stored = bcrypt.hashpw(b"pw", bcrypt.gensalt(4)).decode()
    file.write_text(
        "\ufeffemail,alias,fullName,roles,tenants,passwordHash\n"
        f'ada@acme.example,ada,"Lovelace, Ada","analyst,lead","acme:lead,reader",{stored}\n'
        "none,eve,Eve,,,\n"
    )
    call = [sys.executable, "-m", "identity", "user", "import", str(file)]
    ran = subprocess.run(call, env=environment(settings), cwd=tmp_path, capture_output=True, check=False, text=True)
    assert ran.returncode == 1
    (reject,) = [json.loads(line) for line in Path(f"{file}.rejects").read_text().splitlines()]
    assert (reject["line"], reject["field"]) == (3, "email")
    with rt.database.reading() as session:
        row = session.scalars(select(User).where(User.alias == "ada")).one()
        assert (row.full_name, row.roles) == ("Lovelace, Ada", ("analyst", "lead"))
        assert session.scalars(select(Membership.roles)).all() == [("lead", "reader")]


def test_what_is_exported_can_be_imported(settings: Settings, rt: Runtime, tmp_path: Path) -> None:
    a_user(rt, alias="ada", roles=("analyst",), groups=("g",), tenants={"acme": ["lead"]})
    call = [sys.executable, "-m", "identity", "user", "export", "--all", "--with-hashes"]
    ran = subprocess.run(call, env=environment(settings), cwd=tmp_path, capture_output=True, check=True, text=True)
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert rows[0]["passwordHash"].startswith("$argon2id")
    assert [str(one.outcome) for one in importing.take(rt, BY, rows)] == [Outcome.UPDATED]  # its externalID is new
    assert [str(one.outcome) for one in importing.take(rt, BY, rows)] == [Outcome.UNCHANGED]
