"""What all commands share: opening the service, printing what came of it, and failing in one line."""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import update_wrapper
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from identity import __version__
from identity.ambient import SystemClock
from identity.errors import NOT_FOUND, UNAVAILABLE, Refused
from identity.settings import BadSettings, Settings

if TYPE_CHECKING:
    from identity.cli.desk import Desk
    from identity.core.admin.by import By
    from identity.runtime import Runtime

_TRIES: Final = 5
_LINE_MAX: Final = 65_536
# The longest part of a list that a route gives at once.
_PART: Final = 200
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
# The columns that a narrow table keeps longest.
_WORTH: Final = (
    "alias",
    "email",
    "name",
    "enabled",
    "at",
    "action",
    "actor",
    "error",
    "check",
    "keyName",
    "state",
    "roles",
)
_HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Opened:
    """What a command works with; the runtime is opened when a command first needs it."""

    def __init__(self, server: str | None = None) -> None:
        self._runtime: Runtime | None = None
        self._settings: Settings | None = None
        self._desk: Desk | None = None
        self.server = server
        self.prints_json = False

    @property
    def settings(self) -> Settings:
        self._settings = self._settings or Settings.from_env()
        return self._settings

    @property
    def rt(self) -> Runtime:
        """The service over its database. Only for what group H does not offer."""
        if self.server:
            raise click.UsageError("This command works on the database itself: run it there, without --server")
        if self._runtime is None:
            from identity.opening import create_runtime

            # Only `serve` and `migrate` make a database or a key: here either would be a mistyped address.
            self._runtime = create_runtime(self.settings, migrate=False)
        return self._runtime

    @property
    def by(self) -> By:
        from identity.core.admin.by import By

        return By.command_line()

    @property
    def desk(self) -> Desk:
        """Group H: over the network where a server is named, else over the database."""
        if self._desk is None:
            if self.server:
                from identity.cli.remote import OverNetwork

                self._desk = OverNetwork(self.server)
            else:
                from identity.cli.desk import OverDatabase

                self._desk = OverDatabase(self.rt)
        return self._desk

    def ask(self, method: str, *path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """The document that `/admin/...` answers; `path` are the segments behind that."""
        from identity.cli.desk import path_of

        return self.desk.ask(method, path_of("admin", *path), query=query, body=body)

    def everything(self, plural: str, *path: str, query: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Every item of a list, whatever its length."""
        after = None
        while True:
            part = self.ask("GET", *path, query={**(query or {}), "limit": _PART, "after": after})
            yield from part[plural]
            after = part.get("next")
            if after is None:
                return

    def show(self, document: Any) -> None:
        """Print a document as it was asked for."""
        if self.prints_json:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            text, dropped = as_text(document, width=_terminal_width())
            click.echo(text)
            if dropped:
                self.tell(f"columns that do not fit: {', '.join(dropped)} (--json has them)")
        sys.stdout.flush()

    def tell(self, words: str) -> None:
        """One line beside the result, on standard error."""
        sys.stdout.flush()
        click.echo(f"identity: {words}", err=True)

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.database.close()


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="identity")
@click.option("--server", metavar="URL", help="Work on the service at URL, not on the database. Also IDENTITY_SERVER.")
@click.pass_context
def cli(context: click.Context, server: str | None) -> None:
    """The identity service: sessions, tokens, keys.

    Settings are environment variables; `identity settings` lists them. Every command takes --json, and --server.
    """
    opened = Opened(server or os.environ.get("IDENTITY_SERVER") or None)
    context.obj = opened
    context.call_on_close(opened.close)


def command(
    group: click.Group, name: str, *, asks: str = "", is_local: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare the decorated function, which takes `Opened` and returns a document, as a command that prints it.

    A text prints as it is, a document as a table of its fields or rows; with `--json`, either as one JSON document. `asks`: what cannot be
    undone, in words that may name options; asked before on a terminal, unless `--yes`. `is_local`: knows no server.
    """

    def declare(function: Callable[..., Any]) -> click.Command:
        def run(*, as_json: bool, server: str | None = None, yes: bool = False, **options: Any) -> None:
            opened: Opened = click.get_current_context().obj
            opened.prints_json = as_json
            opened.server = server or opened.server
            if asks and not yes and is_conversation():
                click.confirm(asks.format(**options), abort=True, err=True)
            document = _patiently(lambda: function(opened, **options))
            if document is not None:
                opened.show(document)

        update_wrapper(run, function)
        shown = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(run)
        if not is_local:
            shown = click.option("--server", metavar="URL", help="Work on the service at URL.")(shown)
        if asks:
            shown = click.option("--yes", is_flag=True, help="Do not ask first.")(shown)
        made = group.command(name)(shown)
        for parameter in made.params:
            if parameter.type is click.STRING and parameter.make_metavar(click.Context(made)).strip("[].") in _NAMES:
                parameter.type = _NAMES[parameter.make_metavar(click.Context(made)).strip("[].")]
        return made

    return declare


def lists(
    group: click.Group, name: str, plural: str, *, limit: int = 200
) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare a command that lists; the decorated function takes `Opened` and gives a path behind `/admin` and its query.

    It prints the first `limit`, and says on standard error how many it left out; `--all` prints every one.
    """

    def declare(function: Callable[..., tuple[tuple[str, ...], Mapping[str, Any]]]) -> click.Command:
        def run(opened: Opened, *, limit: int, page: int, whole: bool, lines: bool, **options: Any) -> Any:
            path, query = function(opened, **options)
            if lines:
                found = opened.everything(plural, *path, query=query)
                for item in found if whole else islice(found, (page - 1) * limit, page * limit):
                    click.echo(json.dumps(item, ensure_ascii=False))
                return None
            if whole:
                items = list(opened.everything(plural, *path, query=query))
                return {"pages": 1 if items else 0, "items": len(items), plural: items}
            return _some(opened, plural, path, query, limit=limit, page=page)

        update_wrapper(run, function)
        options = (
            click.option("--limit", type=click.IntRange(1, 10_000), default=limit, show_default=True),
            click.option("--page", type=click.IntRange(1), default=1, show_default=True),
            click.option("--all", "whole", is_flag=True, help="Every one, however many."),
            click.option("--ndjson", "lines", is_flag=True, help="Print one JSON document a line."),
        )
        for option in reversed(options):
            run = option(run)
        return command(group, name)(run)

    return declare


def _some(
    opened: Opened, plural: str, path: tuple[str, ...], query: Mapping[str, Any], *, limit: int, page: int
) -> dict[str, Any]:
    """One page of a list as one document, with a line about what it leaves out."""
    asked = {**query, "limit": min(limit, _PART)}
    if limit <= _PART:
        document: dict[str, Any] = opened.ask("GET", *path, query={**asked, "page": page})
    else:
        if page > 1:
            raise click.UsageError(f"--page goes with a --limit up to {_PART}; --all has everything")
        document = opened.ask("GET", *path, query=asked)
        while document.get("next") and len(document[plural]) < limit:
            size = min(_PART, limit - len(document[plural]))
            more = opened.ask("GET", *path, query={**query, "limit": size, "after": document.pop("next")})
            document[plural] += more[plural]
            document |= {"next": more["next"]} if "next" in more else {}
        document["pages"] = -(-document["items"] // limit)
    if len(document[plural]) < document["items"] and "next" in document:
        shown = f"{len(document[plural])} of {document['items']} {plural}"
        opened.tell(f"{shown}; --page {page + 1} has the next, --all every one")
    return document


def a_line(context: click.Context, parameter: click.Parameter, wanted: bool) -> str | None:
    """A callback: one line from standard input, without its end; typed unseen where a person types it."""
    if not wanted:
        return None
    what = (parameter.name or "").capitalize().replace("_", " ")
    if sys.stdin is not None and sys.stdin.isatty():
        answer: str = click.prompt(what, hide_input=True, err=True)
        return answer
    line = first_line(what.lower(), context)
    if not line:
        raise click.UsageError(f"No {what.lower()} on standard input", context)
    return line


def first_line(what: str, context: click.Context | None = None) -> str:
    """The first line of standard input, in UTF-8 whatever the locale says; a byte order mark of whoever pipes is dropped."""
    # With descriptor 0 closed, Python has no standard input at all.
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    given: bytes | str = stream.readline(_LINE_MAX) if stream is not None else b""
    raw = given.encode() if isinstance(given, str) else given
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise click.UsageError(f"The {what} on standard input is UTF-16; send it as UTF-8", context)
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"The {what} on standard input is not UTF-8", context) from exc


class _Name(click.ParamType[str]):
    """The name of something that exists; shells complete it."""

    name = "text"

    def __init__(self, plural: str, field: str) -> None:
        self._plural = plural
        self._field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        opened = Opened(ctx.find_root().params.get("server") or os.environ.get("IDENTITY_SERVER"))
        try:
            query = {"q": incomplete or None, "limit": 50}
            found = opened.ask("GET", self._plural, query=query)[self._plural]
        except (Refused, BadSettings):
            return []
        finally:
            opened.close()
        # A search finds names and addresses too; here only what continues what was typed.
        return [
            CompletionItem(one) for one in sorted(each[self._field] for each in found) if one.startswith(incomplete)
        ]


_NAMES: Final = {
    "USER": _Name("users", "alias"),
    "CLIENT_ID": _Name("applications", "clientId"),
    "APP": _Name("applications", "clientId"),
    "T": _Name("tenants", "id"),
}


def when(text: str | None, *, ago: bool) -> str | None:
    """A moment as the routes read it: `1h`, `7d` and the like (before now, or from now on), a day, RFC 3339, or Unix seconds."""
    if text is None:
        return None
    seconds = _seconds(text)
    if seconds is not None:
        delta = timedelta(seconds=-seconds if ago else seconds)
        return (SystemClock().now() + delta).isoformat(timespec="seconds")
    return f"{text}T00:00:00+00:00" if _DAY.fullmatch(text) else text


class Duration(click.ParamType[int]):
    """Seconds: a number, or one with `s`, `m`, `h`, `d` or `w`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else _seconds(text)
        if seconds is None:
            self.fail("a time is like 90, 15m, 1h or 7d", param, ctx)
        return seconds


def _seconds(text: str) -> int | None:
    found = _SPAN.fullmatch(text)
    return int(found[1]) * _UNITS[found[2]] if found else None


def is_conversation() -> bool:
    """Whether a person sits there: what runs by itself does as asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def main() -> None:
    """The console script."""
    try:
        cli(standalone_mode=False, complete_var="_IDENTITY_COMPLETE")
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


def as_text(document: Any, *, width: int | None = None) -> tuple[str, list[str]]:
    """A document as people read it: fields under each other, lists of things as tables, times in UTC.

    Tables fit into `width`, where there is one; beside the text stand the columns that had to go.
    """
    if isinstance(document, str):
        return document, []
    *_, (plural, rows) = document.items()
    if isinstance(rows, list) and document.keys() <= {"pages", "items", "next", plural}:
        return _table(rows, width)
    plain = {name: value for name, value in document.items() if not _is_table(value)}
    margin = max(map(len, plain), default=0)
    lines = [f"{name:<{margin}}  {_cell(name, value)}" for name, value in plain.items()]
    dropped: list[str] = []
    for name, value in document.items():
        if name not in plain:
            table, gone = _table(value, width)
            lines += ["", f"{name}:", table]
            dropped += gone
    return "\n".join(lines), dropped


def _table(rows: list[Mapping[str, Any]], width: int | None) -> tuple[str, list[str]]:
    if not rows:
        return "none", []
    # A list within a row has no room in a line; `show` has it.
    names = [name for name in rows[0] if not any(_is_table(row[name]) for row in rows)]
    columns = {name: [name, *(_cell(name, row[name]) for row in rows)] for name in names}
    widths = {name: max(map(len, cells)) for name, cells in columns.items()}
    dropped: list[str] = []
    # The first column names the row and stays whole: it is what is copied. The widest of the rest go first.
    while width is not None and len(names) > 1 and sum(widths[name] + 2 for name in names) - 2 > width:
        last = max(names[1:], key=lambda name: (name not in _WORTH, widths[name]))
        names.remove(last)
        dropped.append(last)
    lines = [
        "  ".join(f"{columns[name][number]:<{widths[name]}}" for name in names).rstrip()
        for number in range(len(rows) + 1)
    ]
    return "\n".join(lines), dropped


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
        # A refusal of what was asked (an alias in use) may have such a cause too: there its own words say more.
        is_down = exc.problem.code == UNAVAILABLE.code
        return _of_the_database(exc.__cause__) if exc.__cause__ is not None and is_down else None
    if type(exc).__module__.startswith("sqlalchemy."):
        return getattr(exc, "orig", None) or exc
    return exc if type(exc).__module__.partition(".")[0] in ("sqlite3", "psycopg") else None
