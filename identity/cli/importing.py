"""`identity user import` and `identity keypair import`: people and their keys by the thousand."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from identity.cli.frame import Opened, command
from identity.cli.sessions import keypair
from identity.cli.users import user

_BATCH: Final = 250
_LISTS: Final = ("roles", "groups", "cidrs")


@command(user, "import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would become of each line; change nothing.")
@click.option("--only-new", is_flag=True, help="Leave users alone who exist.")
@click.option("--new-role", is_flag=True, help="Roles that nobody holds yet are meant.")
@click.option("--resume", is_flag=True, help="Go on behind the last line that an interrupted run has finished.")
def import_users(opened: Opened, file: Path, *, dry_run: bool, resume: bool, only_new: bool, new_role: bool) -> Any:
    """Make or update users from FILE (NDJSON, or CSV with a head line).

    Fields: email, alias, fullName, roles, groups, tenants, externalID, passwordHash. In CSV, roles are separated by commas, and
    tenants are like `acme:lead,analyst; other:reader`. Lines that cannot be taken go to FILE.rejects with the reason; exit 1.
    """
    query = {"dryRun": dry_run, "onlyNew": only_new, "newRole": new_role}
    return _import(opened, file, "/admin/users/import", query, resume=resume)


@command(keypair, "import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prefix", metavar="P", help="What all the keys begin with, such as sk_live_.")
@click.option("--without-prefix", is_flag=True, help="They share none: each made-up key of their length costs a read.")
@click.option(
    "--days", type=click.IntRange(1, 3650), default=3650, show_default=True, help="For lines without expireAt."
)
@click.option("--dry-run", is_flag=True, help="Say what would become of each line; change nothing.")
@click.option("--resume", is_flag=True, help="Go on behind the last line that an interrupted run has finished.")
def import_keypairs(
    opened: Opened, file: Path, *, prefix: str | None, without_prefix: bool, days: int, dry_run: bool, resume: bool
) -> Any:
    """Take over key pairs of another system from FILE (NDJSON, or CSV with a head line); keys and secrets stay as they are.

    Fields: user (address, alias or id), apiKey, secretHash (sha256:<hex>, sha512:<base64>) or apiSecret, name, expireAt (seconds), cidrs,
    roles, tenants. In CSV, lists are separated by commas. Lines that cannot be taken go to FILE.rejects with the reason; exit 1.
    """
    if (prefix is None) != without_prefix:
        raise click.UsageError("Name the --prefix that all the keys share, or say --without-prefix.")
    query = {"prefix": prefix, "withoutPrefix": without_prefix, "days": days, "dryRun": dry_run}
    return _import(opened, file, "/admin/keypairs/import", query, resume=resume)


def _import(opened: Opened, file: Path, path: str, query: dict[str, Any], *, resume: bool) -> Any:
    """Send the rows of a file in batches; tell the totals, or fail where lines were rejected."""
    progress, rejects, dry_run = Path(f"{file}.progress"), Path(f"{file}.rejects"), query["dryRun"]
    done = int(progress.read_text() or 0) if resume and progress.exists() else 0
    if done == 0 and not dry_run:
        rejects.unlink(missing_ok=True)
    total = {"created": 0, "updated": 0, "unchanged": 0, "rejected": 0}
    rows = islice(_rows(file), done, None)
    while batch := list(islice(rows, _BATCH)):
        raw = "\n".join(line for _, line in batch).encode()
        answer = opened.desk.ask("POST", path, query=query, raw=raw)
        for name in ("created", "updated", "unchanged"):
            total[name] += answer[name]
        _keep_rejects(rejects, batch, answer["rejected"])
        total["rejected"] += len(answer["rejected"])
        done += len(batch)
        if not dry_run:
            progress.write_text(str(done))
        opened.tell(f"{done} lines: " + ", ".join(f"{count} {name}" for name, count in total.items()))
    progress.unlink(missing_ok=True)
    if total["rejected"]:
        opened.show(total)
        raise click.ClickException(f"{total['rejected']} lines were not taken; they are in {rejects}")
    return total


def _rows(file: Path) -> Iterator[tuple[int, str]]:
    """Every line that is a row, with its number in the file, as one line of JSON."""
    if file.suffix.lower() == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            for row in reader:
                yield reader.line_num, json.dumps(_from_csv(row))
        return
    with file.open(encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():
                yield number, line.strip()


def _from_csv(row: dict[str, Any]) -> dict[str, Any]:
    shaped: dict[str, Any] = {}
    for name, value in row.items():
        text = (value or "").strip() if isinstance(value, str) else ""
        if not text or name is None:
            continue
        if name in _LISTS or (name == "tenants" and "apiKey" in row):
            shaped[name] = _split(text)
        elif name == "expireAt" and text.isdecimal():
            shaped[name] = int(text)
        elif name == "tenants":
            parts = (part.strip().rpartition(":") for part in text.split(";") if part.strip())
            shaped[name] = {tenant or roles: _split(roles) if tenant else [] for tenant, _, roles in parts}
        else:
            shaped[name] = text
    return shaped


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _keep_rejects(path: Path, batch: list[tuple[int, str]], rejected: list[dict[str, Any]]) -> None:
    if not rejected:
        return
    with path.open("a", encoding="utf-8") as file:
        path.chmod(0o600)  # hashes stand in it
        for one in rejected:
            number, line = batch[one["line"] - 1]
            file.write(json.dumps({**one, "line": number, "row": line}, ensure_ascii=False) + "\n")
