"""A `By` carries what its actor may: who administers one tenant opens nothing else."""

from __future__ import annotations

import pytest

from identity.core.admin import keys, on_behalf, tenants, users
from identity.core.admin.by import By
from identity.errors import Refused
from identity.runtime import Runtime
from tests.builders import a_tenant, a_user
from tests.world import ORIGIN


def test_who_administers_one_tenant_reaches_no_use_case_of_the_whole_service(rt: Runtime) -> None:
    a_tenant(rt, "acme-bank")
    ada, by = a_user(rt), By("owner", ORIGIN).within("acme-bank")
    deeds = (
        lambda: users.set_enabled(rt, by, ada.id, enabled=False),
        lambda: users.erase_user(rt, by, ada.id),
        lambda: users.grant_role(rt, by, ada.id, "users_admin"),
        lambda: tenants.set_tenant_enabled(rt, by, "acme-bank", enabled=False),
        lambda: tenants.set_member(rt, by, "acme-bank", ada.id, roles=["owner"]),
        lambda: on_behalf.send_password_reset(rt, by, ada.id),
        lambda: keys.rotate_key(rt, by),
    )
    for deed in deeds:
        with pytest.raises(Refused, match="FORBIDDEN"):
            deed()


def test_it_narrows_and_never_widens() -> None:
    everything = By("boss", ORIGIN)
    acme = everything.within("acme-bank")
    assert (acme.where, acme.within("acme-bank")) == ("acme-bank", acme)
    with pytest.raises(Refused, match="FORBIDDEN"):
        acme.within("globex")
    with pytest.raises(Refused, match="FORBIDDEN"):
        _ = everything.where
