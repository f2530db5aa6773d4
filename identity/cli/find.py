"""Who is meant: ids, aliases, addresses, names and numbers, for every command alike."""

from __future__ import annotations

import re
from typing import Any, Final

from identity.canonical import canonical_address, canonical_id
from identity.cli.frame import Opened
from identity.errors import CONFLICT, NOT_FOUND, Refused

# What can be an application's number; longer or from zero on, it is a name.
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,6}", re.ASCII)


def user(opened: Opened, name: str) -> str:
    """The id of the user with this id, address or alias. Raises Refused(NOT_FOUND)."""
    canonical = canonical_id(name)
    if canonical:
        return canonical
    by_address = canonical_address(name) is not None
    found = opened.ask("GET", "users", query={"email" if by_address else "alias": name, "limit": 200})["users"]
    # Several may claim an address, one may have it verified.
    owners = [one for one in found if _owns(one, name)] if by_address else found
    chosen: list[Any] = owners or found
    if not chosen:
        raise Refused(NOT_FOUND, detail="no such user")
    if len(chosen) > 1:
        raise Refused(CONFLICT.saying("Several users claim that address; give an id or an alias"))
    return str(chosen[0]["userID"])


def application(opened: Opened, name: str) -> str:
    """The client id of the application with this client id, number or name. Raises Refused(NOT_FOUND), Refused(CONFLICT)."""
    canonical = canonical_id(name)
    if canonical:
        return canonical
    if _NUMBER.fullmatch(name):
        numbered = opened.ask("GET", "applications", query={"appId": name})["applications"]
        if numbered:
            return str(numbered[0]["clientId"])
    found = opened.ask("GET", "applications", query={"name": name})["applications"]
    if not found:
        raise Refused(NOT_FOUND, detail="no such application")
    if len(found) > 1:
        raise Refused(CONFLICT.saying("Several applications have that name; give the client id or the number"))
    return str(found[0]["clientId"])


def tenant_exists(opened: Opened, tenant_id: str) -> bool:
    """Whether there is a tenant with this id."""
    try:
        opened.ask("GET", "tenant", tenant_id)
    except Refused as refused:
        if refused.problem.code == NOT_FOUND.code:
            return False
        raise
    return True


def memberships(opened: Opened, given: tuple[str, ...]) -> dict[str, list[str]]:
    """`TENANT:role,role` as roles by tenant. Both may hold colons: the longest id of an existing tenant is meant.

    Raises Refused(NOT_FOUND) where no such tenant exists. `TENANT=role,role` can be read in one way only.
    """
    held: dict[str, list[str]] = {}
    for text in given:
        tenant, sign, roles = text.partition("=")
        if not sign:
            tenant, roles = _split(opened, text)
        held.setdefault(tenant, []).extend(role.strip() for role in roles.split(",") if role.strip())
    return held


def _split(opened: Opened, text: str) -> tuple[str, str]:
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        tenant = ":".join(parts[:count])
        if "," not in tenant and tenant and tenant_exists(opened, tenant):
            return tenant, ":".join(parts[count:])
    raise Refused(NOT_FOUND, detail=f"no such tenant: {text[:80]}")


def _owns(shown: Any, address: str) -> bool:
    canonical = canonical_address(address)
    return any(one["verified"] and one["address"] == canonical for one in shown["emails"])
