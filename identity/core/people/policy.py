"""A tenant's own policy: what it demands of whoever acts in it, beyond what this service demands of everybody.

It is decided by the facts of a login: how it was proven, when, from where, by whom. A caller who does not meet it is refused at the gate
and on the tenant's routes, and tokens leave the tenant out. Machines have no login: of them only networks and the life of tokens are asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, select

from identity import grounds
from identity.ambient import later
from identity.canonical import canonical_address
from identity.core.people.accounts import Email
from identity.core.people.tenancy import Belonging, Memberships, Tenant
from identity.errors import VALIDATION, Refused
from identity.runtime import Runtime
from identity.storage import Prepared

MOST: Final = 50
_UNFIT: Final = VALIDATION.saying(
    "A policy has requireSecondFactor, tokenSeconds and sessionSeconds (60 to 31536000), emailDomains, networks; at most 50 each"
)
_MINUTE: Final = 60
_YEAR: Final = 31_536_000


class _PolicyRow(NamedTuple):
    policy: str


class _AddressRow(NamedTuple):
    address: str


_OF_TENANT = Prepared(select(Tenant.policy).where(Tenant.id == bindparam("id")), into=_PolicyRow)
_ADDRESSES = Prepared(
    select(Email.address).where(Email.user_id == bindparam("user_id"), Email.verified), into=_AddressRow
)


class Policy(NamedTuple):
    """What a tenant demands; nothing by default."""

    require_second_factor: bool = False
    token_seconds: int | None = None
    session_seconds: int | None = None
    email_domains: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


class Login(NamedTuple):
    """The facts of a caller that a policy asks for; `auth_time` None: no login, `address` None: not known here."""

    user_id: str
    amr: tuple[str, ...]
    auth_time: datetime | None
    address: str | None
    issued_at: int | None = None
    is_machine: bool = False


class Unmet(NamedTuple):
    """The rule of a policy that a login does not meet, and what it expected and saw."""

    rule: str
    expected: Any
    seen: Any


class Named(NamedTuple):
    """The tenants that a token may name, with the roles in each; and what that bounds its life by."""

    roles: dict[str, tuple[str, ...]]
    seconds: int | None
    ends: tuple[datetime, ...]


def checked(policy: Mapping[str, Any]) -> str:
    """A policy as it is stored. Raises Refused(VALIDATION)."""
    known: dict[str, Any] = {}
    for name, value in policy.items():
        reader = _READERS.get(name)
        if reader is None:
            raise Refused(_UNFIT, field="policy", detail=f"{name[:64]!a}")
        known[name] = reader(value)
    return json.dumps(known, sort_keys=True)


@lru_cache(maxsize=1024)
def read(text: str) -> Policy:
    """A stored policy."""
    said: dict[str, Any] = {} if text == "{}" else json.loads(text)
    return Policy(
        said.get("requireSecondFactor", False),
        said.get("tokenSeconds"),
        said.get("sessionSeconds"),
        tuple(said.get("emailDomains", ())),
        tuple(said.get("networks", ())),
    )


def of_tenant(rt: Runtime, tenant: str) -> Policy:
    """The policy of a tenant as of now."""
    row = rt.database.row(_OF_TENANT, id=tenant)
    return read(row.policy) if row else _NONE


def unmet(rt: Runtime, held: Belonging, login: Login, now: datetime) -> Unmet | None:
    """The first rule of the tenant's policy that this login does not meet, or None."""
    policy = read(held.policy)
    if policy == _NONE:
        return None
    grounds.give_up()  # Some rules are about the time of day, and some read what changes without an epoch.
    seconds = policy.token_seconds
    if seconds is not None and login.issued_at is not None and int(now.timestamp()) - login.issued_at > seconds:
        return Unmet("tokenSeconds", f"a token of at most {seconds} s", {"iat": login.issued_at})
    if policy.networks and login.address is not None and not _is_within(policy.networks, login.address):
        return Unmet("networks", list(policy.networks), login.address)
    return None if login.is_machine else _unmet_by_person(rt, policy, login, now)


def named(rt: Runtime, memberships: Memberships, login: Login, now: datetime) -> Named:
    """The tenants that a token of this login may name: those that are enabled and whose policy it meets."""
    roles: dict[str, tuple[str, ...]] = {}
    seconds: list[int] = []
    ends: list[datetime] = []
    for held in memberships.all():
        if not held.is_enabled or unmet(rt, held, login, now) is not None:
            continue
        roles[held.tenant] = held.roles
        policy = read(held.policy)
        if policy.token_seconds is not None:
            seconds.append(policy.token_seconds)
        if policy.session_seconds is not None and login.auth_time is not None:
            ends.append(later(login.auth_time, policy.session_seconds))
    return Named(roles, min(seconds, default=None), tuple(ends))


def _unmet_by_person(rt: Runtime, policy: Policy, login: Login, now: datetime) -> Unmet | None:
    if policy.require_second_factor and len(set(login.amr) - {"key"}) < _FACTORS:
        return Unmet("requireSecondFactor", "a login with two factors", list(login.amr))
    seconds = policy.session_seconds
    if seconds is not None and login.auth_time is not None and now > later(login.auth_time, seconds):
        return Unmet("sessionSeconds", f"a login of at most {seconds} s", {"auth_time": login.auth_time.isoformat()})
    if policy.email_domains:
        rows = rt.database.rows(_ADDRESSES, user_id=login.user_id)
        domains = {row.address.rpartition("@")[2] for row in rows}
        if domains.isdisjoint(policy.email_domains):
            return Unmet("emailDomains", list(policy.email_domains), sorted(domains))
    return None


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refused(_UNFIT, field="policy", detail="no truth")
    return value


def _seconds(value: Any) -> int:
    if type(value) is not int or not _MINUTE <= value <= _YEAR:
        raise Refused(_UNFIT, field="policy", detail="no number of seconds")
    return value


def _each(read_one: Callable[[str], str]) -> Callable[[Any], list[str]]:
    """A reader of a list of texts, each read by `read_one`."""

    def read_all(value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) > MOST or not all(isinstance(one, str) for one in value):
            raise Refused(_UNFIT, field="policy", detail="no list of texts")
        return sorted({read_one(one) for one in value})

    return read_all


def _domain(text: str) -> str:
    address = canonical_address(f"x@{text}")
    if address is None:
        raise Refused(_UNFIT, field="policy", detail="no mail domain")
    return address.rpartition("@")[2]


def _network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError as exc:
        raise Refused(_UNFIT, field="policy", detail="no network", cause=exc) from exc


@lru_cache(maxsize=4096)
def _is_within(networks: tuple[str, ...], address: str) -> bool:
    try:
        peer = ip_address(address)
    except ValueError:
        return False
    return any(peer in ip_network(network) for network in networks)


_NONE: Final = Policy()
_FACTORS: Final = 2
_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "requireSecondFactor": _truth,
    "tokenSeconds": _seconds,
    "sessionSeconds": _seconds,
    "emailDomains": _each(_domain),
    "networks": _each(_network),
}
