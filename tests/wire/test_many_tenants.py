"""A user in 150 tenants: the token leaves them out and says so, and everything that asks us reads the database."""

from __future__ import annotations

import jwt
import pytest

from identity.core.admin import tenants
from identity.core.admin.by import By
from tests.builders import PASSWORD, a_tenant, a_user, an_application
from tests.conftest import fresh_database
from tests.oauth_world import as_client
from tests.world import ORIGIN, Web, start_live


def test_a_user_in_150_tenants_works_in_each(web: Web) -> None:
    names = [f"tenant-number-{number:03}.acme-bank.example" for number in range(150)]
    ada = a_user(web.rt, tenants=dict.fromkeys(names, ("analyst", "reviewer")))
    token = web.post("/user/token", {"email": ada.email, "password": PASSWORD}).json["data"]["accessToken"]
    said = jwt.decode(token, options={"verify_signature": False})
    assert (said.get("tenants"), said["tenants_omitted"]) == (None, True)
    assert len(token) < 6 * 1024
    assert web.get("/auth/me", bearer=token).json["tenants"].keys() == set(names)
    for name in (names[0], names[149]):
        passed = web.get("/verify?role=reviewer", bearer=token, headers={"X-Tenant-Id": name})
        assert (passed.status_code, passed.headers["X-Auth-Roles"]) == (200, "analyst,reviewer")
    assert web.get("/verify", bearer=token, headers={"X-Tenant-Id": "another"}).status_code == 403
    watcher = an_application(web.rt, scopes=("introspect",))
    told = web.post("/oauth/introspect", headers=as_client(watcher), data={"token": token}).json
    assert (len(told["tenants"]), told.get("tenants_omitted")) == (150, None), "nothing is left out where we are asked"


def test_a_stopped_tenant_is_refused_by_every_process_at_the_next_request(
    tmp_path_factory: pytest.TempPathFactory, backend: str
) -> None:
    folder = tmp_path_factory.mktemp("stopped")
    with start_live(folder, fresh_database(backend, folder), workers=2) as live:
        a_tenant(live.rt, "acme-bank")
        ada = a_user(live.rt, tenants={"acme-bank": ("analyst",)})
        token = live.post("/user/token", {"email": ada.email, "password": PASSWORD}).json()["data"]["accessToken"]

        def verdicts() -> set[int]:
            # Each call is a connection of its own: either process may take it.
            acme = {"X-Tenant-Id": "acme-bank"}
            return {live.get("/verify", bearer=token, headers=acme).status_code for _ in range(24)}

        assert verdicts() == {200}
        tenants.set_tenant_enabled(live.rt, By("test", ORIGIN), "acme-bank", enabled=False)
        assert verdicts() == {403}
        tenants.set_tenant_enabled(live.rt, By("test", ORIGIN), "acme-bank", enabled=True)
        assert verdicts() == {200}
