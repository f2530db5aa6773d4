"""Roles: declared or held, told with their holders; a slip that would make an administrator who is none is refused."""

from __future__ import annotations

import pytest

from identity.core.admin import applications, roles, tenants, users
from identity.core.admin.by import By
from identity.core.record import audit
from identity.errors import Refused
from identity.paging import Part
from identity.runtime import Runtime
from tests.builders import a_tenant, a_token, a_user, an_application
from tests.world import ORIGIN, Web

BY = By("test", ORIGIN)
SLIPS = ("user_admin", "users-admin", "usersadmin", "user_admins", "usres_admin", "owners", "onwer", "ownr")
NO_SLIPS = ("users_admin", "owner", "admin", "analyst", "auditor", "power", "o")


@pytest.mark.parametrize("name", SLIPS)
def test_what_is_nearly_a_role_that_decides_something_is_refused_wherever_it_is_given(rt: Runtime, name: str) -> None:
    ada = a_user(rt, alias="ada")
    a_tenant(rt, "acme-bank")
    machine = an_application(rt)
    person = {"email": "grace@acme.example", "full_name": "Grace", "alias": "grace"}
    deeds = (
        lambda new: users.create_user(rt, BY, **person, roles=(name,), new_role=new),
        lambda new: users.create_user(
            rt,
            BY,
            **person | {"email": "g2@acme.example", "alias": "grace2"},
            tenants={"acme-bank": (name,)},
            new_role=new,
        ),
        lambda new: users.grant_role(rt, BY, ada.id, name, new_role=new),
        lambda new: users.change_user(rt, BY, ada.id, roles=[name, "x"], new_role=new),
        lambda new: tenants.set_member(rt, BY, "acme-bank", ada.id, roles=[name], new_role=new),
        lambda new: applications.create_application(rt, BY, name="feed", roles=[name], new_role=new),
        lambda new: applications.change_application(rt, BY, machine.client_id, roles=[name], new_role=new),
    )
    for deed in deeds:
        with pytest.raises(Refused, match="VALIDATION") as caught:
            deed(False)
        assert "Did you mean" in caught.value.problem.message
    for deed in deeds:
        deed(True)
    for deed in deeds[2:5]:
        deed(False)  # Somebody holds it by now.


@pytest.mark.parametrize("name", NO_SLIPS)
def test_any_other_role_may_be_given(rt: Runtime, name: str) -> None:
    users.grant_role(rt, BY, a_user(rt).id, name)


def test_a_user_who_holds_an_odd_role_can_be_changed(rt: Runtime) -> None:
    ada = a_user(rt, roles=("user_admin",))
    assert users.change_user(rt, BY, ada.id, roles=["user_admin", "x"]).info.roles == ("user_admin", "x")


def test_roles_are_listed_with_their_holders(web: Web) -> None:
    boss = a_user(web.rt, alias="boss", roles=("users_admin",))
    for number in range(25):
        a_user(web.rt, alias=f"member{number:02}", password=None, tenants={"acme-bank": ("analyst",)})
    feed = an_application(web.rt, name="feed", tenant="acme-bank", roles=("analyst",))
    token = a_token(web.rt, boss)
    body = {"name": "reviewer", "description": "Reads  what others wrote", "tenant": "acme-bank"}
    made = web.post("/admin/role", body, bearer=token)
    assert (made.status_code, made.json["declared"], made.json["count"]) == (202, True, 0)
    assert web.post("/admin/role", body, bearer=token).status_code == 409
    assert web.post("/admin/role", {"name": "owner", "description": "x"}, bearer=token).status_code == 409
    assert web.post("/admin/role", body | {"tenant": "nowhere"}, bearer=token).status_code == 404
    assert web.post("/admin/role", body | {"name": "A B"}, bearer=token).status_code == 400
    page = web.get("/admin/roles?limit=2", bearer=token).json
    assert (page["items"], page["pages"]) == (4, 2)
    told = {(one["name"], one["tenant"]): one for one in web.get("/admin/roles", bearer=token).json["roles"]}
    analysts = told["analyst", "acme-bank"]
    assert (analysts["count"], len(analysts["holders"]), analysts["declared"]) == (26, roles.HOLDERS_TOLD, False)
    assert told["users_admin", None]["holders"] == [{"kind": "user", "id": boss.id, "name": "boss"}]
    assert told["reviewer", "acme-bank"]["description"] == "Reads what others wrote"
    assert told["owner", None]["count"] == 0
    assert [event.target for event in audit.search(web.rt, action="role.declared")] == ["reviewer"]
    with web.rt.unit(ORIGIN) as unit:
        assert unit.session.get(roles.Application, feed.client_id)


def test_a_declared_role_is_no_slip_and_one_of_a_deleted_tenant_goes_with_it(rt: Runtime) -> None:
    a_tenant(rt, "acme-bank")
    roles.declare(rt, BY, name="owned", description="Is owned", tenant="acme-bank")
    users.grant_role(rt, BY, a_user(rt).id, "owned")
    tenants.delete_tenant(rt, BY, "acme-bank")
    assert [one for one in roles.listing(rt, Part()).items if one.tenant] == []


def test_the_roles_of_a_tenant_are_its_own_and_all_of_them(rt: Runtime) -> None:
    a_user(rt, alias="ada", tenants={"acme-bank": ("analyst", "owner"), "elsewhere": ("auditor",)}, roles=("analyst",))
    an_application(rt, tenant="acme-bank", roles=("analyst",))
    roles.declare(rt, BY, name="reviewer", description="Reads", tenant="acme-bank")
    # More than a page of them come first by name elsewhere.
    with rt.unit(ORIGIN) as unit:
        made = {"tenant_id": "elsewhere", "description": "x", "created_at": unit.now}
        unit.session.add_all(roles.Role(id=rt.new_id(), name=f"a{number:03}", **made) for number in range(201))
    told = [(one.name, one.tenant, one.count, one.declared) for one in roles.of_tenant(rt, "acme-bank")]
    assert told == [
        ("analyst", "acme-bank", 2, False),
        ("owner", "acme-bank", 1, True),
        ("reviewer", "acme-bank", 0, True),
    ]
