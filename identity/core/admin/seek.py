"""Finding what people name: a user, an application, a tenant, or whoever an audit event may be about.

Ids are taken as they are; so are aliases, addresses, names and application numbers, wherever one is meant. What names nothing is refused:
a search for a slip of the pen would find nothing, and look like an answer.
"""

from __future__ import annotations

from identity.canonical import canonical_id
from identity.core.admin import users
from identity.core.clients import applications
from identity.core.clients.applications import ApplicationInfo
from identity.core.people import tenancy
from identity.core.record import audit
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Refused
from identity.paging import Part
from identity.runtime import Runtime

_NOBODY = VALIDATION.saying("Nobody and nothing has that name or id")
_NOT_EVENTS = ("command line", "background", "")


def user_id(rt: Runtime, name: str, *, field: str = "user") -> str:
    """The id of the user with this id, alias or address. Raises Refused(VALIDATION)."""
    try:
        return canonical_id(name) or users.find_user(rt, name).id
    except Refused as refused:
        raise Refused(_NOBODY, field=field, detail=refused.detail, cause=refused) from refused


def tenant_id(rt: Runtime, name: str, *, field: str = "tenant") -> str:
    """The id of a tenant that exists. Raises Refused(VALIDATION)."""
    try:
        return tenancy.describe(rt, name).id
    except Refused as refused:
        raise Refused(VALIDATION.saying("There is no such tenant"), field=field, cause=refused) from refused


def application(rt: Runtime, name: str) -> ApplicationInfo:
    """The application with this client id, number or name. Raises Refused(NOT_FOUND), Refused(CONFLICT) for a name of several."""
    found = applications.find(rt, name)
    if found is None and name.isascii() and name.isdigit():
        found = applications.find_by_app_id(rt, int(name[:19]))
    if found is not None:
        return found
    named = applications.listing(rt, Part(limit=2), name=name).items
    if not named:
        raise Refused(NOT_FOUND, detail="no such application")
    if len(named) > 1:
        raise Refused(CONFLICT.saying("Several applications have that name; give the client id or the number"))
    return named[0]


def client_id(rt: Runtime, name: str, *, field: str = "application") -> str:
    """The client id of the application with this client id, number or name. Raises Refused(VALIDATION)."""
    try:
        return canonical_id(name) or application(rt, name).id
    except Refused as refused:
        raise Refused(_NOBODY, field=field, detail=refused.detail, cause=refused) from refused


def subject(rt: Runtime, name: str, *, field: str) -> str:
    """The id that an audit event or a refusal has for whoever or whatever is named so. Raises Refused(VALIDATION)."""
    canonical = canonical_id(name)
    if canonical is not None or name in _NOT_EVENTS:
        return canonical or name
    for find in (users.find_user, application):
        try:
            found: str = find(rt, name).id
        except Refused as refused:
            if refused.problem.code != NOT_FOUND.code:
                raise
        else:
            return found
    # Tenants and signing keys have ids of their own, and what was deleted lives on in the audit.
    if audit.knows(rt, name):
        return name
    raise Refused(_NOBODY, field=field, detail="no user, application, tenant or signing key is called so")
