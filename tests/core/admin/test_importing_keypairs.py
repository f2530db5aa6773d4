"""Key pairs of another system: they go on working as their owners have them, and garbage that looks like none costs nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from identity.core import upkeep
from identity.core.admin import importing_keypairs
from identity.core.admin.by import By
from identity.core.clients.keypairs import KeyPair
from identity.errors import Refused
from identity.instruments.key_shapes import MOST, KeyShape
from identity.opening import create_runtime
from identity.runtime import Runtime
from tests.builders import Person, a_tenant, a_token, a_user
from tests.world import ORIGIN, Live, Web

BY = By("boss", ORIGIN)
PREFIX = "sk_live_"
KEY = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"
SECRET = "whsec_3fJq8vN2kLm0PzR7tYb5"
DAY = 86_400


def a_row(owner: Person, **fields: Any) -> dict[str, Any]:
    hashed = f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}"
    return {"user": owner.email, "apiKey": KEY, "secretHash": hashed, "name": "feed"} | fields


def outcomes(rt: Runtime, *rows: dict[str, Any], prefix: str | None = PREFIX, **options: Any) -> list[str]:
    return [str(one.outcome) for one in importing_keypairs.take(rt, BY, rows, prefix=prefix, **options)]


def asked(web: Web, key: str = KEY, secret: str = SECRET, **options: Any) -> Any:
    return web.get("/keypair", headers={"api-key": key, "api-secret": secret}, **options)


def refusals(rt: Runtime, *rows: dict[str, Any]) -> list[str | None]:
    return [one.field for one in importing_keypairs.take(rt, BY, rows, prefix=PREFIX)]


class TestServing:
    @pytest.mark.parametrize("spelling", ["hex", "HEX", "base64", "base64url", "sha512", "plain"])
    def test_a_pair_goes_on_as_its_owner_has_it(self, web: Web, spelling: str) -> None:
        digest = hashlib.sha256(SECRET.encode()).digest()
        known = {
            "hex": {"secretHash": f"sha256:{digest.hex()}"},
            "HEX": {"secretHash": f"sha256:{digest.hex().upper()}"},
            "base64": {"secretHash": f"sha256:{base64.b64encode(digest).decode()}"},
            "base64url": {"secretHash": f"sha256:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"},
            "sha512": {"secretHash": f"sha512:{hashlib.sha512(SECRET.encode()).hexdigest()}"},
            "plain": {"secretHash": None, "apiSecret": SECRET},
        }[spelling]
        owner = a_user(web.rt, roles=("analyst",))
        assert outcomes(web.rt, a_row(owner, **known)) == ["created"]
        answer = asked(web)
        assert (answer.status_code, answer.json["userID"], answer.json["roles"]) == (200, owner.id, ["analyst"])
        assert web.get("/verify?tenant=optional", headers={"api-key": KEY, "api-secret": SECRET}).status_code == 200
        for key, secret in ((KEY, SECRET + "x"), (KEY, SECRET[:-1]), (KEY[:-1] + "d", SECRET), (KEY, digest.hex())):
            assert asked(web, key, secret).status_code == 401

    def test_rotated_it_has_a_secret_of_ours_and_the_old_one_for_the_grace(self, web: Web) -> None:
        owner = a_user(web.rt)
        outcomes(web.rt, a_row(owner))
        made = web.post(
            f"/keypair/{asked(web).json['keyID']}/rotate", {"graceSeconds": 60}, bearer=a_token(web.rt, owner)
        )
        assert made.status_code == 202, made.json
        assert [asked(web, secret=one).status_code for one in (SECRET, made.json["apiSecret"])] == [200, 200]
        web.clock.tick(61)
        assert [asked(web, secret=one).status_code for one in (SECRET, made.json["apiSecret"])] == [401, 200]

    def test_its_end_networks_and_rights_hold(self, web: Web) -> None:
        a_tenant(web.rt, "acme")
        owner = a_user(web.rt, roles=("analyst", "reader"), tenants={"acme": ("lead",)})
        end = int(web.clock.now().timestamp()) + DAY
        row = a_row(owner, expireAt=end, cidrs=["192.0.2.0/24"], roles=["reader"])
        assert outcomes(web.rt, row) == ["created"]
        inside = {"environ_base": {"REMOTE_ADDR": "192.0.2.9"}}
        assert asked(web).status_code == 401
        answer = asked(web, **inside)
        assert (answer.json["roles"], answer.json["expireAt"]) == (["reader"], end)
        web.clock.tick(DAY)
        assert asked(web, **inside).status_code == 401

    def test_another_process_serves_it_within_a_second(self, web: Web, rt: Runtime) -> None:
        other = create_runtime(rt.settings, clock=web.clock, migrate=False)
        try:
            assert not other.key_shapes.fits(KEY)
            outcomes(rt, a_row(a_user(rt)))
            other.key_shapes._read_at -= 1.0
            assert other.key_shapes.fits(KEY)
        finally:
            other.close()


class TestGarbage:
    def test_what_has_no_shape_of_an_imported_key_is_not_looked_for(self, web: Web) -> None:
        outcomes(web.rt, a_row(a_user(web.rt)))
        assert asked(web).status_code == 200
        statements: list[str] = []
        real = web.rt.database._fetch

        def heard(statement: Any, parameters: Any) -> Any:
            statements.append(str(statement))
            return real(statement, parameters)

        web.rt.database._fetch = heard  # type: ignore[method-assign]
        for number in range(30):
            assert asked(web, f"sk_test_{number:024}").status_code == 401
            assert asked(web, f"sk_live_{number:025}").status_code == 401
            assert asked(web, f"sk_live_{number:024}", "short").status_code == 401
        assert not [one for one in statements if "FROM keypair" in one]
        assert len([one for one in statements if "key_shape" in one]) <= 5  # Once a second, whatever is made up.

    def test_shapes_are_few_and_go_with_the_last_pair(self, web: Web) -> None:
        owner, rt = a_user(web.rt), web.rt
        rows = [a_row(owner, apiKey=f"sk_live_{'x' * (4 + number)}") for number in range(MOST + 1)]
        assert outcomes(rt, *rows) == ["created"] * MOST + ["rejected"]
        with rt.unit(ORIGIN) as unit:
            ids = unit.execute(select(KeyPair.id)).scalars().all()
        token = a_token(rt, a_user(rt, roles=("users_admin",)))
        for one in ids[1:]:
            assert web.delete(f"/admin/keypair/{one}", bearer=token).status_code == 202
        upkeep.sweep(rt)
        with rt.database.reading() as session:
            assert session.scalar(select(func.count()).select_from(KeyShape)) == 1


class TestImporting:
    def test_a_run_can_be_repeated_and_revives_nothing(self, web: Web) -> None:
        owner = a_user(web.rt)
        assert outcomes(web.rt, a_row(owner), dry_run=True) == ["created"]
        assert asked(web).status_code == 401
        assert outcomes(web.rt, a_row(owner), a_row(owner)) == ["created", "unchanged"]
        assert outcomes(web.rt, a_row(owner, name="another")) == ["unchanged"]
        assert outcomes(web.rt, a_row(a_user(web.rt))) == ["rejected"]
        assert web.delete(f"/keypair/{asked(web).json['keyID']}", bearer=a_token(web.rt, owner)).status_code < 300
        assert outcomes(web.rt, a_row(owner)) == ["rejected"]
        assert asked(web).status_code == 401

    def test_a_row_that_cannot_be_taken_is_named_and_changes_nothing(self, rt: Runtime) -> None:
        owner = a_user(rt, roles=("analyst",))
        hashed = a_row(owner)["secretHash"]
        bad = [
            ({"user": "nobody"}, "user"),
            ({"user": ""}, "user"),
            ({"user": 7}, "user"),
            ({"apiKey": "sk_live_1"}, "apiKey"),
            ({"apiKey": "sk_live_" + "x" * 57}, "apiKey"),
            ({"apiKey": "sk_live_with a blank"}, "apiKey"),
            ({"apiKey": "sk_test_4eC39HqLyjWDarjtT1zdp7dc"}, "apiKey"),
            ({"secretHash": None}, "secretHash"),
            ({"apiSecret": SECRET}, "secretHash"),
            ({"secretHash": "$2b$12$abcdefghijklmnopqrstuv"}, "secretHash"),
            ({"secretHash": "md5:" + "0" * 32}, "secretHash"),
            ({"secretHash": hashed[:-1]}, "secretHash"),
            ({"secretHash": f"sha256:{hashlib.sha256(b'').hexdigest()}"}, "secretHash"),
            ({"secretHash": None, "apiSecret": "short"}, "apiSecret"),
            ({"secretHash": None, "apiSecret": "a" * 32}, "apiSecret"),
            ({"expireAt": 1}, "expireAt"),
            ({"expireAt": True}, "expireAt"),
            ({"expireAt": 10**12}, "expireAt"),
            ({"cidrs": "192.0.2.0/24"}, "cidrs"),
            ({"cidrs": ["everywhere"]}, "cidrs"),
            ({"roles": ["owner"]}, "roles"),
            ({"tenants": ["acme"]}, "tenants"),
            ({"name": "\x00"}, "name"),
            ({"verified": True}, None),
        ]
        assert refusals(rt, *(a_row(owner, **fields) for fields, _ in bad)) == [field for _, field in bad]
        with rt.database.reading() as session:
            assert session.scalar(select(func.count()).select_from(KeyPair)) == 0
            assert session.scalar(select(func.count()).select_from(KeyShape)) == 0

    @pytest.mark.parametrize("prefix", ["sk", "sk live", "x" * 33])
    def test_a_prefix_tells_keys_from_garbage(self, rt: Runtime, prefix: str) -> None:
        taken = importing_keypairs.take(rt, BY, [a_row(a_user(rt), apiKey=prefix + KEY)], prefix=prefix)
        assert [str(one.outcome) for one in taken] == ["rejected"]
        with pytest.raises(Refused):
            importing_keypairs.take(rt, BY, [], prefix=None)

    def test_a_key_like_ours_is_none_of_theirs(self, rt: Runtime) -> None:
        taken = importing_keypairs.take(rt, BY, [a_row(a_user(rt), apiKey="idk_" + "x" * 33)], prefix="idk_")
        assert [one.field for one in taken] == ["apiKey"]

    def test_keys_without_a_common_prefix_are_taken_where_that_is_said(self, web: Web) -> None:
        key = hashlib.sha256(b"key").hexdigest()[:40]
        assert outcomes(web.rt, a_row(a_user(web.rt), apiKey=key), prefix="") == ["created"]
        assert asked(web, key).status_code == 200


def test_by_route_and_by_command(live: Live, tmp_path: Path) -> None:
    """The route takes lines, and tells which it did not; the command by network is tried beside the others in test_cli_doors."""
    owner, boss = a_user(live.rt), a_token(live.rt, a_user(live.rt, roles=("users_admin",)))
    lines = "\n".join(json.dumps(one) for one in (a_row(owner), a_row(owner, apiKey="sk_live_1")))
    sent = {"Content-Type": "application/x-ndjson"}
    answer = live.call("POST", f"/admin/keypairs/import?prefix={PREFIX}", bearer=boss, headers=sent, data=lines)
    assert answer.status_code == 202
    assert (answer.json()["created"], [one["line"] for one in answer.json()["rejected"]]) == (1, [2])
    assert live.call("POST", "/admin/keypairs/import", bearer=boss, headers=sent, data=lines).status_code == 400
    headers = {"api-key": KEY, "api-secret": SECRET}
    for _ in range(3):
        assert live.get("/keypair", headers=headers).status_code == 200
    assert live.get("/keypair", headers=headers | {"api-secret": SECRET[::-1]}).status_code == 401
