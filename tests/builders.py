"""Users, tenants and applications for tests, made through the real entry points."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyotp
from sqlalchemy import update

from identity.core.admin import console as visiting
from identity.core.admin.by import By
from identity.core.clients import applications, registration
from identity.core.people import accounts, tenancy
from identity.core.people.accounts import User
from identity.core.signin import console, factors
from identity.core.tokens import sessions
from identity.runtime import Runtime
from tests.world import ORIGIN

PASSWORD = "correct horse battery staple"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Person:
    """A user, with what only they know."""

    id: str
    email: str
    alias: str
    password: str


@dataclass(frozen=True)
class Machine:
    """An application, with its secret."""

    client_id: str
    app_id: int
    secret: str
    secret_id: str


def a_user(
    rt: Runtime,
    *,
    email: str = "",
    alias: str = "",
    password: str | None = PASSWORD,
    full_name: str = "Ada Lovelace",
    roles: Sequence[str] = (),
    groups: Sequence[str] = (),
    tenants: Mapping[str, Sequence[str]] | None = None,
    enabled: bool = True,
    verified: bool = True,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
) -> Person:
    """A user with a verified address and a password; tenants are made where they do not exist."""
    number = next(_numbers)
    email = email or f"user{number}@acme.example"
    alias = alias or f"user{number}"
    hashed = None
    if password is not None:
        with rt.passwords.turn():
            hashed = rt.passwords.hash(password)
    for tenant in tenants or {}:
        a_tenant(rt, tenant)
    with rt.unit(ORIGIN) as unit:
        user_id = accounts.create(
            rt,
            unit,
            email=email,
            full_name=full_name,
            alias=alias,
            roles=roles,
            groups=groups,
            password_hash=hashed,
            verified=verified,
        )
        for tenant, held in (tenants or {}).items():
            tenancy.set_member(rt, unit, tenant, user_id, roles=held, actor="test")
        unit.execute(
            update(User).where(User.id == user_id).values(enabled=enabled, starts_at=starts_at, ends_at=ends_at)
        )
    return Person(user_id, email, alias, password or "")


def a_tenant(rt: Runtime, tenant_id: str, *, name: str = "", limits: Mapping[str, str] | None = None) -> str:
    """A tenant; made only where it does not exist."""
    with rt.unit(ORIGIN) as unit:
        if unit.session.get(tenancy.Tenant, tenant_id) is None:
            tenancy.create(rt, unit, tenant_id=tenant_id, name=name or tenant_id, actor="test")
        if limits is not None:
            tenancy.change(rt, unit, tenant_id, actor="test", limits=limits)
    return tenant_id


def an_application(rt: Runtime, *, name: str = "feed", **options: Any) -> Machine:
    """An application with one secret."""
    with rt.unit(ORIGIN) as unit:
        info, made = registration.register(rt, unit, name=name, actor="test", **options)
    return Machine(info.id, info.app_id, made.secret.reveal(), made.info.id)


def a_session(
    rt: Runtime, person: Person, *, amr: Sequence[str] = ("email",), verified: bool = True
) -> sessions.Opened:
    """A session of `person` with a bearer and a refresh token."""
    with rt.unit(ORIGIN) as unit:
        user = accounts.recheck(unit, person.id)
        return sessions.open_session(
            rt,
            unit,
            user,
            kind="session",
            amr=amr,
            client_id=applications.find_by_app_id(rt, 10).id,  # type: ignore[union-attr] -- it always exists
            resource=rt.settings.default_audience,
            idle_seconds=rt.settings.session_idle_seconds,
            absolute_seconds=rt.settings.session_absolute_seconds,
            verified=verified,
            with_bearer=True,
            with_refresh=True,
        )


def a_token(rt: Runtime, person: Person, **options: Any) -> str:
    """An access token of `person`, backed by a session."""
    opened = a_session(rt, person, **options)
    return sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=3600).text


@dataclass(frozen=True)
class Authenticator:
    """An authenticator app, with the recovery codes that came with it."""

    seed: str
    recovery_codes: tuple[str, ...]

    def at(self, moment: datetime) -> str:
        """The code that it shows at `moment`."""
        return pyotp.TOTP(self.seed).at(moment)


def at_the_console(rt: Runtime, person: Person) -> tuple[str, str]:
    """The bearer of a fresh console session of `person`, for its cookie, and the token of its forms."""
    _, token = visiting.link(rt, By.command_line(), person.id)
    bearer = console.follow(rt, ORIGIN, token.reveal()).bearer
    assert bearer is not None
    return bearer.reveal(), visiting.visit(rt, ORIGIN, bearer.reveal()).form_token


def an_authenticator(rt: Runtime, person: Person) -> Authenticator:
    """A confirmed authenticator of `person`; the present time step is spent by that."""
    user = accounts.get(rt, person.id)
    seed = factors.enrol(rt, ORIGIN, user).seed.reveal()
    recovery_codes = factors.confirm(rt, ORIGIN, user, pyotp.TOTP(seed).at(rt.clock.now()))
    return Authenticator(seed, tuple(code.reveal() for code in recovery_codes))
