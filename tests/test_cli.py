"""The command line, as operators and their scripts use it: what it makes, prints, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import bcrypt
import click
import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from sqlalchemy import select

from identity import cli as command_line
from identity.core.clients import secrets
from identity.core.clients.keypairs import KeyPair
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts
from identity.core.people.accounts import Email, User
from identity.core.people.tenancy import Membership
from identity.core.record import audit
from identity.settings import Settings
from tests.builders import a_session, a_tenant, a_token, a_user
from tests.cli_world import Run, runner
from tests.issuer_world import public_jwk
from tests.oauth_world import rsa_key
from tests.world import MASTER_KEY, ORIGIN, Web, environment_of, free_port, launch, stop, wait_until_ready

ADA = ("--email", "ada@acme.example", "--alias", "ada", "--full-name", "Ada Lovelace")
PASSWORD = "correct horse battery staple"


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `identity ...` on the database of this test."""
    return runner(settings, monkeypatch, capsys)


def leaves(group: click.Group) -> Iterator[click.Command]:
    """Every command that does something."""
    for one in group.commands.values():
        if isinstance(one, click.Group):
            yield from leaves(one)
        else:
            yield one


# What it makes.


def test_a_user_made_here_signs_in(run: Run, web: Web) -> None:
    run("tenant", "create", "acme-bank", "--name", "Acme Bank")
    made = run(
        "user", "create", *ADA, "--role", "analyst", "--tenant", "acme-bank:lead,analyst", "--new-role", "--password-stdin", "--json",
        stdin=PASSWORD + "\n",
    ).json  # fmt: skip
    assert made.keys() == {"userID", "email", "apiKey", "apiSecret", "keyID", "expireAt"}
    answer = web.post("/user/token", {"email": "ada@acme.example", "password": PASSWORD})
    assert answer.status_code == 200
    keys = {"api-key": made["apiKey"], "api-secret": made["apiSecret"]}
    assert web.get("/keypair", headers=keys).json["tenants"] == {"acme-bank": ["analyst", "lead"]}


@pytest.mark.parametrize("line", [PASSWORD, PASSWORD + "\n", PASSWORD + "\r\n", PASSWORD + "\nsecond line\n"])
def test_the_password_is_one_line_of_standard_input(run: Run, web: Web, line: str) -> None:
    assert run("user", "create", *ADA, "--password-stdin", stdin=line).status == 0
    assert web.post("/user/token", {"email": "ada", "password": PASSWORD}).status_code == 200


def test_a_hash_of_an_older_system_moves_here_and_is_upgraded_at_login(run: Run, web: Web) -> None:
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    made = run("user", "create", *ADA, "--password-hash-stdin", "--json", stdin=old + "\n").json
    assert web.post("/user/token", {"email": "ada", "password": "wrong"}).status_code == 401
    assert web.post("/user/token", {"email": "ada", "password": PASSWORD}).status_code == 200
    with web.rt.database.reading() as session:
        assert str(session.get_one(User, made["userID"]).password_hash).startswith("$argon2id$")


@pytest.mark.parametrize("text", ["correct horse battery staple", "$2b$31$" + "a" * 53, "$1$salt$hash"])
def test_what_is_no_hash_that_we_read_is_refused(run: Run, text: str) -> None:
    assert run("user", "create", *ADA, "--password-hash-stdin", stdin=text).status == 1
    assert run("user", "list", "--json").json["users"] == []


def test_an_application_made_here_gets_a_token(run: Run, web: Web) -> None:
    made = run("application", "create", "--name", "feed", "--scope", "read", "--token-seconds", "600", "--json").json
    assert made.keys() == {"clientId", "appId", "secret", "secretID", "expireAt"}
    answer = web.post("/application/token", {"clientId": made["clientId"], "secret": made["secret"]})
    assert answer.json["data"]["expiresIn"] == 600


def test_an_application_whose_name_is_a_number_is_found_by_it(run: Run) -> None:
    for name in ("0", "12345678"):
        client = run("application", "create", "--name", name, "--json").json["clientId"]
        assert run("application", "show", name, "--json").json["clientId"] == client
    refused = run("application", "create", "--name", "any", "--token-seconds", "\u00b2")
    assert (refused.status, "a time is like 90" in refused.err) == (2, True), refused.err


def test_what_an_application_may_ask_for_is_set_and_shown(run: Run) -> None:
    options = ("--token-seconds", "600", "--token-reuse-seconds", "5m", "--tokens-per-day", "50", "--json")
    client = run("application", "create", "--name", "feed", *options).json["clientId"]
    shown = run("application", "show", client, "--json").json
    assert (shown["tokenReuseSeconds"], shown["tokensPerDay"]) == (300, 50)
    changed = run("application", "update", client, "--token-reuse-seconds", "0", "--tokens-per-day", "0", "--json").json
    assert (changed["tokenReuseSeconds"], changed["tokensPerDay"]) == (0, None)
    assert run("application", "create", "--name", "any", "--tokens-per-day", "0", "--json").status == 0
    refused = run("application", "update", client, "--token-reuse-seconds", "301")
    assert (refused.status, "half its life" in refused.err) == (1, True)


def test_what_either_door_makes_cannot_be_told_apart(run: Run, web: Web) -> None:
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    a_tenant(web.rt, "acme-bank")
    web.clock.tick()
    by_rest = web.post(
        "/admin/user",
        {
            "email": "ada@acme.example",
            "alias": "ada",
            "fullName": "Ada Lovelace",
            "roles": ["analyst"],
            "tenants": {"acme-bank": ["lead"]},
            "password": PASSWORD,
        },
        bearer=boss,
    ).json
    app_by_rest = web.post("/admin/application", {"name": "feed", "scopes": ["read"]}, bearer=boss).json
    by_hand = run(
        "user", "create", "--email", "eve@acme.example", "--alias", "eve", "--full-name", "Ada Lovelace",
        "--role", "analyst", "--tenant", "acme-bank:lead", "--new-role", "--password-stdin", "--json", stdin=PASSWORD,
    ).json  # fmt: skip
    app_by_hand = run("application", "create", "--name", "feed", "--scope", "read", "--json").json
    assert by_rest.keys() == by_hand.keys()
    assert app_by_rest.keys() == app_by_hand.keys()

    def rows_of(user_id: str) -> list[dict[str, Any]]:
        varying = {
            "id",
            "alias",
            "address",
            "user_id",
            "created_at",
            "expires_at",
            "api_key",
            "fingerprint",
            "password_hash",
        }
        with web.rt.database.reading() as session:
            found = [
                *session.scalars(select(User).where(User.id == user_id)),
                *(
                    row
                    for table in (Email, KeyPair, Membership)
                    for row in session.scalars(select(table).where(table.user_id == user_id))
                ),
            ]
            return [
                {column.key: getattr(row, column.key) for column in row.__table__.columns if column.key not in varying}
                for row in found
            ]

    assert len(rows_of(by_rest["userID"])) == 4
    assert rows_of(by_rest["userID"]) == rows_of(by_hand["userID"])
    shown = [web.get(f"/admin/application/{one['clientId']}", bearer=boss).json for one in (app_by_rest, app_by_hand)]
    unlike = {"clientId", "appId", "createdAt"}
    assert {name for name in shown[0] if shown[0][name] != shown[1][name]} <= unlike
    # Each is the same deed in the audit; only who did it, and from where, differs.
    traces = [
        [(event.action, sorted(event.data)) for event in audit.search(web.rt, target=made["userID"])]
        for made in (by_rest, by_hand)
    ]
    assert sorted(traces[0]) == sorted(traces[1])
    assert {event.actor for event in audit.search(web.rt, target=by_hand["userID"])} == {"command line"}
    # And each door shows the other's in the same words.
    for user_id in (by_rest["userID"], by_hand["userID"]):
        assert run("user", "show", user_id, "--json").json == web.get(f"/admin/user/{user_id}", bearer=boss).json


def test_users_are_listed_disabled_enabled_windowed_and_deleted(run: Run, web: Web) -> None:
    ada = a_user(web.rt, email="ada@acme.example", alias="ada")
    a_session(web.rt, ada)
    assert run("user", "list", "--json").json["users"][0]["userID"] == ada.id
    assert run("user", "disable", "ADA@acme.example", "--json").json["enabled"] is False
    assert run("user", "list", "--enabled", "--json").json["items"] == 0
    assert run("user", "enable", "ada", "--json").json["enabled"] is True
    window = ("user", "access-window", "ada")
    shown = run(*window, "--starts", "2026-01-01T00:00:00Z", "--ends", "2126-01-01T01:00:00+01:00", "--json").json
    assert shown["accessWindow"] == {"startsAt": 1_767_225_600, "endsAt": 4_922_899_200}
    assert run(*window, "--starts", "none", "--json").json["accessWindow"]["startsAt"] is None
    assert run(*window, "--json").json["accessWindow"]["endsAt"] == 4_922_899_200
    assert run(*window, "--ends", "tomorrow").status == 1
    assert run("user", "delete", ada.id, "--json").json == {"userID": ada.id, "deleted": True}
    assert run("user", "show", "ada").status == 1


def test_the_last_administrator_stays_here_too(run: Run, web: Web) -> None:
    a_user(web.rt, alias="boss", roles=("users_admin",))
    for deed in ("disable", "delete"):
        ran = run("user", deed, "boss")
        assert ran.status == 1
        assert ran.err.startswith("identity: The last administrator can be neither deleted, disabled nor demoted")


def test_members_come_and_go(run: Run, web: Web) -> None:
    ada = a_user(web.rt, alias="ada")
    run("tenant", "create", "acme-bank", "--name", "Acme")
    added = run("tenant", "add-member", "acme-bank", "--user", "ada", "--role", "lead", "--new-role", "--json").json
    assert added == {"userID": ada.id, "alias": "ada", "roles": ["lead"]}
    assert run("tenant", "show", "acme-bank", "--json").json["members"] == [added]
    assert run("tenant", "list", "--json").json["tenants"][0]["id"] == "acme-bank"
    assert run("tenant", "remove-member", "acme-bank", "--user", ada.id).status == 0
    assert run("tenant", "remove-member", "acme-bank", "--user", ada.id).err == "identity: no such membership\n"


def test_a_role_that_is_nearly_one_that_decides_is_a_slip_unless_it_is_said_to_be_new(run: Run, web: Web) -> None:
    ran = run("user", "create", *ADA, "--role", "user_admin")
    assert (ran.status, accounts.find_by_identifier(web.rt, "ada")) == (1, None)
    assert "did you mean users_admin?" in ran.err
    assert "--new-role" in ran.err
    assert run("user", "create", *ADA, "--role", "analyst").status == 0, "any other may be given, held or not"
    a_tenant(web.rt, "acme-bank")
    member = ("tenant", "add-member", "acme-bank", "--user", "ada", "--role")
    assert run(*member, "analyst").status == 0, "somebody holds it"
    slip = run(*member, "analist")
    assert (slip.status, "analyst" in slip.err) == (0, True), "one word about what looks like a slip"
    assert "did you mean owner?" in run(*member, "ownr").err
    assert run(*member, "ownr", "--new-role").status == 0
    assert run(*member, "owner").status == 0, "it means something here"
    assert run("application", "create", "--name", "feed", "--role", "user-admin").status == 1
    assert run("role", "create", "feeder", "--description", "Feeds").status == 0
    assert run("application", "create", "--name", "feed", "--role", "feeder").status == 0
    listed = {(one["name"], one["tenant"]): one for one in run("role", "list", "--json").json["roles"]}
    assert set(listed) == {
        ("analyst", None),
        ("feeder", None),
        ("owner", "acme-bank"),
        ("owner", None),
        ("users_admin", None),
    }
    assert [one["name"] for one in listed["owner", "acme-bank"]["holders"]] == ["ada"]
    assert run("role", "delete", "feeder").status == 0
    assert run("role", "delete", "feeder").err == "identity: no such declaration\n"


def test_people_are_invited_into_a_tenant(run: Run, web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    invite = ("tenant", "invite", "acme-bank", "--email", "grace@acme.example")
    made = run(*invite, "--role", "owner", "--json").json
    assert (made["roles"], made["state"]) == (["owner"], "pending")
    assert run(*invite, "--role", "ownr").status == 1
    assert run("tenant", "invitations", "acme-bank", "--json").json["items"] == 1
    assert run("tenant", "resend-invitation", "acme-bank", made["invitationID"]).status == 0
    assert run("tenant", "withdraw-invitation", "acme-bank", made["invitationID"]).status == 0
    assert (
        run("tenant", "withdraw-invitation", "acme-bank", made["invitationID"]).err == "identity: no such invitation\n"
    )
    assert run("tenant", "invitations", "no-such").status == 1
    assert run("tenant", "invite", "no-such", "--email", "x@acme.example").err == "identity: no such tenant\n"


def test_a_tenant_is_changed_stopped_and_goes_on(run: Run, web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    changed = run("tenant", "update", "acme-bank", "--name", "Acme Bank", "--limit", "standard=5/minute", "--json").json
    assert (changed["name"], changed["limits"]) == ("Acme Bank", {"standard": "5/minute"})
    both = run("tenant", "update", "acme-bank", "--limit", "bulk-upload=off", "--json").json["limits"]
    assert both == {"standard": "5/minute", "bulk-upload": "off"}
    assert run("tenant", "update", "acme-bank", "--limit", "standard=", "--json").json["limits"] == {
        "bulk-upload": "off"
    }
    assert run("tenant", "update", "acme-bank").status == 2
    scoped = run("tenant", "update", "acme-bank", "--scope", "read", "--scope", "write", "--json").json
    assert scoped["scopes"] == ["read", "write"]
    assert run("tenant", "update", "acme-bank", "--scope", "", "--json").json["scopes"] == []
    strict = run(
        "tenant",
        "update",
        "acme-bank",
        "--policy",
        '{"tokenSeconds": 600}',
        "--attributes",
        '{"plan": "gold"}',
        "--json",
    ).json
    assert (strict["policy"], strict["attributes"]) == ({"tokenSeconds": 600}, {"plan": "gold"})
    assert run("tenant", "update", "acme-bank", "--policy", "{}", "--json").json["policy"] == {}
    assert run("tenant", "update", "acme-bank", "--policy", "[]").status == 2
    assert run("tenant", "disable", "acme-bank", "--json").json["enabled"] is False
    assert run("tenant", "show", "acme-bank", "--json").json["enabled"] is False
    assert run("tenant", "enable", "acme-bank", "--json").json["enabled"] is True
    assert run("tenant", "disable", "no-such").err == "identity: no such tenant\n"


def test_a_secret_is_rotated_while_the_old_one_runs_out(run: Run, web: Web) -> None:
    made = run("application", "create", "--name", "feed", "--json").json
    client = made["clientId"]
    fresh = run("application", "rotate-secret", client, "--expires-in", "3600", "--json").json
    for secret in (made["secret"], fresh["secret"]):
        assert web.post("/application/token", {"clientId": client, "secret": secret}).status_code == 200
    shown = run("application", "show", client, "--json").json
    assert [one["expireAt"] is None for one in shown["secrets"]] == [False, True]
    assert run("application", "disable", client, "--json").json["enabled"] is False
    assert web.post("/application/token", {"clientId": client, "secret": fresh["secret"]}).status_code == 401
    assert run("application", "enable", client, "--json").json["enabled"] is True
    assert run("application", "list", "--json").json["items"] == 2
    assert run("application", "delete", client).status == 0
    assert run("application", "show", client).err == "identity: no such application\n"


def test_a_third_secret_needs_force_and_one_in_use_too(run: Run, web: Web) -> None:
    made = run("application", "create", "--name", "feed", "--json").json
    client = made["clientId"]
    assert web.post("/application/token", {"clientId": client, "secret": made["secret"]}).status_code == 200
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    second = run("application", "rotate-secret", client, "--retire-old-after-quiet", "3600", "--json").json
    assert second["previous"]["retireAfterQuietSeconds"] == 3600
    third = run("application", "rotate-secret", client)
    assert third.status == 1
    assert made["secretID"] in third.err
    assert "127.0.0.1" in third.err
    forced = run("application", "rotate-secret", client, "--force", "--expires-in", "60", "--json").json
    assert forced["previous"]["secretID"] == made["secretID"], "the second was never used"
    assert forced["previous"]["expireAt"] is not None
    listed = run("application", "secrets", client, "--json").json
    assert listed["items"] == 3
    assert listed["secrets"][0]["callers"] == ["127.0.0.1"]
    refused = run("application", "end-secret", client, made["secretID"])
    assert refused.status == 1
    assert "127.0.0.1" in refused.err
    assert run("application", "end-secret", client, made["secretID"], "--force").status == 0
    assert run("application", "end-secret", client, made["secretID"]).err.endswith(
        "no such secret of this application\n"
    )
    assert web.post("/application/token", {"clientId": client, "secret": made["secret"]}).status_code == 401


def test_a_trust_is_added_tried_and_removed(run: Run, web: Web, tmp_path: Path) -> None:
    client = run("application", "create", "--name", "feed", "--json").json["clientId"]
    keys, token = tmp_path / "keys.json", tmp_path / "token"
    keys.write_text(json.dumps({"keys": [public_jwk(rsa_key(), "a")]}))
    add = ("application", "trust", "add", client, "--name", "deploys", "--jwks", str(keys))
    lacking = run(*add, "--preset", "github")
    assert (lacking.status, "--claim repository_id=" in lacking.err) == (2, True)
    assert run(*add, "--subject", "x").status == 2
    pins = ("--claim", "repository_id=42", "--claim", "repository_owner_id=7")
    made = run(*add, "--preset", "github", *pins, "--claim", "private:=true", "--json").json
    assert made["issuer"] == "https://token.actions.githubusercontent.com"
    assert made["claims"] == {"repository_id": "42", "repository_owner_id": "7", "private": True}
    warned = run(*add, "--issuer", made["issuer"], "--subject", "repo:acme/feed:*")
    assert warned.status == 0
    assert "registered again" in warned.err
    now = int(time.time())
    claims = {"iss": made["issuer"], "aud": web.rt.settings.issuer, "exp": now + 60, "sub": "repo:acme/feed:main"}
    claims |= {"repository_id": "42", "repository_owner_id": "8", "private": True}
    token.write_text(jwt.encode(claims, rsa_key(), "RS256", headers={"kid": "a"}) + "\n")
    tried = run("application", "trust", "test", client, "--token-file", str(token))
    assert "repository_owner_id" in next(line for line in tried.out.splitlines() if "FAILS" in line)
    verdicts = run("application", "trust", "test", client, "--token-file", str(token), "--json").json
    assert verdicts["passes"] is True, "the second trust asks for less"
    listed = run("application", "trust", "list", client, "--json").json
    assert listed["items"] == 2
    assert run("application", "trust", "remove", client, made["trustID"]).status == 0
    assert run("application", "trust", "remove", client, made["trustID"]).err.endswith(
        "no such trust of this application\n"
    )
    azure = run(*add, "--preset", "azure", "--claim", "tid=t1", "--claim", "oid=o1", "--json").json
    assert azure["issuer"] == "https://login.microsoftonline.com/t1/v2.0"


def test_what_will_end_is_listed_and_goes_into_a_calendar(run: Run, web: Web) -> None:
    client = run("application", "create", "--name", "feed; one, " + "x" * 80, "--json").json["clientId"]
    with web.rt.unit(ORIGIN) as unit:
        secrets.add_secret(web.rt, unit, client, actor="test", expires_in=86_400)
    (ending,) = run("expiring", "--json").json["expiring"]
    assert (ending["kind"], ending["clientId"]) == ("secret", client)
    calendar = run("expiring", "--ics").out
    assert calendar.startswith(("BEGIN:VCALENDAR\r\n", "BEGIN:VCALENDAR\n"))
    assert "feed\\; one\\, " in calendar.replace("\r", "").replace("\n ", "")
    assert max(len(line) for line in calendar.splitlines()) <= 75
    assert calendar.count("BEGIN:VEVENT") == 1


def test_keys_are_imported_rotated_and_revoked(run: Run, web: Web, tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_bytes(
        generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    imported = run("keys", "import", str(pem), "--json").json
    assert imported["state"] == "next"
    assert run("keys", "import", str(pem)).err == "identity: That key is in the ring already\n"
    assert run("keys", "rotate", "--json").json["kid"] == imported["kid"]
    listed = run("keys", "list", "--json").json["keys"]
    assert [key["state"] for key in listed] == ["active", "next"]
    assert run("keys", "revoke", imported["kid"]).status == 0
    assert run("keys", "revoke", imported["kid"]).err == "identity: no such signing key\n"
    (tmp_path / "no.pem").write_text("no key")
    assert run("keys", "import", str(tmp_path / "no.pem")).status == 1
    assert run("keys", "import", str(tmp_path / "none.pem")).status == 2


def test_a_replaced_master_key_loses_nothing(run: Run, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    new = "bmV3IG1hc3RlciBrZXkgZm9yIHRlc3RzLCAzMmJ5dGU="
    made = run("application", "create", "--name", "feed", "--json").json
    with web.rt.unit(ORIGIN) as unit:
        outbox.queue(web.rt, unit, Template.INVITATION, to="ada@acme.example", values={})
    monkeypatch.setenv("IDENTITY_MASTER_KEYS", f"{new},{MASTER_KEY}")
    assert run("keys", "reseal", "--json").json["resealed"] >= 3
    assert run("keys", "reseal", "--json").json["resealed"] == 0
    monkeypatch.setenv("IDENTITY_MASTER_KEYS", new)
    assert run("keys", "list").status == 0
    rotated = run("application", "rotate-secret", made["clientId"])
    assert rotated.status == 0
    monkeypatch.setenv("IDENTITY_MASTER_KEYS", MASTER_KEY)
    refused = run("keys", "list")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "restore the right one" in refused.err


def test_mail_that_waits_is_listed_and_tried_again(run: Run, web: Web) -> None:
    with web.rt.unit(ORIGIN) as unit:
        outbox.queue(web.rt, unit, Template.INVITATION, to="ada@acme.example", values={})
    (mail,) = run("mail", "list", "--json").json["mails"]
    assert (mail["to"], mail["state"]) == ("ada@acme.example", "pending")
    assert run("mail", "retry", "--json").json == {"retried": 1}
    assert run("mail", "retry", mail["mailID"], "--json").json == {"retried": 1}
    assert run("mail", "retry", "no-such-mail").status == 1


def test_an_error_id_is_explained(run: Run, web: Web) -> None:
    refused = web.post("/user/token", {"email": "nobody@acme.example", "password": "x"})
    web.rt.explanations.flush(web.rt.database, web.rt.clock.now())
    shown = run("explain", refused.headers["x-error-id"], "--json").json
    assert (shown["error"], shown["status"], shown["route"]) == ("INVALID_CREDENTIALS", 401, "POST /user/token")
    assert run("explain", "01a20000-0000-7000-8000-000000000000").err.startswith("identity: no such refusal")


def test_the_audit_is_searched(run: Run, web: Web) -> None:
    made = run("user", "create", *ADA, "--json").json
    events = run("audit", "--action", "user.created", "--since", "2020-01-01T00:00:00Z", "--json").json["events"]
    assert [(event["actor"], event["target"]) for event in events] == [("command line", made["userID"])]
    assert run("audit", "--since", "2999-01-01T00:00:00Z", "--json").json == {"pages": 0, "items": 0, "events": []}


class TestFixedCodes:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        from dataclasses import replace

        return replace(settings, fixed_otp=True)

    def test_a_fixed_code_is_set_and_cleared(self, run: Run, web: Web) -> None:
        a_user(web.rt, alias="ada")
        assert run("user", "fixed-otp", "ada", "--stdin", "--json", stdin="482901\n").json["mfa"]["fixedOtp"] is True
        assert run("user", "fixed-otp", "ada", "--clear", "--json").json["mfa"]["fixedOtp"] is False
        assert run("user", "fixed-otp", "ada", "--clear").status == 1
        assert run("user", "fixed-otp", "ada", "--stdin", "--clear", stdin="482901").status == 2


# What it prints.


def test_every_command_takes_json_and_explains_itself() -> None:
    commands = list(leaves(command_line.cli))
    assert len(commands) > 30
    for one in commands:
        assert any("--json" in parameter.opts for parameter in one.params), one.name
        assert one.help, one.name


def test_without_json_it_prints_for_people(run: Run, web: Web) -> None:
    a_user(web.rt, alias="ada", full_name="Ada Lovelace", roles=("analyst", "lead"))
    listed = run("user", "list").out
    assert re.search(r"^userID +alias +fullName ", listed)
    assert "analyst,lead" in listed
    shown = run("user", "show", "ada").out
    assert re.search(r"^fullName +Ada Lovelace$", shown, re.MULTILINE)
    assert re.search(r"^createdAt +20\d\d-\d\d-\d\dT", shown, re.MULTILINE)
    assert run("tenant", "list").out == "none\n"


def test_the_settings_table_names_every_setting(run: Run) -> None:
    table = run("settings", "--markdown").out
    for one in fields(Settings):
        assert f"| `IDENTITY_{one.name.upper()}` |" in table
    assert len(run("settings", "--json").json["settings"]) == len(fields(Settings))


# How it fails.


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("user", "create"), 2),
        (("user", "create", *ADA, "--no-such-option"), 2),
        (("user", "create", *ADA, "--password-stdin"), 2),
        (("no-such-command",), 2),
        (("user", "list", "--limit", "0"), 2),
        (("user", "show", "nobody"), 1),
        (("user", "create", "--email", "none", "--alias", "ada", "--full-name", "A"), 1),
        (("user", "create", *ADA, "--tenant", "nowhere:x"), 1),
        (("tenant", "create", "UPPER", "--name", "x"), 1),
        (("application", "show", "x"), 1),
        (("audit", "--since", "yesterday"), 1),
    ],
)
def test_a_failure_is_one_line_on_standard_error(run: Run, arguments: tuple[str, ...], status: int) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (status, "")
    assert re.fullmatch(r"identity: [^\n]+\n", ran.err)


def test_a_setting_that_does_not_exist_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ISUER", "http://127.0.0.1:8000")
    ran = run("user", "list")
    assert (ran.status, ran.err) == (2, "identity: IDENTITY_ISUER: no such setting\n")


def test_a_database_that_is_down_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_DATABASE_URL", "postgresql://nobody:hunter2@127.0.0.1:1/none")
    ran = run("user", "list")
    assert ran.status == 1
    assert re.fullmatch(r"identity: [^\n]+\n", ran.err)
    assert "hunter2" not in ran.err
    assert "127.0.0.1" in ran.err
    assert "refused" in ran.err
    assert "IDENTITY_DATABASE_URL" in ran.err


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (b"\xef\xbb\xbfcorrect horse battery\r\n", 0, ""),
        ("gr\u00fc\u00df dich, Welt!\n".encode(), 0, ""),
        ("gr\u00fc\u00df dich, Welt!\n".encode("latin-1"), 2, "not UTF-8"),
        ("correct horse battery\n".encode("utf-16"), 2, "UTF-16"),
        (b"", 2, "No password on standard input"),
        (None, 2, "No password on standard input"),
    ],
)
def test_a_password_is_read_as_utf8_whoever_pipes_it(
    web: Web, run: Run, tmp_path: Path, given: bytes | None, status: int, said: str
) -> None:
    import os
    import shlex

    made = ["user", "create", *ADA, "--password-stdin"]
    command = shlex.join([sys.executable, "-m", "identity", *made])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "LC_ALL": "C"}
    shell = ["/bin/sh", "-c", f"{command} <&-"] if given is None else ["/bin/sh", "-c", command]
    ran = subprocess.run(shell, input=given, capture_output=True, check=False, cwd=tmp_path, env=environment)
    assert ran.returncode == status, ran.stderr
    assert said in ran.stderr.decode()
    assert ran.stderr.count(b"\n") == (status != 0)
    if given is not None and not status:
        password = given.decode("utf-8-sig").strip()
        assert web.post("/user/token", {"email": "ada@acme.example", "password": password}).status_code == 200


# How it starts.


def test_help_opens_nothing_and_a_command_needs_no_flask() -> None:
    for statement, absent in (
        ("import identity.cli", ("sqlalchemy", "flask", "cryptography")),
        ("import identity.opening, identity.documents", ("flask", "marshmallow", "gunicorn", "alembic", "psycopg")),
    ):
        checked = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
        printed = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True).stdout
        assert printed == "[]\n", statement


def test_serve_tells_how_to_make_the_first_administrator_and_makes_nobody(tmp_path: Path) -> None:
    port = free_port()
    environment = environment_of(
        {"bind": f"127.0.0.1:{port}", "issuer": f"http://127.0.0.1:{port}", "workers": 1, "argon2_memory_kib": 8}
    )
    log = tmp_path / "log"
    process = launch(tmp_path, environment, log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        line = next(line for line in log.read_text().splitlines() if "user create --role users_admin" in line)
        empty = subprocess.run(
            [sys.executable, "-m", "identity", "user", "list", "--json"],
            capture_output=True, text=True, check=True, cwd=tmp_path, env=environment_for(environment),
        )  # fmt: skip
        assert json.loads(empty.stdout)["items"] == 0
        # The very line that was printed, with a password for its standard input.
        made = subprocess.run(
            ["/bin/sh", "-c", line.strip() + " --json"],
            input=PASSWORD + "\n", check=False, capture_output=True, text=True, cwd=tmp_path, env=environment_for(environment),
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        key = json.loads(made.stdout)
        headers = {"api-key": key["apiKey"], "api-secret": key["apiSecret"]}
        answer = requests.get(f"http://127.0.0.1:{port}/admin/users", headers=headers, timeout=10)
        assert [user["userID"] for user in answer.json()["users"]] == [key["userID"]]
    finally:
        stop(process)
    again = launch(tmp_path, environment, tmp_path / "log2")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", again, tmp_path / "log2")
        assert "user create" not in (tmp_path / "log2").read_text()
    finally:
        stop(again)


def environment_for(settings: dict[str, str]) -> dict[str, str]:
    """The environment of a shell in which these settings are set and the service's own are not."""
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    return {**kept, **settings, "PYTHONPATH": str(Path(__file__).parent.parent)}


def test_the_worker_delivers_mail_and_stops_when_told(tmp_path: Path) -> None:
    environment = environment_for(
        environment_of({"mail_url": f"file:{tmp_path}/mail", "portal_urls": ("https://x.example",)})
    )
    identity = [sys.executable, "-m", "identity"]
    subprocess.run([*identity, "migrate"], check=True, cwd=tmp_path, env=environment, capture_output=True)
    invite = ["user", "create", *ADA, "--notify"]
    subprocess.run([*identity, *invite], check=True, cwd=tmp_path, env=environment, capture_output=True)
    worker = subprocess.Popen([*identity, "worker"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not list((tmp_path / "mail").glob("*.eml")):
            assert time.monotonic() < deadline, "no mail"
            time.sleep(0.05)
    finally:
        worker.terminate()
    assert worker.wait(20) == 0


def test_a_testkit_is_printed_in_development_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("testkit", "--audience", "https://api.example")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("identity: A testkit is signed in development only: set IDENTITY_DEVELOPMENT=1")
    monkeypatch.setenv("IDENTITY_DEVELOPMENT", "1")
    asked = ("testkit", "--audience", "https://api.example", "--tenant", "acme-bank", "--role", "analyst")
    for arguments in (asked, (*asked, "--json")):
        made = run(*arguments).json
        assert made["good"][0]["tenant"] == "acme-bank"
        assert len(made["bad"]) > 25
