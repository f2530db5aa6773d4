"""`identity incident`: what a leaked credential has touched, and ending it with all that it earned."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import click

from identity.cli.frame import Opened, cli, command, is_conversation, when

_KINDS: Final = ("secret", "key", "trust", "kid")
_SHOWN: Final = 20


@command(cli, "incident")
@click.option("--secret", metavar="ID", help="A client secret, or a key set as the audit names it (key-...).")
@click.option("--key", metavar="ID", help="A key pair, or its api-key.")
@click.option("--trust", metavar="ID", help="A trust.")
@click.option("--kid", metavar="KID", help="A key that signs tokens.")
@click.option("--since", metavar="T", required=True, help="From when on: RFC 3339, a day, or `1h`, `7d` ago.")
@click.option("--contain", is_flag=True, help="End it and all that it earned, tell its owners, keep the report.")
@click.option("--made", "ends_made", is_flag=True, help="With --contain: end the credentials that it made, too.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask first.")
def incident(opened: Opened, since: str, contain: bool, ends_made: bool, is_sure: bool, **given: str | None) -> Any:
    """Tell what a leaked credential has touched; with --contain, end it and every token that it earned."""
    named = {kind: given[kind] for kind in _KINDS if given[kind] is not None}
    if len(named) != 1:
        raise click.UsageError("Name one of --secret, --key, --trust, --kid")
    if ends_made and not contain:
        raise click.UsageError("--made ends what it made: it needs --contain")
    asked: dict[str, Any] = {**named, "since": when(since, ago=True)}
    if contain and not is_sure and is_conversation():
        kind, name = next(iter(named.items()))
        more = ", and every credential that it made and account" if ends_made else ""
        click.confirm(f"End the {kind} {name} and every token that it earned{more}?", abort=True, err=True)
    deed = {"contain": True, "made": True} if ends_made else {"contain": True}
    way: dict[str, Any] = {"body": {**asked, **deed}} if contain else {"query": asked}
    found = opened.ask("POST" if contain else "GET", "incident", **way)
    return found if opened.prints_json else _told(found)


def _told(found: dict[str, Any]) -> str:
    """The report for people; `--json` has all of it."""
    counts, contained = found["counts"], found["contained"]
    state = "lives" if found["lives"] else "is gone"
    if contained is not None:
        state = f"was contained at {_time(contained['at'])} by {contained['by']}; {contained['told']} told by mail"
    known = (
        f"{counts['tokens']} tokens earned, {counts['sessions']} sessions opened, {counts['uses']} requests from "
        f"{counts['addresses']} addresses, {counts['deeds']} deeds"
    )
    lines = [f"{found['name']} {state}", f"from {_time(found['since'])} to {_time(found['until'])}: {known}"]
    lines += _part("tokens", found["earned"], lambda one: f"{_time(one['hour'])}  {_address(one)}  {one['tokens']}")
    lines += _part("addresses", found["addresses"], lambda one: f"{_address(one)}  {one['uses']} requests")
    lines += _part("routes", found["routes"], lambda one: f"{one['route']}  {one['status']}  {one['uses']}")
    lines += _part(
        "sessions", found["sessions"], lambda one: f"{_time(one['createdAt'])}  {one['ip']}  {one['sessionID']}"
    )
    lines += _part("deeds", found["deeds"], lambda one: f"{_time(one['at'])}  {one['action']}  {one['target']}")
    lines += _part("made", found["made"], _made)
    if found["lives"]:
        lines.append("End it and all that it earned: the same command with --contain")
    if any(one["lives"] for one in found["made"]):
        lines.append("End what it made, too: the same command with --contain --made")
    return "\n".join(lines)


def _made(one: dict[str, Any]) -> str:
    of = f" of {one['of']}" if one["of"] else ""
    return f"{one['kind']} {one['id']}{of}  {'lives' if one['lives'] else 'is gone'}"


def _part(title: str, rows: list[dict[str, Any]], line: Any) -> list[str]:
    if not rows:
        return []
    more = [f"  and {len(rows) - _SHOWN} more (--json)"] if len(rows) > _SHOWN else []
    return [f"{title}:", *(f"  {line(row)}" for row in rows[:_SHOWN]), *more]


def _address(row: dict[str, Any]) -> str:
    return row["address"] or "many more"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
