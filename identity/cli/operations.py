"""Running the service and looking after it: serve, migrate, worker, settings, doctor."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import re
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
    from identity.settings import Settings

_FIRST_ADMIN: Final = "user create --role users_admin --email you@example.com --alias admin --full-name 'Your Name'"


@command(cli, "serve", is_local=True)
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
        *([f"  {_ourselves()} console link  # prints a link into the console"] if settings.console != "off" else []),
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


@command(cli, "migrate", is_local=True)
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


@command(cli, "settings", is_local=True)
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
@click.option("--current", is_flag=True, help="The values that hold here and now; secrets only as `(set)`.")
def settings(opened: Opened, markdown: bool, current: bool) -> Any:
    """List every setting: environment variable, type, default, meaning."""
    from identity.settings import describe

    if current:
        return _current(opened.settings)
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


def _current(settings: Settings) -> Any:
    """Each setting as it is, where from, and no secret."""
    rows = []
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        shown = ",".join(value) if isinstance(value, tuple) else str(value)
        name = f"IDENTITY_{one.name.upper()}"
        rows.append(
            {
                "name": name,
                "value": _without_password(shown) if one.repr else "(set)" if shown else "",
                "from": "environment" if name in os.environ else "default",
            }
        )
    return {"settings": rows}


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:(set)@", text)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


@command(cli, "worker", is_local=True)
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


@command(cli, "doctor", is_local=True)
def doctor(opened: Opened) -> Any:
    """Look at everything that a working service needs, and say what to do; exit 0: good, 1: warnings, 2: broken. Makes nothing."""
    from identity.ambient import SystemClock
    from identity.core.admin import doctor
    from identity.settings import BadSettings

    try:
        findings = doctor.examine(opened.settings, SystemClock())
    except BadSettings as exc:
        findings = doctor.bad_settings(exc)
    lines = [
        f"{one.state:<7}  {one.name:<11}  {one.found}" + (f" -> {one.to_do}" if one.to_do else "") for one in findings
    ]
    opened.show(doctor.described(findings) if opened.prints_json else "\n".join(lines))
    sys.exit(doctor.verdict(findings))
