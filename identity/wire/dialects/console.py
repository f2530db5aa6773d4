"""Group M: the console's pages, as a list of what there is. Their code is imported when somebody opens one.

Each line is a route: its method and path, the module and the function that answer it, and one sentence. The lines of `NAVIGATION` are shown
at the head of every page, as far as they have a route here. How a request becomes a visit is in `console_dialect`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple

from marshmallow import Schema

from identity.errors import FORBIDDEN, INVALID_TOKEN, NOT_FOUND, RATE_LIMITED, TOKEN_EXPIRED, VALIDATION
from identity.instruments.limits import Policy
from identity.wire.endpoint import HTML, Call, Dialect, Reads, Reply
from identity.wire.pages import PAGE

console = Dialect("M: console", shape=PAGE, produces=HTML)


class ConsolePage(Schema):
    """A page to read."""


class Entry(NamedTuple):
    """A line of the navigation; `for_owners`: also for who owns a tenant and administers nothing else."""

    path: str
    label: str
    for_owners: bool


NAVIGATION: Final = (
    Entry("/console", "Overview", for_owners=True),
    Entry("/console/why", "Why refused?", for_owners=False),
    Entry("/console/users", "Users", for_owners=True),
    Entry("/console/tenants", "Tenants", for_owners=True),
    Entry("/console/applications", "Applications", for_owners=True),
    Entry("/console/keypairs", "Key pairs", for_owners=False),
    Entry("/console/sessions", "Sessions", for_owners=False),
    Entry("/console/audit", "Audit", for_owners=True),
    Entry("/console/system", "System", for_owners=False),
)
#: The page of one thing of each kind: its path without the id.
PAGES_OF: Final = {
    "user": "/console/user/",
    "tenant": "/console/tenant/",
    "application": "/console/application/",
    "keypair": "/console/keypair/",
}


def _late(module: str, name: str, sentence: str) -> Callable[[Call], Reply]:
    """The function of this name in a module that is imported when it is first called: who opens no console pays for none."""

    def handler(call: Call) -> Reply:
        answer: Callable[[Call], Reply] = getattr(import_module(f"identity.wire.dialects.{module}"), name)
        return answer(call)

    handler.__name__ = f"console_{name}"
    handler.__doc__ = sentence
    return handler


def door(method: str, path: str, module: str, name: str, sentence: str, **options: Any) -> None:
    """Declare a page on the way in: it reads no credential, and is counted like every login."""
    options = {
        "limit": Policy.AUTH,
        "answer": ConsolePage,
        "refusals": (NOT_FOUND, VALIDATION, RATE_LIMITED),
        **options,
    }
    console.endpoint(method, path, form=method == "POST", ignores_body=method == "GET", **options)(
        _late(module, name, sentence)
    )


def page(path: str, module: str, name: str, sentence: str, *, query: tuple[str, ...] = ()) -> None:
    """Declare a page to look at, with what its query may hold."""
    console.endpoint(
        "GET",
        path,
        reads=Reads.COOKIE,
        limit=Policy.STANDARD,
        ignores_body=True,
        query=(*query, "tenant", "done"),
        answer=ConsolePage,
        refusals=(NOT_FOUND, FORBIDDEN, VALIDATION, RATE_LIMITED),
    )(_late(module, name, sentence))


def deed(path: str, module: str, name: str, sentence: str) -> None:
    """Declare what the forms of a page do."""
    console.endpoint(
        "POST",
        path,
        reads=Reads.COOKIE,
        limit=Policy.STANDARD,
        form=True,
        answer=ConsolePage,
        refusals=(NOT_FOUND, FORBIDDEN, VALIDATION, INVALID_TOKEN, TOKEN_EXPIRED, RATE_LIMITED),
    )(_late(module, name, sentence))


door("GET", "/console/sign-in", "console_sign_in", "show_sign_in", "Show the way into the console.", query=("then",))
door("POST", "/console/sign-in", "console_sign_in", "sign_in", "Sign in to the console: password first, then the code.")
door("POST", "/console/sign-out", "console_sign_in", "sign_out", "Sign out of the console.")
door(
    "GET",
    "/console/link/{token}",
    "console_sign_in",
    "show_link",
    "Show what a printed link does. Looking uses nothing up.",
)
door("POST", "/console/link/{token}", "console_sign_in", "follow_link", "Sign in by a printed link, once.")

page("/console", "console_record", "show_overview", "Show what needs a person, and nothing else.")
page(
    "/console/users",
    "console_users",
    "show_users",
    "List users, or an owner's members, with a prefix to search for.",
    query=("q", "state", "role", "after"),
)
page("/console/users/new", "console_users", "show_new_user", "Show the form that invites a user.")
deed("/console/users/new", "console_users", "make_user", "Make a user, who is mailed an invitation.")
page(
    "/console/user/{id}", "console_users", "show_user", "Show a user: what they are, may and did, and what can be done."
)
deed("/console/user/{id}", "console_users", "change_user", "Do what a form of a user's page asks for.")
page("/console/user/{id}/export", "console_users", "export_user", "Download everything that is held about a person.")
page("/console/you", "console_you", "show_you", "Show one's own ways to sign in.")
deed("/console/you", "console_you", "change_you", "Change one's own ways to sign in.")

page(
    "/console/why",
    "console_why",
    "show_why",
    "Show the form that explains a refusal, and what was refused lately.",
    query=("period",),
)
deed(
    "/console/why",
    "console_why",
    "explain_pasted",
    "Explain an x-error-id, a whole response or a token that was pasted.",
)
page(
    "/console/why/{id}",
    "console_why",
    "show_refusal",
    "Explain a refusal: why, who else, what to tell, and what is at fault.",
)
page(
    "/console/refusals",
    "console_why",
    "show_refusals",
    "List refusals, newest first, and how many there were in each hour.",
    query=("error", "check", "caller", "address", "period", "after"),
)
deed("/console/find", "console_why", "find", "Find a user, an application, a tenant or a refusal by whatever names it.")

page(
    "/console/audit",
    "console_record",
    "show_audit",
    "List events, newest first, by the names of who did what to whom.",
    query=("actor", "action", "target", "credential", "address", "since", "until", "of", "after"),
)
page(
    "/console/sessions",
    "console_record",
    "show_sessions",
    "List living sessions, newest first.",
    query=("user", "of", "application", "after"),
)
deed("/console/sessions", "console_record", "change_sessions", "End one session, or all that a filter names.")
page("/console/system", "console_system", "show_system", "Show what runs: signing keys, mail, backups.")
deed("/console/system", "console_system", "change_system", "Rotate or withdraw a signing key, or try mail again.")

page(
    "/console/tenants",
    "console_tenants",
    "show_tenants",
    "List tenants, with a prefix to search for.",
    query=("q", "after"),
)
page("/console/tenants/new", "console_tenants", "show_new_tenant", "Show the form that makes a tenant.")
deed("/console/tenants/new", "console_tenants", "make_tenant", "Make a tenant, and invite its first owner.")
page(
    "/console/tenant/{id}",
    "console_tenants",
    "show_tenant",
    "Show a tenant: who is in it, what it demands, what can be done.",
)
deed("/console/tenant/{id}", "console_tenants", "change_tenant", "Do what a form of a tenant's page asks for.")

page(
    "/console/applications",
    "console_applications",
    "show_applications",
    "List applications, or those of an owner's tenant, with a prefix to search for.",
    query=("q", "after"),
)
page(
    "/console/applications/new",
    "console_applications",
    "show_new_application",
    "Show the form that makes an application.",
)
deed(
    "/console/applications/new",
    "console_applications",
    "make_application",
    "Make an application; its secret is shown once.",
)
page(
    "/console/application/{id}",
    "console_applications",
    "show_application",
    "Show an application: its secrets and who uses them, whom it trusts, what can be done.",
)
deed(
    "/console/application/{id}",
    "console_applications",
    "change_application",
    "Do what a form of an application's page asks for.",
)
page("/console/expiring", "console_applications", "show_expiring", "List what ends soon by itself.", query=("days",))

page(
    "/console/keypairs",
    "console_keypairs",
    "show_keypairs",
    "List key pairs, with a prefix to search for.",
    query=("q", "user", "after"),
)
page(
    "/console/keypair/{id}",
    "console_keypairs",
    "show_keypair",
    "Show a key pair: what it may, what it touched, what can be done.",
)
deed("/console/keypair/{id}", "console_keypairs", "change_keypair", "Do what a form of a key pair's page asks for.")
