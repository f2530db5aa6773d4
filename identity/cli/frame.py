"""What all commands share: opening the service, printing what came of it, and failing in one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final

import click

from identity import __version__
from identity.errors import NOT_FOUND, Refused
from identity.settings import BadSettings, Settings

if TYPE_CHECKING:
    from identity.core.admin.by import By
    from identity.runtime import Runtime

_TRIES: Final = 5
_HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Opened:
    """What a command works with; the runtime is opened when a command first needs it."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._settings: Settings | None = None
        self.prints_json = False

    @property
    def settings(self) -> Settings:
        self._settings = self._settings or Settings.from_env()
        return self._settings

    @property
    def rt(self) -> Runtime:
        if self._runtime is None:
            from identity.opening import create_runtime

            # Only `serve` and `migrate` make a database or a key: here either would be a mistyped address.
            self._runtime = create_runtime(self.settings, migrate=False)
        return self._runtime

    @property
    def by(self) -> By:
        from identity.core.admin.by import By

        return By.command_line()

    def show(self, document: Any) -> None:
        """Print a document as it was asked for."""
        click.echo(json.dumps(document, indent=2, ensure_ascii=False) if self.prints_json else as_text(document))
        sys.stdout.flush()

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.database.close()


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="identity")
@click.pass_context
def cli(context: click.Context) -> None:
    """The identity service: sessions, tokens, keys.

    Settings are environment variables; `identity settings` lists them. Every command takes --json.
    """
    opened = Opened()
    context.obj = opened
    context.call_on_close(opened.close)


def command(group: click.Group, name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare the decorated function, which takes `Opened` and returns a document, as a command that prints it.

    A text prints as it is, a document as a table of its fields or rows; with `--json`, either as one JSON document.
    """

    def declare(function: Callable[..., Any]) -> click.Command:
        def run(*, as_json: bool, **options: Any) -> None:
            opened: Opened = click.get_current_context().obj
            opened.prints_json = as_json
            document = _patiently(lambda: function(opened, **options))
            if document is not None:
                opened.show(document)

        update_wrapper(run, function)
        shown = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(run)
        return group.command(name)(shown)

    return declare


def main() -> None:
    """The console script."""
    try:
        cli(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # Whoever reads has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as exc:  # noqa: BLE001 -- whatever it is, the operator gets one line and a status
        message, status = _explained(exc)
        click.echo("identity: " + " ".join(message.split()), err=True)
        sys.exit(status)


def as_text(document: Any) -> str:
    """A document as people read it: fields under each other, lists of things as tables, times in UTC."""
    if isinstance(document, str):
        return document
    if document.keys() >= {"pages", "items"}:
        return _table(list(document.values())[-1])
    plain = {name: value for name, value in document.items() if not _is_table(value)}
    width = max(map(len, plain), default=0)
    lines = [f"{name:<{width}}  {_cell(name, value)}" for name, value in plain.items()]
    for name, value in document.items():
        if name not in plain:
            lines += ["", f"{name}:", _table(value)]
    return "\n".join(lines)


def _table(rows: list[Mapping[str, Any]]) -> str:
    if not rows:
        return "none"
    # A list within a row has no room in a line; `show` has it.
    names = [name for name in rows[0] if not any(_is_table(row[name]) for row in rows)]
    cells = [names] + [[_cell(name, row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _cell(name: str, value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if name == "at" or name.endswith(("At", "From")):
            return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case dict():
            return " ".join(f"{key}={_cell(key, member)}" for key, member in value.items()) or "-"
        case list():
            joined = [_cell("", member) for member in value]
            return ",".join(joined) or "-"
        case _:
            return str(value)


def _patiently(work: Callable[[], Any]) -> Any:
    """The result of `work`, run again where the database chose it as the victim of a conflict."""
    from identity.storage import Contention

    for _ in range(_TRIES - 1):
        try:
            return work()
        except Contention:
            continue
    return work()


def _explained(exc: Exception) -> tuple[str, int]:
    """What to tell about a failure, in one line, and the exit status."""
    status = 1
    match exc:
        case click.UsageError():
            where = exc.ctx.command_path if exc.ctx else "identity"
            text, status = f"{exc.format_message()} (see `{where} --help`)", 2
        case click.ClickException():
            text = exc.format_message()
        case BadSettings():
            text, status = str(exc), 2
        case Refused(problem=problem, detail=detail) if problem.code == NOT_FOUND.code and detail:
            # Whoever has the command line has the database: "nothing that this caller may know of" would only puzzle.
            text = detail
        case _ if (failure := _of_the_database(exc)) is not None:
            from identity import engines

            text = engines.explained(engines.driver_url(Settings.from_env().database_url), failure)
        case Refused(problem=problem, detail=detail):
            text = problem.message + (f" ({detail})" if detail else "")
        case OSError():
            text = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
        case _:
            # The class only: the text of a database's error may quote what was to be stored.
            text = f"that did not work: {type(exc).__name__}"
    return text, status


def _of_the_database(exc: BaseException) -> BaseException | None:
    """The driver's error behind a failure, if it is one of the database."""
    if isinstance(exc, Refused):
        return _of_the_database(exc.__cause__) if exc.__cause__ is not None else None
    if type(exc).__module__.startswith("sqlalchemy."):
        return getattr(exc, "orig", None) or exc
    return exc if type(exc).__module__.partition(".")[0] in ("sqlite3", "psycopg") else None
