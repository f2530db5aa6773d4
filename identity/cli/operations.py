"""Running the service and looking after it: serve, migrate, worker, settings, audit, explain, mail."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from identity.cli.frame import Opened, cli, command
from identity.environment import is_setting

if TYPE_CHECKING:
    from identity.runtime import Runtime

_FIRST_ADMIN: Final = "user create --role users_admin --email you@example.com --alias admin --full-name 'Your Name'"


@command(cli, "serve")
def serve(opened: Opened) -> Any:
    """Migrate, make the master key and the first signing key if there are none, and serve."""
    gc.disable()  # Until `run` has its modules: walking them while they are imported is a fifth of a cold start, and finds nothing.
    from identity.serve import run

    run(opened.settings, announce=lambda rt: _announce(opened, rt))


def _announce(opened: Opened, rt: Runtime) -> None:
    """Say where the service is, and on an empty database what to type next. No account is made by itself."""
    from identity.core.admin import users

    settings, empty = rt.settings, not users.has_users(rt)
    if opened.prints_json:
        first = f"{_ourselves()} {_FIRST_ADMIN} --password-stdin" if empty else None
        opened.show({"issuer": settings.issuer, "bind": settings.bind, "firstAdmin": first})
        return
    if not empty:
        return
    lines = [
        f"identity serves {settings.issuer} (listening on {settings.bind}); there is no user yet.",
        "Make the first administrator, in another terminal in this folder:",
        "",
        f"  {_ourselves()} {_FIRST_ADMIN} --password-stdin",
        "",
        "It asks for a password and prints a key pair, which is shown once. Then, for example:",
        "",
        f"  curl -H 'api-key: ...' -H 'api-secret: ...' {settings.issuer}/admin/users",
        f"  {_ourselves()} application create --name my-service --scope read",
    ]
    set_here = sorted(name for name, text in os.environ.items() if is_setting(name, text))
    if set_here:
        lines += ["", f"Set there what is set here: {', '.join(set_here)}"]
    if settings.mail_url.startswith("file:"):
        lines += ["", f"Mail is written to {settings.mail_url.removeprefix('file:')}/, one file for each."]
    opened.show("\n".join(lines))


def _ourselves() -> str:
    """How to call this program from the present folder."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m identity"
    return shlex.quote(_from_here(program))


def _from_here(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


@command(cli, "migrate")
def migrate(opened: Opened) -> Any:
    """Bring the database to the current schema; on an empty one make the master key and the first signing key, as `serve` does."""
    from identity import logs, migrations
    from identity.instruments.vault import has_root
    from identity.opening import create_runtime
    from identity.storage import Database

    logs.configure(opened.settings)
    database = Database(opened.settings.database_url, is_pooled=opened.settings.is_pooled)
    try:
        worked = migrations.migrate(database)
        is_new = not has_root(database)
    finally:
        database.close()
    if is_new:
        create_runtime(opened.settings).close()
    return {"migrated": worked, "revision": migrations.HEAD}


@command(cli, "settings")
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
def settings(_opened: Opened, markdown: bool) -> Any:
    """List every setting: environment variable, type, default, meaning."""
    from identity.settings import describe

    rows = describe()
    if markdown:
        head = ["| variable | type | default | meaning |", "|---|---|---|---|"]
        return "\n".join(
            head + [f"| `{name}` | {kind} | {_code(default)} | {text} |" for name, kind, default, text in rows]
        )
    return {
        "settings": [
            {"name": name, "type": kind, "default": default, "meaning": text} for name, kind, default, text in rows
        ]
    }


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


@command(cli, "worker")
def worker(opened: Opened) -> Any:
    """Run the background work alone (mail, key rotation, sweeping) until told to stop; every server process does it too."""
    from identity import logs
    from identity.core import upkeep

    logs.configure(opened.settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    threads = upkeep.start(opened.rt, stop)
    stop.wait()
    for thread in threads:
        thread.join(opened.settings.graceful_stop_seconds)
    return {"stopped": True}


@command(cli, "audit")
@click.option("--since", metavar="T", help="RFC 3339; not before.")
@click.option("--until", metavar="T", help="RFC 3339; before.")
@click.option("--action", metavar="A", help="Only this action, for example user.created.")
@click.option("--actor", metavar="ID", help="Only what this one did.")
@click.option("--target", metavar="ID", help="Only what was done to this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=200, show_default=True)
def audit(opened: Opened, since: str | None, until: str | None, limit: int, **filters: Any) -> Any:
    """List what happened, newest first."""
    from identity import documents
    from identity.core.record import audit as record

    filters["since"] = documents.moment(since, field="since") if since else None
    filters["until"] = documents.moment(until, field="until") if until else None
    total = record.count(opened.rt, **filters)
    events = record.search(opened.rt, **filters, limit=limit)
    return documents.page("events", total, [documents.event(one) for one in events], limit=limit)


@command(cli, "explain")
@click.argument("error_id", metavar="X-ERROR-ID")
def explain(opened: Opened, error_id: str) -> Any:
    """Say why the request that was answered with this x-error-id was refused."""
    from identity import documents
    from identity.core.record import explain as explanations

    return documents.explanation(explanations.get(opened.rt, error_id))


@cli.group("mail")
def mail() -> None:
    """See mail that waits or was given up, and send it again."""


@command(mail, "list")
@click.option("--state", type=click.Choice(["pending", "sent", "dead", "void"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def list_mails(opened: Opened, state: str | None, limit: int) -> Any:
    """List the newest mails; never what they say."""
    from identity import documents
    from identity.core.mail import outbox

    found = outbox.list_mails(opened.rt, outbox.State(state) if state else None, limit=limit)
    return documents.page("mails", len(found), [documents.mail(one) for one in found], limit=limit)


@command(mail, "retry")
@click.argument("mail_id", metavar="[MAIL_ID]", required=False)
def retry(opened: Opened, mail_id: str | None) -> Any:
    """Send again now what waits or was given up: one mail, or all. The service delivers it."""
    from identity.core.mail import outbox

    with opened.rt.unit(opened.by.origin) as unit:
        return {"retried": outbox.retry(unit, mail_id)}
