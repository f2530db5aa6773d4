"""Invariant I9: whichever statement of a flow fails, nothing of it is kept. Triggers fail each write of each flow in turn."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from identity.runtime import Runtime
from identity.storage import Base
from tests.builders import PASSWORD, a_session, a_tenant, a_token, a_user, an_application, an_authenticator
from tests.world import Web

pytestmark = pytest.mark.faults
# Notes that are no part of a deed: guesses are counted in transactions of their own, refusals are explained later.
ASIDE = {"meter", "refusal", "lease"}
NEW_PASSWORD = "battery horse correct staple"
Flow = Callable[[Web], Callable[[], Any]]
FLOWS: dict[str, Flow] = {}


def flow(prepare: Flow) -> Flow:
    """Declare what prepares a deed, once, and returns it: a call that changes nothing as long as it fails."""
    FLOWS[prepare.__name__] = prepare
    return prepare


class Saboteur:
    """Triggers on every table that fail one write: the `k`-th from when they are armed."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        tables = [table for table in Base.metadata.tables if table not in ASIDE]
        if rt.database.is_sqlite:
            self._do("CREATE TABLE sabotage (writes INTEGER, fails INTEGER)", "INSERT INTO sabotage VALUES (0, 0)")
            for table, event in itertools.product(tables, ("INSERT", "UPDATE", "DELETE")):
                self._do(
                    f"CREATE TRIGGER sabotage_{table}_{event} BEFORE {event} ON {table} BEGIN"
                    " UPDATE sabotage SET writes = writes + 1;"
                    # Not RAISE: that is a broken constraint, and to the service another thing than a broken database.
                    " SELECT json('sabotage' || writes) FROM sabotage WHERE writes = fails; END"
                )
        else:
            # A sequence counts on whatever is rolled back; the error is the one of a full disk.
            self._do(
                "CREATE SEQUENCE sabotage_writes",
                "CREATE TABLE sabotage (fails bigint)",
                "INSERT INTO sabotage VALUES (0)",
                "CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF nextval('sabotage_writes') = (SELECT fails FROM sabotage) THEN"
                " RAISE EXCEPTION 'sabotage' USING ERRCODE = '53100'; END IF;"
                " IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$",
            )
            for table in tables:
                self._do(
                    f"CREATE TRIGGER sabotage_{table} BEFORE INSERT OR UPDATE OR DELETE ON {table}"
                    " FOR EACH ROW EXECUTE FUNCTION sabotage()"
                )

    def arm(self, k: int) -> None:
        """Fail the `k`-th write from now on, once."""
        if self._rt.database.is_sqlite:
            self._do(f"UPDATE sabotage SET writes = 0, fails = {k}", "DELETE FROM meter")
        else:
            self._do("ALTER SEQUENCE sabotage_writes RESTART", f"UPDATE sabotage SET fails = {k}", "DELETE FROM meter")

    def state(self) -> dict[str, list[str]]:
        """Every row of every table that counts."""
        with self._rt.database.engine.connect() as connection:
            return {
                name: sorted(repr(tuple(row)) for row in connection.execute(table.select()))
                for name, table in Base.metadata.tables.items()
                if name not in ASIDE
            }

    def _do(self, *statements: str) -> None:
        with self._rt.database.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))


@flow
def a_user_signs_in(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    return lambda: web.post("/user/token", {"email": person.email, "password": PASSWORD})


@flow
def a_user_signs_in_with_totp(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    codes = an_authenticator(web.rt, person)
    web.clock.tick(60)
    body = {"email": person.email, "password": PASSWORD, "totpCode": codes.at(web.clock.now())}
    return lambda: web.post("/user/token", body)


@flow
def a_login_begins(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    return lambda: web.post("/auth/login", {"email": person.email, "password": PASSWORD})


@flow
def a_login_is_completed(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    challenge = web.post("/auth/login", {"email": person.email, "password": PASSWORD}).json["mfaChallengeToken"]
    body = {"mfaChallengeToken": challenge, "emailCode": web.last_code()}
    return lambda: web.post("/auth/mfa/challenge", body)


@flow
def a_graphql_login_is_completed(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    login = f'mutation {{ login(username: "{person.email}", password: "{PASSWORD}", appId: 10) {{ code sessionID }} }}'
    session_id = web.post("/query", {"query": login}).json["data"]["login"]["sessionID"]
    otp = f'mutation {{ otp(otp: "{web.last_code()}", sessionID: "{session_id}", appId: 10) {{ code token }} }}'
    return lambda: web.post("/query", {"query": otp})


@flow
def a_token_is_refreshed(web: Web) -> Callable[[], Any]:
    opened = a_session(web.rt, a_user(web.rt))
    assert opened.refresh is not None
    return lambda: web.post("/auth/refresh", {"refreshToken": opened.refresh.reveal()})


@flow
def a_user_signs_out(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    return lambda: web.post("/auth/logout", bearer=token)


@flow
def a_session_is_asked_for(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    return lambda: web.post("/session", {"email": person.email})


@flow
def a_session_is_verified(web: Web) -> Callable[[], Any]:
    opened = web.post("/session", {"email": a_user(web.rt).email}).json
    body = {"verificationCodeID": opened["verificationCodeID"], "code": web.last_code()}
    return lambda: web.put("/session/verification", body)


@flow
def a_session_is_extended(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    web.clock.tick(30)
    return lambda: web.put("/session/extend", bearer=token)


@flow
def an_address_is_added(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    return lambda: web.post("/email", {"address": "second@acme.example"}, bearer=token)


@flow
def an_address_is_verified(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    asked = web.post("/email", {"address": "second@acme.example"}, bearer=token).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
    return lambda: web.put("/email/verification", body)


@flow
def a_key_pair_is_made(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    return lambda: web.post("/keypair", {"name": "k", "days": 1}, bearer=token)


@flow
def a_key_pair_is_verified(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    made = web.post("/keypair", {"name": "k", "days": 1}, bearer=token).json
    body = {"verificationCodeID": made["verificationCodeID"], "code": web.last_code()}
    return lambda: web.put("/keypair/verification", body)


@flow
def a_user_registers(web: Web) -> Callable[[], Any]:
    return lambda: web.post("/user", {"email": "new@acme.example", "fullName": "N", "alias": "newcomer"})


@flow
def a_user_erases_themselves(web: Web) -> Callable[[], Any]:
    token = a_token(web.rt, a_user(web.rt))
    return lambda: web.delete("/user", bearer=token)


@flow
def a_password_is_changed(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    a_token(web.rt, person)
    token = a_token(web.rt, person)
    return lambda: web.put("/auth/password", {"currentPassword": PASSWORD, "newPassword": NEW_PASSWORD}, bearer=token)


@flow
def a_password_is_reset(web: Web) -> Callable[[], Any]:
    person = a_user(web.rt)
    a_token(web.rt, person)
    asked = web.post("/auth/password/forgot", {"email": person.email}).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code(), "newPassword": NEW_PASSWORD}
    return lambda: web.put("/auth/password/reset", body)


@flow
def an_authenticator_is_confirmed(web: Web) -> Callable[[], Any]:
    import pyotp

    token = a_token(web.rt, a_user(web.rt))
    seed = web.post("/auth/mfa/totp", bearer=token).json["secret"]
    body = {"totpCode": pyotp.TOTP(seed).at(web.clock.now())}
    return lambda: web.post("/auth/mfa/totp/confirm", body, bearer=token)


def as_admin(web: Web) -> str:
    return a_token(web.rt, a_user(web.rt, roles=["users_admin"]))


@flow
def an_admin_makes_a_user(web: Web) -> Callable[[], Any]:
    admin = as_admin(web)
    a_tenant(web.rt, "acme-bank")
    body = {
        "email": "n@acme.example",
        "fullName": "N",
        "alias": "newuser",
        "roles": ["r"],
        "tenants": {"acme-bank": ["a"]},
    }
    return lambda: web.post("/admin/user", body, bearer=admin)


@flow
def an_admin_disables_a_user(web: Web) -> Callable[[], Any]:
    admin, person = as_admin(web), a_user(web.rt)
    a_token(web.rt, person)
    a_token(web.rt, person)
    return lambda: web.put(f"/admin/user/{person.id}/disable", bearer=admin)


@flow
def an_admin_erases_a_user(web: Web) -> Callable[[], Any]:
    admin, person = as_admin(web), a_user(web.rt, tenants={"acme-bank": ["a"]})
    a_token(web.rt, person)
    return lambda: web.delete(f"/admin/user/{person.id}", bearer=admin)


@flow
def an_admin_registers_an_application(web: Web) -> Callable[[], Any]:
    admin = as_admin(web)
    return lambda: web.post("/admin/application", {"name": "feed", "scopes": ["read"]}, bearer=admin)


@flow
def an_admin_deletes_an_application(web: Web) -> Callable[[], Any]:
    admin, machine = as_admin(web), an_application(web.rt)
    return lambda: web.delete(f"/admin/application/{machine.client_id}", bearer=admin)


@flow
def an_admin_retires_a_secret(web: Web) -> Callable[[], Any]:
    admin, machine = as_admin(web), an_application(web.rt)
    return lambda: web.delete(f"/admin/application/{machine.client_id}/secret/{machine.secret_id}", bearer=admin)


@flow
def an_admin_makes_a_member(web: Web) -> Callable[[], Any]:
    admin, person = as_admin(web), a_user(web.rt)
    a_tenant(web.rt, "acme-bank")
    return lambda: web.put(f"/admin/tenant/acme-bank/member/{person.id}", {"roles": ["a"]}, bearer=admin)


@flow
def an_admin_rotates_the_keys(web: Web) -> Callable[[], Any]:
    admin = as_admin(web)
    web.rt.ring.ensure_standby()
    return lambda: web.post("/admin/signing-keys/rotate", bearer=admin)


@flow
def an_admin_revokes_the_signing_key(web: Web) -> Callable[[], Any]:
    admin = as_admin(web)
    kid = web.rt.ring.list()[0].kid
    return lambda: web.delete(f"/admin/signing-key/{kid}", bearer=admin)


def is_done(answer: Any) -> bool:
    said = json.loads(answer.data or b"null")
    data = said.get("data") if isinstance(said, dict) else None
    codes = (
        {value.get("code") for value in data.values() if isinstance(value, dict)} if isinstance(data, dict) else set()
    )
    return answer.status_code < 300 and codes <= {"OK", None}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_that_fails_at_any_statement_leaves_nothing_behind(web: Web, name: str) -> None:
    deed = FLOWS[name](web)
    saboteur = Saboteur(web.rt)
    before = saboteur.state()
    for k in itertools.count(1):
        saboteur.arm(k)
        answer = deed()
        if is_done(answer):
            break
        assert answer.status_code == 503, f"statement {k}: {answer.status_code} {answer.data!r}"
        after = saboteur.state()
        assert {name: rows for name, rows in after.items() if rows != before[name]} == {}, f"statement {k}"
    assert k > 1, "nothing was written"
    print(f"{name}: {k - 1} statements")
