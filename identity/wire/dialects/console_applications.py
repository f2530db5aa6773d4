"""The console's applications: a list, a page for each with the three steps of a rotation and its trusts, and what can be done about them.

A secret is on the page that answers its making, and never again. An owner sees the applications of their own tenant, by the use cases of
owners; whom an application trusts, its roles and its budget of tokens are an administrator's.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Any, Final

from identity import documents
from identity.core.admin import applications, incidents, naming, owners, seek
from identity.core.admin.incidents import Kind
from identity.core.clients import applications as clients
from identity.core.clients import expiry, issuers, secrets
from identity.core.clients.applications import ApplicationInfo
from identity.core.clients.secrets import MadeSecret, SecretInfo
from identity.errors import NOT_FOUND, VALIDATION, Refused
from identity.wire.dialects.console_dialect import Deed, Visit, fault_of, perform, said, visited, visited_by_admins
from identity.wire.dialects.console_forms import is_stale, json_of, number, spelled, typed_again, version, words
from identity.wire.endpoint import Reply
from identity.wire.pages import Again

_DAY: Final = 86_400
#: When the old secret ends, as the form of a rotation says it: the options of the use case.
_ENDS: Final[dict[str, dict[str, Any]]] = {
    "day": {"expires_in": _DAY},
    "week": {"expires_in": 7 * _DAY},
    "quiet": {"retire_old_after_quiet": _DAY},
    "never": {},
}


# The list.


@visited
def show_applications(visit: Visit) -> Reply:
    """List applications, or those of an owner's tenant."""
    rt, part = visit.rt, visit.part()
    asked = {"q": visit.asked("q")}
    if visit.by.tenant is not None:
        listed = owners.list_applications(rt, visit.by, part)
    else:
        asked["tenant"] = visit.asked("tenant")
        tenant = seek.tenant_id(rt, asked["tenant"]) if asked["tenant"] else None
        listed = clients.listing(rt, part, tenant=tenant, q=asked["q"] or None)
    values = {"asked": asked, "listed": listed, "more": visit.more(listed, **asked)}
    return visit.show("applications.html", is_admin=visit.by.tenant is None, done=said(visit, DEEDS), **values)


@visited_by_admins
def show_expiring(visit: Visit) -> Reply:
    """List what ends soon: secrets, key pairs, trusts, signing keys."""
    days = number_asked(visit, "days", default=30, most=3650)
    return visit.show("expiring.html", days=days, endings=expiry.endings(visit.rt, days=days))


def number_asked(visit: Visit, name: str, *, default: int, most: int) -> int:
    """A number in the query. Raises Refused(VALIDATION)."""
    text = visit.asked(name) or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise Refused(VALIDATION.saying(f"{name} is from 1 to {most}"), field=name)
    return int(text)


# A new one.


@visited
def show_new_application(visit: Visit) -> Reply:
    """Show the form that makes an application."""
    return visit.show("new_application.html", filled=defaultdict(str), is_admin=visit.by.tenant is None)


@visited
def make_application(visit: Visit) -> Reply:
    """Make an application, and show its first secret once."""
    is_admin = visit.by.tenant is None
    filled = {name: visit.typed(name) for name in ("name", "owner", "scopes", "roles", "audiences")}
    visit.require_recent_login()
    options: dict[str, Any] = {
        "name": filled["name"],
        "scopes": words(visit, "scopes"),
        "audiences": words(visit, "audiences"),
    }
    try:
        if is_admin:
            given: dict[str, Any] = {"tenant": filled["owner"] or None, "roles": words(visit, "roles")}
            insists = visit.typed("newRole") == "yes"
            info, made = applications.create_application(visit.rt, visit.by, new_role=insists, **given, **options)
        else:
            info, made = owners.create_application(visit.rt, visit.by, **options)
    except Refused as refused:
        values = {"filled": filled, "is_admin": is_admin, "fault": fault_of(visit, refused)}
        raise Again(refused, visit.rendered("new_application.html", **values)) from refused
    return _shown_once(visit, info, made, is_new=True)


def _shown_once(visit: Visit, info: ApplicationInfo, made: MadeSecret, *, is_new: bool) -> Reply:
    """The page with a new secret, and the lines to copy it with."""
    issuer = visit.rt.settings.issuer
    scope = f" -d 'scope={' '.join(info.scopes)}'" if info.scopes else ""
    return visit.show(
        "application_secret.html",
        info=info,
        is_new=is_new,
        secret=made.secret.reveal(),
        previous=made.previous,
        # With a query: to the address of this very answer a link with a fragment would load nothing.
        back=visit.link(f"/console/application/{info.id}", done="copied"),
        issuer=issuer,
        scope=scope,
    )


# One of them.


@visited
def show_application(visit: Visit) -> Reply:
    """Show an application."""
    return visit.reply(_rendered(visit))


@visited
def change_application(visit: Visit) -> Reply:
    """Do what the form asks for."""
    info = _found(visit)
    return perform(visit, DEEDS, info.id, called=info.name, show=lambda **values: _rendered(visit, **values))


def _found(visit: Visit) -> ApplicationInfo:
    """The application, if it is the visitor's to see. Raises Refused(NOT_FOUND)."""
    info = clients.get(visit.rt, visit.call.params["id"])
    if visit.by.tenant not in (None, info.tenant):
        raise Refused(NOT_FOUND, detail="another tenant's application")
    return info


def _rendered(visit: Visit, *, fault: dict[str, Any] | None = None) -> str:
    rt, info = visit.rt, _found(visit)
    is_admin = visit.by.tenant is None
    held = secrets.secrets_of(rt, info.id)
    now, told = rt.clock.now(), documents.application(info)
    living = [one for one in held if one.expires_at is None or one.expires_at > now]
    return visit.rendered(
        "application.html",
        info=info,
        is_admin=is_admin,
        secrets=held,
        living=living,
        step=_step(visit, living),
        trusts=issuers.trusts_of(rt, info.id) if is_admin else (),
        attributes=spelled(told["attributes"]),
        token_claims=spelled(told["tokenClaims"]),
        jwks=spelled(info.jwks),
        events=naming.newest(rt, visit.by, info.id),
        typed=typed_again(visit, fault),
        stale=is_stale(fault),
        fault=fault,
        done=said(visit, DEEDS) if not fault else "",
    )


def _step(visit: Visit, living: list[SecretInfo]) -> int:
    """The step of a rotation that comes next: make a new secret; wait while the old one is in use; end the old one."""
    if len(living) < 2:
        return 1
    used = living[0].last_used_at
    return 2 if used is not None and visit.rt.clock.now() - used < timedelta(seconds=_DAY) else 3


# What can be done.


def _change(visit: Visit, client_id: str, **changes: Any) -> None:
    change = applications.change_application if visit.by.tenant is None else owners.change_application
    change(visit.rt, visit.by, client_id, **changes)


def _disable(visit: Visit, client_id: str) -> None:
    _change(visit, client_id, enabled=False)


def _enable(visit: Visit, client_id: str) -> None:
    _change(visit, client_id, enabled=True)


def _edit(visit: Visit, client_id: str) -> None:
    changes: dict[str, Any] = {
        "name": visit.typed("name"),
        "scopes": words(visit, "scopes"),
        "audiences": words(visit, "audiences"),
        "token_seconds": number(visit, "tokenSeconds", most=_DAY),
        "token_reuse_seconds": number(visit, "tokenReuseSeconds", most=_DAY) or 0,
        "jwks": json_of(visit, "jwks"),
    }
    if visit.by.tenant is None:
        changes |= {
            "roles": words(visit, "roles"),
            "tokens_per_day": number(visit, "tokensPerDay", most=1_000_000),
            "attributes": json_of(visit, "attributes") or {},
            "token_claims": json_of(visit, "tokenClaims") or {},
            "new_role": visit.typed("newRole") == "yes",
        }
    _change(visit, client_id, versions=version(visit), **changes)


def _delete(visit: Visit, client_id: str) -> Reply:
    delete = applications.delete_application if visit.by.tenant is None else owners.delete_application
    delete(visit.rt, visit.by, client_id)
    return visit.goes_on("/console/applications", done="delete")


def _make_secret(visit: Visit, client_id: str) -> Reply:
    info = _found(visit)
    options = _ENDS.get(visit.typed("ends", most=16) or "never")
    if options is None or (visit.by.tenant is not None and "expires_in" in options):
        raise Refused(VALIDATION.saying("Say when the old secret ends"), field="ends")
    if visit.by.tenant is not None:
        made = owners.add_secret(visit.rt, visit.by, client_id, **options)
    elif "expires_in" in options:
        made = applications.rotate_secret(visit.rt, visit.by, client_id, **options)
    else:
        made = applications.add_secret(visit.rt, visit.by, client_id, **options)
    return _shown_once(visit, info, made, is_new=False)


def _end_secret(visit: Visit, client_id: str) -> None:
    end = applications.delete_secret if visit.by.tenant is None else owners.delete_secret
    # Whether it is still used stands on the page that asks: who goes on has seen it.
    end(visit.rt, visit.by, client_id, visit.typed("secret", most=64), force=True)


def _contain(visit: Visit, client_id: str) -> None:
    secret_id = visit.typed("secret", most=64)
    if secret_id not in {one.id for one in secrets.secrets_of(visit.rt, client_id)}:
        raise Refused(NOT_FOUND, detail="no such secret of this application")
    incidents.contain(visit.rt, visit.by, Kind.SECRET, secret_id)


def _add_trust(visit: Visit, client_id: str) -> None:
    days = number(visit, "days", most=3650)
    applications.add_trust(
        visit.rt,
        visit.by,
        client_id,
        name=visit.typed("trustName"),
        issuer=visit.typed("issuer"),
        subject=visit.typed("subject") or None,
        claims=json_of(visit, "claims"),
        audience=visit.typed("audience") or None,
        jwks=json_of(visit, "trustJwks"),
        expires_in=None if days is None else days * _DAY,
    )


def _remove_trust(visit: Visit, client_id: str) -> None:
    applications.remove_trust(visit.rt, visit.by, client_id, visit.typed("trust", most=64))


DEEDS: Final = {
    "edit": Deed(_edit, "Saved.", recent=True, for_owners=True),
    "enable": Deed(
        _enable, "The application goes on. Tokens that were ended stay ended.", recent=True, for_owners=True
    ),
    "disable": Deed(
        _disable,
        "The application is stopped, and its tokens have ended.",
        asks="Disable {called}? Its tokens end at once.",
        button="Disable",
        recent=True,
        for_owners=True,
    ),
    "delete": Deed(
        _delete,
        "The application is gone, with its secrets and tokens.",
        asks="Delete {called} with its secrets and tokens? This cannot be undone.",
        button="Delete",
        recent=True,
        for_owners=True,
    ),
    "copied": Deed(lambda _visit, _client: None, "The secret is not shown again."),
    "make-secret": Deed(_make_secret, "", recent=True, for_owners=True),
    "end-secret": Deed(
        _end_secret,
        "The secret has ended, and every token that it earned.",
        asks="End this secret of {called}? Whoever still uses it is out from this moment on.",
        button="End the secret",
        recent=True,
        for_owners=True,
    ),
    "contain": Deed(
        _contain,
        "The secret and every token that it earned have ended, and who answers for it is told by mail.",
        asks="Has this secret of {called} leaked? It ends with every token that it earned, and who answers for it is told.",
        button="It leaked: end it",
        recent=True,
    ),
    "add-trust": Deed(_add_trust, "The application may prove itself with the tokens of that platform.", recent=True),
    "remove-trust": Deed(
        _remove_trust,
        "The trust has ended, and every token that it earned.",
        asks="End this trust of {called}, and every token that it earned?",
        button="End the trust",
        recent=True,
    ),
}
