"""Warnings of credentials that are about to stop working: who hears, when, and only once."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import update

from identity.core.admin import applications
from identity.core.admin.by import By
from identity.core.clients import expiry, issuers, keypairs, secrets
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.mail import outbox
from identity.runtime import Runtime
from tests.builders import Person, a_token, a_user, an_application
from tests.issuer_world import public_jwk
from tests.oauth_world import ec_key
from tests.world import ORIGIN, FakeClock, Mailbox, Web

DAY = 86_400
BY = By("boss", ORIGIN)


def a_pair(rt: Runtime, owner: Person, *, days: int) -> str:
    with rt.unit(ORIGIN) as unit:
        return keypairs.create(rt, unit, owner.id, name="feed", days=days, actor="test", verified=True)[0].id


def warned(rt: Runtime, mailbox: Mailbox) -> list[str]:
    """Who was told by this run."""
    mailbox.mails.clear()
    expiry.warn(rt)
    outbox.deliver_due(rt)
    return sorted(str(mail["To"]) for mail in mailbox.mails)


def test_the_owner_of_a_key_pair_is_told_at_30_7_and_1_days_once_each(
    rt: Runtime, clock: FakeClock, mailbox: Mailbox
) -> None:
    ada = a_user(rt)
    a_pair(rt, ada, days=60)
    told = []
    for day in range(61):
        if warned(rt, mailbox):
            told.append(60 - day)
            assert "feed" in mailbox.mails[0].as_string()
        assert warned(rt, mailbox) == []
        clock.tick(DAY)
    assert told == [30, 7, 1]


@pytest.mark.parametrize(("seconds", "told"), [(30 * DAY + 1, False), (30 * DAY, True), (30 * DAY - 1, True)])
def test_a_warning_comes_at_its_day(rt: Runtime, clock: FakeClock, mailbox: Mailbox, seconds: int, told: bool) -> None:
    a_pair(rt, a_user(rt), days=31)
    clock.tick(31 * DAY - seconds)
    assert bool(warned(rt, mailbox)) is told


@pytest.mark.parametrize(("days", "told"), [(1, []), (2, [1]), (7, [1]), (8, [7, 1]), (31, [30, 7, 1])])
def test_who_chose_a_short_life_is_not_warned_of_it(
    rt: Runtime, clock: FakeClock, mailbox: Mailbox, days: int, told: list[int]
) -> None:
    a_pair(rt, a_user(rt), days=days)
    seen = []
    for day in range(days):
        if warned(rt, mailbox):
            seen.append(days - day)
        clock.tick(DAY)
    assert seen == told


def test_a_service_that_was_off_warns_once_not_thrice(rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> None:
    ada = a_user(rt)
    a_pair(rt, ada, days=60)
    clock.tick(60 * DAY - 3600)
    assert warned(rt, mailbox) == [ada.email]
    assert warned(rt, mailbox) == []


def test_the_owners_of_a_tenant_are_told_of_its_applications_secrets(
    rt: Runtime, clock: FakeClock, mailbox: Mailbox
) -> None:
    owner = a_user(rt, tenants={"acme-bank": ("owner", "analyst")})
    a_user(rt, tenants={"acme-bank": ("co-owner", "owner2")})
    a_user(rt, tenants={"other": ("owner",)})
    a_user(rt, roles=("users_admin", "owner"))
    a_user(rt, tenants={"acme-bank": ("owner",)}, enabled=False)
    machine = an_application(rt, name="feed", tenant="acme-bank")
    clock.tick(60 * DAY)
    applications.rotate_secret(rt, BY, machine.client_id, expires_in=DAY)
    assert warned(rt, mailbox) == [owner.email]
    text = mailbox.mails[0].as_string()
    assert machine.secret_id in text
    assert machine.secret not in text


def test_administrators_are_told_where_a_secret_has_no_owner(rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> None:
    boss = a_user(rt, roles=("users_admin",))
    a_user(rt, roles=("users-admin",))
    for tenant in (None, "acme-bank"):
        if tenant:
            a_user(rt, tenants={tenant: ("analyst",)})
        machine = an_application(rt, tenant=tenant)
        with rt.unit(ORIGIN) as unit:
            end = clock.now() + timedelta(days=40)
            unit.execute(update(ClientSecret).where(ClientSecret.id == machine.secret_id).values(expires_at=end))
    clock.tick(39.5 * DAY)
    assert warned(rt, mailbox) == [boss.email, boss.email]


def test_nobody_is_told_of_what_does_not_work_anyway(rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> None:
    a_user(rt, roles=("users_admin",))
    off = a_user(rt, enabled=False)
    a_pair(rt, off, days=40)
    waiting = a_pair(rt, a_user(rt), days=40)
    machine = an_application(rt)
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(KeyPair).where(KeyPair.id == waiting).values(verified=False))
        unit.execute(update(ClientSecret).values(expires_at=clock.now() + timedelta(days=40)))
    applications.change_application(rt, BY, machine.client_id, enabled=False)
    clock.tick(39.5 * DAY)
    assert warned(rt, mailbox) == []
    clock.tick(DAY)
    assert warned(rt, mailbox) == []


def test_of_many_processes_one_warns(rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> None:
    ada = a_user(rt)
    a_pair(rt, ada, days=60)
    clock.tick(59.5 * DAY)
    runs = [threading.Thread(target=expiry.warn, args=(rt,)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    outbox.deliver_due(rt)
    assert [str(mail["To"]) for mail in mailbox.mails] == [ada.email]


def test_the_metric_tells_the_soonest_of_each_kind(rt: Runtime, clock: FakeClock) -> None:
    assert expiry.soonest(rt.database, clock.now()) == {}
    ada = a_user(rt)
    for days in (5, 9, 100):
        a_pair(rt, ada, days=days)
    assert expiry.soonest(rt.database, clock.now()) == {"keypair": 5 * DAY}
    machine = an_application(rt)
    applications.rotate_secret(rt, BY, machine.client_id, expires_in=3600)
    assert expiry.soonest(rt.database, clock.now()) == {"keypair": 5 * DAY, "client_secret": 3600}
    clock.tick(3600)
    assert expiry.soonest(rt.database, clock.now()) == {"keypair": 5 * DAY - 3600}


def test_everything_that_will_end_is_in_one_list_soonest_first(web: Web) -> None:
    rt, clock = web.rt, web.clock
    boss = a_user(rt, roles=("users_admin",), password=None)
    ada = a_user(rt, ends_at=clock.now() + timedelta(days=3), password=None)
    feed = an_application(rt)
    a_pair(rt, ada, days=5)
    with rt.unit(ORIGIN) as unit:
        secrets.add_secret(rt, unit, feed.client_id, actor="test", expires_in=2 * DAY)
        keys = {"keys": [public_jwk(ec_key(), "a")]}
        issuers.add_trust(
            rt,
            unit,
            feed.client_id,
            actor="test",
            name="ci",
            issuer="https://ci.example",
            subject="x",
            jwks=keys,
            expires_in=4 * DAY,
        )
    token = a_token(rt, boss)
    listed = web.get("/admin/expiring", bearer=token).json
    assert [one["kind"] for one in listed["expiring"]] == ["secret", "access window", "trust", "keypair"]
    assert listed["expiring"][0]["clientId"] == listed["expiring"][2]["clientId"] == feed.client_id
    assert listed["expiring"][1]["userID"] == listed["expiring"][3]["userID"] == ada.id
    for days in ("0", "3651", "00001999999999", "x"):
        refused = web.get(f"/admin/expiring?days={days}", bearer=token)
        assert (refused.status_code, refused.json["message"]) == (400, "days is from 1 to 3650"), days
    near = web.get("/admin/expiring?days=3&limit=1", bearer=token).json
    assert (near["items"], [one["kind"] for one in near["expiring"]]) == (2, ["secret"])
    for days in ("0", "3651", "x", "-1", "99999999999"):
        assert web.get(f"/admin/expiring?days={days}", bearer=token).status_code == 400


def test_the_owners_hear_of_a_trust_that_ends(rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> None:
    boss, feed = a_user(rt, roles=("users_admin",)), an_application(rt)
    with rt.unit(ORIGIN) as unit:
        keys = {"keys": [public_jwk(ec_key(), "a")]}
        options = {"name": "ci", "issuer": "https://ci.example", "subject": "x", "jwks": keys}
        issuers.add_trust(rt, unit, feed.client_id, actor="test", expires_in=8 * DAY, **options)
    told = []
    for day in range(9):
        if warned(rt, mailbox):
            told.append(8 - day)
            assert str(mailbox.mails[0]["To"]) == boss.email
            assert "trust ci" in mailbox.mails[0].as_string()
        clock.tick(DAY)
    assert told == [7, 1]
