"""`identity application trust`: whose tokens an application may prove itself with; and `identity expiring`: what will end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import click

from identity.cli import find
from identity.cli.applications import application, key_set
from identity.cli.frame import Duration, Opened, cli, command, lists


@dataclass(frozen=True, slots=True)
class Preset:
    """A platform: its issuer where there is one for all, and what names a workload so that nobody else can come to be named so."""

    issuer: str = ""
    claims: tuple[str, ...] = ()
    needs_subject: bool = False


PRESETS: Final = {
    "github": Preset("https://token.actions.githubusercontent.com", ("repository_id", "repository_owner_id")),
    "gitlab": Preset("https://gitlab.com", ("project_id", "namespace_id")),
    "kubernetes": Preset(needs_subject=True),
    "buildkite": Preset("https://agent.buildkite.com", ("organization_id", "pipeline_id")),
    "google": Preset("https://accounts.google.com", needs_subject=True),
    "azure": Preset("https://login.microsoftonline.com/{tid}/v2.0", ("tid", "oid")),
    "spiffe": Preset(needs_subject=True),
}


@command(cli, "expiring")
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="How far ahead to look.")
@click.option("--ics", is_flag=True, help="Print a calendar (RFC 5545) to subscribe to or import.")
def expiring(opened: Opened, days: int, ics: bool) -> Any:
    """List everything that will end: secrets, key pairs, trusts, access windows, invitations; soonest first."""
    found = list(opened.everything("expiring", "expiring", query={"days": days}))
    return _calendar(found) if ics else {"pages": 1 if found else 0, "items": len(found), "expiring": found}


@application.group("trust")
def trust() -> None:
    """Let a workload prove itself with the token of its platform."""


def _claims(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """`name=text`, or `name:=JSON`."""
    claims: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.strip(":"):
            raise click.BadParameter(f"{one!r} is not name=value")
        try:
            claims[name.removesuffix(":")] = json.loads(value) if name.endswith(":") else value
        except ValueError as exc:
            raise click.BadParameter(f"{one!r}: what follows := is JSON") from exc
    return claims


@command(trust, "add")
@click.argument("client_id", metavar="CLIENT_ID")
@click.option("--name", required=True, metavar="N")
@click.option(
    "--preset", type=click.Choice(sorted(PRESETS)), help="A platform: its issuer, and the claims that must be pinned."
)
@click.option("--issuer", metavar="URL", help="The iss of its tokens, to the letter; for SPIFFE the trust domain.")
@click.option("--subject", metavar="S", help="The sub of its tokens; may end in one *.")
@click.option(
    "--claim", "claims", multiple=True, metavar="NAME=VALUE", callback=_claims, help="A claim that must be exactly so."
)
@click.option("--audience", metavar="A", help="The aud that its tokens must have; this service by default.")
@click.option(
    "--jwks", type=click.File(encoding="utf-8"), callback=key_set, help="The issuer's keys, instead of fetching them."
)
@click.option("--expires-in", type=Duration(), metavar="S", help="Seconds until the trust ends.")
def add(opened: Opened, client_id: str, preset: str | None, issuer: str | None, **options: Any) -> Any:
    """Trust the tokens of an issuer that meet a subject, claims, or both."""
    if preset is not None:
        issuer = _completed(preset, issuer, options)
    if issuer is None:
        raise click.UsageError("Missing option '--issuer'.")
    given = {name: value for name, value in options.items() if value not in (None, {})}
    if "expires_in" in given:
        given["expiresIn"] = given.pop("expires_in")
    found = find.application(opened, client_id)
    made = opened.ask("POST", "application", found, "trust", body={"issuer": issuer, **given})
    for warning in made["warnings"]:
        click.echo(f"identity: {warning}", err=True)
    return made


@lists(trust, "list", "trusts")
@click.argument("client_id", metavar="CLIENT_ID")
def list_trusts(opened: Opened, client_id: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the trusts of an application, and when and from where each was last used."""
    return ("application", find.application(opened, client_id), "trusts"), {}


@command(trust, "remove", asks="Remove the trust {trust_id}, and end every token that it earned?")
@click.argument("client_id", metavar="CLIENT_ID")
@click.argument("trust_id", metavar="TRUST_ID")
def remove(opened: Opened, client_id: str, trust_id: str) -> Any:
    """End a trust and every token that it earned."""
    found = find.application(opened, client_id)
    opened.ask("DELETE", "application", found, "trust", trust_id)
    return {"clientId": found, "trustID": trust_id, "removed": True}


@command(trust, "test", is_local=True)
@click.argument("client_id", metavar="CLIENT_ID")
@click.option(
    "--token-file",
    type=click.File(encoding="utf-8"),
    required=True,
    help="A token of the workload; -: standard input.",
)
def test(opened: Opened, client_id: str, token_file: TextIO) -> Any:
    """Try all trusts of an application with a token, and say which rule holds and which does not. Nothing is issued."""
    from identity import documents
    from identity.core.clients import applications as clients
    from identity.core.clients import issuers

    found = clients.get(opened.rt, find.application(opened, client_id))
    verdicts = [documents.verdict(one) for one in issuers.try_token(opened.rt, found, token_file.read().strip())]
    if opened.prints_json:
        return {"passes": any(one["passes"] for one in verdicts), "trusts": verdicts}
    return "\n".join(_told(one) for one in verdicts) or "the application has no trusts"


def _calendar(found: list[dict[str, Any]]) -> str:
    """An iCalendar of what ends. Lines end in CRLF, no text can end one early, and none is longer than 75 octets (RFC 5545 3.1)."""
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//identity//expiring//EN"]
    for one in found:
        at = datetime.fromtimestamp(one["expireAt"], UTC).strftime("%Y%m%dT%H%M%SZ")
        words = f"{one['kind']} ends: {one['name']}"
        for plain, escaped in (("\\", "\\\\"), (";", "\\;"), (",", "\\,"), ("\n", "\\n")):
            words = words.replace(plain, escaped)
        uid = f"UID:{one['kind'].replace(' ', '-')}-{one['id']}@identity"
        lines += ["BEGIN:VEVENT", uid, f"DTSTAMP:{at}", f"DTSTART:{at}", f"SUMMARY:{words}", "END:VEVENT"]
    return "".join(_folded(line) + "\r\n" for line in [*lines, "END:VCALENDAR"])


def _folded(line: str) -> str:
    parts, part = [], ""
    for character in line:
        if len((part + character).encode()) > 74:
            parts.append(part)
            part = ""
        part += character
    return "\r\n ".join([*parts, part])


def _completed(preset: str, issuer: str | None, options: dict[str, Any]) -> str:
    """The issuer of a platform. Refuses a trust that leaves open what the platform can give to somebody else."""
    known = PRESETS[preset]
    missing = [f"--claim {name}=..." for name in known.claims if name not in options["claims"]]
    missing += ["--subject"] if known.needs_subject and options["subject"] is None else []
    missing += ["--issuer"] if not known.issuer and issuer is None else []
    missing += ["--jwks"] if preset == "spiffe" and options["jwks"] is None else []
    if missing:
        raise click.UsageError(f"The preset {preset} needs {' and '.join(missing)}.")
    return issuer or known.issuer.format(tid=options["claims"].get("tid", ""))


def _told(verdict: dict[str, Any]) -> str:
    lines = [f"{verdict['trustID']}  {verdict['name']}: {'passes' if verdict['passes'] else 'does not pass'}"]
    for rule in verdict["rules"]:
        lines.append(f"  {'holds ' if rule['holds'] else 'FAILS '} {rule['rule']}")
        if not rule["holds"]:
            lines.append(f"         expected {rule['expected']}, seen {rule['seen']}")
    return "\n".join(lines)
