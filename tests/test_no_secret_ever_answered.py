"""No answer of any route holds a hash, a seed, a code or a secret that is stored: every route is asked, by everybody, about everything."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import LargeBinary, select

from identity.app import endpoints
from identity.core.clients import keypairs
from identity.core.people import accounts
from identity.core.signin import factors
from identity.settings import Settings
from identity.storage import Base
from identity.wire.endpoint import Endpoint, Reads
from tests.browser import console_deeds
from tests.builders import PASSWORD, a_session, a_token, a_user, an_application, an_authenticator, at_the_console
from tests.conftest import fresh_database
from tests.oauth_world import as_client
from tests.world import CODE, MASTER_KEY, ORIGIN, Web, fast_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return fast_settings(keys_dir=tmp_path / "keys", fixed_otp=True, console="on", **fresh_database("sqlite", tmp_path))


@dataclasses.dataclass
class Arranged:
    """Who asks, about which ids, and what must never be answered."""

    credentials: dict[str, dict[str, str]]
    ids: list[str]
    secrets: dict[str, str]


def arrange(web: Web) -> Arranged:
    """A service with one of everything."""
    rt = web.rt
    admin = a_user(rt, roles=("users_admin",), tenants={"acme-bank": ("owner",)})
    ada = a_user(rt, tenants={"acme-bank": ("analyst",)})
    authenticator = an_authenticator(rt, ada)
    feed = an_application(rt, tenant="acme-bank", scopes=("read", "introspect"))
    session, own = a_session(rt, ada), a_session(rt, admin)
    assert web.post("/session", {"email": ada.email}).status_code == 202
    code = next(found[1] for mail in web.mails() if (found := CODE.search(mail.get_body(("plain",)).get_content())))
    with rt.unit(ORIGIN) as unit:
        key, secret = keypairs.create(rt, unit, ada.id, name="laptop", days=30, actor="test", verified=True)
        factors.set_fixed_otp(rt, unit, accounts.recheck(unit, ada.id), "fixed77otp", actor="test")
    secrets = {
        "password": PASSWORD,
        "master key": MASTER_KEY,
        "TOTP seed": authenticator.seed,
        "mailed code": code,
        "fixed code": "fixed77otp",
        "client secret": feed.secret,
        "API secret": secret.reveal(),
        "session bearer": session.bearer.reveal(),
        "refresh token": session.refresh.reveal(),
        **{f"recovery code {number}": one for number, one in enumerate(authenticator.recovery_codes)},
    }
    machine = {"clientId": feed.client_id, "secret": feed.secret}
    granted = web.post("/application/token", machine).json["data"]["accessToken"]
    return Arranged(
        credentials={
            "nobody": {},
            "an administrator": {"Authorization": f"Bearer {a_token(rt, admin)}"},
            "a user": {"Authorization": f"Bearer {own.bearer.reveal()}"},
            "a key": {"api-key": key.api_key, "api-secret": secret.reveal()},
            "a machine": {"Authorization": f"Bearer {granted}"},
            "a client": as_client(feed),
        },
        ids=[ada.id, admin.id, session.session.id, key.id, feed.client_id, feed.secret_id, "acme-bank", "analyst"],
        secrets=secrets,
    )


def stored(web: Web) -> Iterator[tuple[str, str]]:
    """Every stored digest, seed and sealed value, in each spelling that an answer could show it in."""
    with web.rt.database.reading() as session:
        for table in Base.metadata.tables.values():
            for column in table.columns:
                if not (isinstance(column.type, LargeBinary) or "hash" in column.name):
                    continue
                for value in session.scalars(select(column).where(column.is_not(None))):
                    name = f"{table.name}.{column.name}"
                    if isinstance(value, str):
                        yield name, value
                    elif len(value) >= 8:
                        yield name, value.hex()
                        yield name, base64.b64encode(value).decode().rstrip("=")
                        yield name, base64.urlsafe_b64encode(value).decode().rstrip("=")


def paths(endpoint: Endpoint, ids: list[str]) -> Iterator[str]:
    names = re.findall(r"\{(\w+)\}", endpoint.path)
    for chosen in itertools.product(ids, repeat=len(names)):
        path = endpoint.path
        for name, value in zip(names, chosen, strict=True):
            path = path.replace(f"{{{name}}}", value)
        yield path


def test_no_answer_holds_a_stored_secret(web: Web) -> None:
    arranged = arrange(web)
    forbidden = [*arranged.secrets.items(), *stored(web)]
    assert len({name for name, _ in forbidden if "." in name}) >= 8, "the tables were not arranged"
    # Words of six digits stand in times and ids too: a code counts where it stands alone.
    patterns = {
        name: re.compile(
            rf"(?<![0-9A-Za-z.-]){re.escape(value)}(?![0-9A-Za-z.-])" if value.isdigit() else re.escape(value)
        )
        for name, value in forbidden
        if len(value) >= 6
    }
    everything = re.compile("|".join(pattern.pattern for pattern in patterns.values()))
    asked = 0
    # What only reads comes first: the rest may end what the credentials and ids name, and is asked by those who may do most.
    for endpoint in sorted(endpoints(), key=lambda one: one.method != "GET"):
        if endpoint.path.startswith("/console"):
            continue  # Below.
        reads = endpoint.method == "GET"
        askers = arranged.credentials if reads else ("nobody", "an administrator", "a user")
        for path, who in itertools.product(paths(endpoint, arranged.ids), askers):
            body = {} if reads or endpoint.form else {"json": {}}
            headers = arranged.credentials[who] | ({"X-Tenant-Id": "acme-bank"} if reads else {})
            answer = web.call(endpoint.method, path, headers=headers, **body)
            asked += 1
            shown = f"{answer.headers}\n{answer.text}"
            found = everything.search(shown)
            culprits = [name for name, one in patterns.items() if one.search(shown)] if found else []
            assert not culprits, f"{endpoint.name} tells {who}: {culprits}"
    assert asked > 1000


def test_no_page_of_the_console_holds_a_stored_secret(web: Web) -> None:
    arranged = arrange(web)
    everything = re.compile(
        "|".join(re.escape(value) for _, value in [*arranged.secrets.items(), *stored(web)] if len(value) > 6)
    )
    boss = a_user(web.rt, roles=("users_admin",))
    asked = 0
    for endpoint in sorted(endpoints(), key=lambda one: one.method != "GET"):
        if endpoint.reads is not Reads.COOKIE:
            continue
        for path in paths(endpoint, arranged.ids[:-1] if endpoint.method == "GET" else arranged.ids[:3]):
            for name in console_deeds() if endpoint.method == "POST" else ("",):
                bearer, form = at_the_console(web.rt, boss)
                headers = {"Cookie": f"identity={bearer}", "Sec-Fetch-Site": "same-origin"}
                typed = {"form": form, "deed": name, "sure": "yes"}
                sent = {"data": typed} if endpoint.method == "POST" else {}
                answer = web.call(endpoint.method, path, headers=headers, **sent)
                assert answer.status_code < 500, f"{path} {name}"
                found = everything.search(f"{answer.headers}\n{answer.text}")
                assert not found, f"{endpoint.name} {path} {name}"
                assert bearer not in answer.text
                asked += 1
    assert asked > 100
