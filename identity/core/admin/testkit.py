"""Bad tokens that only we can sign, for services that want to know how strict they are (the conformance run of `kit/`).

Some were good once: what they stood on is made here, and ended the way it is always ended, so that whoever asks us, whoever reads the
status lists and whoever looks at the token alone are all put to the test. The rest never were: our key signs what we would never write.
That is a door that no service in production may have, so all of this works in development only, and the log tells of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from identity.core.access import introspection
from identity.core.admin import applications, on_behalf, tenants, users
from identity.core.admin.by import By
from identity.core.clients import machine_tokens, secrets
from identity.core.clients.applications import STANDARD_APP_ID, ApplicationInfo, find_by_app_id
from identity.core.people import accounts
from identity.core.tokens import sessions
from identity.errors import FORBIDDEN, Refused
from identity.logs import event
from identity.runtime import Runtime

SECONDS: Final = 86_400
_log = logging.getLogger("identity.testkit")
_NOWHERE: Final = "https://somebody-else.example"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the service demands of a good token: an audience, and a tenant, roles (there, or global ones) and scopes where it names them."""

    audience: str
    tenant: str | None = None
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Login:
    user_id: str
    session_id: str
    token: str


@dataclass(frozen=True, slots=True)
class _Machine:
    app: ApplicationInfo
    secret_id: str
    token: str


def make(rt: Runtime, by: By, wanted: Wanted) -> dict[str, Any]:
    """Good tokens and bad ones, as the conformance run reads them. Makes users, applications and tenants whose names begin with `testkit`.

    Raises Refused(FORBIDDEN) outside development, and what the use cases raise that make a user or an application.
    """
    if not rt.settings.development:
        raise Refused(
            FORBIDDEN.saying("A testkit is signed in development only: set IDENTITY_DEVELOPMENT=1"), detail="testkit"
        )
    if wanted.tenant is not None:
        _ensure_tenant(rt, by, wanted.tenant)
    made = _Workshop(rt, by, wanted)
    event(_log, logging.WARNING, "testkit.signed", audience=wanted.audience, tenant=wanted.tenant)
    # A service that demands a scope is there for machines; any other for whoever signs in.
    good = made.machine().token if wanted.scopes else made.login().token
    return {
        "format": 1,
        "issuer": rt.settings.issuer,
        "audience": wanted.audience,
        "madeAt": int(rt.clock.now().timestamp()),
        "good": [{"name": "a good token of the testkit", "token": good} | made.place],
        "bad": [
            {"name": name, "token": token} | made.place for name, token in (made.ended() | made.never(good)).items()
        ],
    }


class _Workshop:
    """What is made has a number of its own, so that a testkit may be made as often as one likes."""

    def __init__(self, rt: Runtime, by: By, wanted: Wanted) -> None:
        self._rt = rt
        self._by = by
        self._wanted = wanted
        self._mark = rt.entropy.bytes(4).hex()
        self._count = 0
        self.place = {"tenant": wanted.tenant} if wanted.tenant else {}

    def login(self, *, tenant: str | None = None) -> _Login:
        """Somebody who signed in, in the wanted tenant or in another."""
        rt, by, wanted = self._rt, self._by, self._wanted
        tenant = tenant or wanted.tenant
        name = self._name()
        made = users.create_user(
            rt,
            by,
            email=f"{name}@testkit.invalid",
            full_name="Testkit",
            alias=name,
            roles=() if tenant else wanted.roles,
            tenants={tenant: wanted.roles} if tenant else {},
            new_role=True,
        )
        standard = find_by_app_id(rt, STANDARD_APP_ID)
        assert standard is not None
        with by.unit(rt) as unit:
            opened = sessions.open_session(
                rt,
                unit,
                accounts.recheck(unit, made.user_id),
                kind="testkit",
                amr=("pwd",),
                client_id=standard.id,
                resource=wanted.audience,
                idle_seconds=SECONDS,
                absolute_seconds=SECONDS,
            )
        token = sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=SECONDS).text
        return _Login(made.user_id, opened.session.id, token)

    def machine(self) -> _Machine:
        """A machine with a secret."""
        rt, by, wanted = self._rt, self._by, self._wanted
        app, secret = applications.create_application(
            rt,
            by,
            name=self._name(),
            tenant=wanted.tenant,
            scopes=wanted.scopes,
            roles=wanted.roles,
            audiences=(wanted.audience,),
            new_role=True,
        )
        proven = secrets.authenticate(rt, by.origin, app.id, secret.secret.reveal())
        token = machine_tokens.issue_token(rt, proven, scope=None, audience=(wanted.audience,)).text
        return _Machine(app, secret.info.id, token)

    def ended(self) -> dict[str, str]:
        """Tokens that were good, by what has happened since."""
        rt, by, wanted = self._rt, self._by, self._wanted
        logged_out, disabled = self.login(), self.login()
        on_behalf.revoke_session(rt, by, logged_out.session_id)
        users.set_enabled(rt, by, disabled.user_id, enabled=False)
        without_secret, alone, stopped = self.machine(), self.machine(), self.machine()
        applications.delete_secret(rt, by, without_secret.app.id, without_secret.secret_id, force=True)
        introspection.revoke(rt, by.origin, alone.app, alone.token)
        applications.change_application(rt, by, stopped.app.id, enabled=False)
        found = {
            "revoked: its session was ended": logged_out.token,
            "revoked: its user was disabled": disabled.token,
            "revoked: its secret was removed": without_secret.token,
            "revoked: the token alone": alone.token,
            "revoked: its application was disabled": stopped.token,
        }
        return found | (self._changed() if wanted.tenant or wanted.roles or wanted.scopes else {})

    def _changed(self) -> dict[str, str]:
        """Tokens that claim what was taken away since; only where the service demands it."""
        rt, by, wanted = self._rt, self._by, self._wanted
        found = {}
        if wanted.scopes:
            machine = self.machine()
            applications.change_application(rt, by, machine.app.id, scopes=())
            found["changed rights: a scope was withdrawn"] = machine.token
        if wanted.tenant:
            member = self.login()
            tenants.remove_member(rt, by, wanted.tenant, member.user_id)
            elsewhere = self._name()
            _ensure_tenant(rt, by, elsewhere)
            found["changed rights: no longer a member"] = member.token
            found["a member of another tenant"] = self.login(tenant=elsewhere).token
        if wanted.roles:
            holder = self.login()
            if wanted.tenant:
                tenants.set_member(rt, by, wanted.tenant, holder.user_id, roles=())
            else:
                users.change_user(rt, by, holder.user_id, roles=set())
            found["changed rights: a role was withdrawn"] = holder.token
        return found

    def never(self, good: str) -> dict[str, str]:
        """Tokens that we would never make, by what is wrong with them; otherwise like `good`."""
        rt = self._rt
        claims, now, ring = rt.ring.verify(good), rt.clock.now(), rt.ring
        headers: dict[str, dict[str, Any]] = {
            "signed as typ JWT": {"typ": "JWT"},
            "signed as a challenge": {"typ": "mfa-challenge+jwt"},
            "signed as an ID token": {"typ": "id_token+jwt"},
            "signed as a status list": {"typ": "statuslist+jwt"},
            "signed without a typ": {"typ": None},
            "signed with a crit that nobody knows": {"crit": ["bork"], "bork": True},
        }
        changes = _changes(claims, int(now.timestamp()), rt.settings.issuer, self._wanted.audience)
        found = {name: ring.sign_unlike_us(claims, now=now, header=more) for name, more in headers.items()}
        return found | {name: ring.sign_unlike_us({**claims, **more}, now=now) for name, more in changes.items()}

    def _name(self) -> str:
        self._count += 1
        return f"testkit-{self._mark}-{self._count}"


def _changes(claims: Mapping[str, Any], now: int, issuer: str, audience: str) -> dict[str, dict[str, Any]]:
    """Claims that make a good token a bad one; None leaves one out."""
    required: Sequence[str] = ("iss", "sub", "aud", "exp", "iat", "jti", "client_id")
    return {f"without {name}": {name: None} for name in required} | {
        "expired two minutes ago": {"exp": now - 120},
        "expired a month ago": {"iat": now - 2_678_400, "nbf": now - 2_678_460, "exp": now - 2_592_000},
        "not valid for another hour": {"nbf": now + 3600},
        "exp that is text": {"exp": str(claims["exp"])},
        "another audience": {"aud": _NOWHERE},
        "a list of other audiences": {"aud": [_NOWHERE, f"{audience}.example"]},
        "our audience as the beginning of another": {"aud": f"{audience}.evil.example"},
        "another issuer": {"iss": _NOWHERE},
        "our issuer with a slash": {"iss": f"{issuer}/"},
    }


def _ensure_tenant(rt: Runtime, by: By, tenant: str) -> None:
    try:
        tenants.create_tenant(rt, by, tenant_id=tenant, name=tenant)
    except Refused as refused:
        if refused.problem.status != 409:
            raise
