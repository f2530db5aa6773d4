"""Signing in for the network, tokens on the command line, and completion for shells."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click
from click.shell_completion import get_completion_class

from identity.canonical import decode_base64url
from identity.cli.frame import Opened, cli, command, first_line
from identity.errors import UNAUTHENTICATED, VALIDATION, Refused

_NO_SERVER: Final = VALIDATION.saying("Name the service: --server URL, or IDENTITY_SERVER")


@command(cli, "login")
@click.option("--email", metavar="ADDRESS", help="Who signs in; asked for where a person types.")
@click.option("--api-key", metavar="KEY", help="Store a key pair instead of signing in.")
@click.option("--api-secret-stdin", is_flag=True, help="Read its secret, one line.")
@click.option("--password-stdin", is_flag=True, help="Read the password, and the code in a second line.")
def login(opened: Opened, email: str | None, api_key: str | None, api_secret_stdin: bool, password_stdin: bool) -> Any:
    """Sign in to a service, for the commands that follow; stored for your eyes only."""
    from identity.cli import remote

    server = _server(opened)
    if api_key is not None:
        secret = first_line("api secret") if api_secret_stdin else _typed("Secret", "--api-secret-stdin")
        kept: dict[str, Any] = {"apiKey": api_key, "apiSecret": secret}
        _call(server, "GET", "/keypair", headers={"api-key": api_key, "api-secret": secret})
    else:
        kept = remote.kept_login(_signed_in(server, email, is_piped=password_stdin))
    with remote.logins() as stored:
        stored[server.server] = kept
    return {"server": server.server, "stored": str(remote.logins_file())}


@command(cli, "logout")
def logout(opened: Opened) -> Any:
    """End the stored login of a service, there and here."""
    from identity.cli import remote

    server = _server(opened)
    with remote.logins() as stored:
        kept = stored.pop(server.server, None)
    if kept is not None and "accessToken" in kept:
        server.send("POST", "/auth/logout", headers={"Authorization": f"Bearer {kept['accessToken']}"})
    return {"server": server.server, "ended": kept is not None}


@cli.group("token")
def token() -> None:
    """Get a token of an application, and look into any."""


@command(token, "get")
@click.argument("client_id", metavar="CLIENT_ID")
@click.option("--secret-stdin", is_flag=True, help="Read the client secret, one line; else it is asked for.")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="Ask for this scope; none: all that it has.")
def get(opened: Opened, client_id: str, secret_stdin: bool, scopes: tuple[str, ...]) -> Any:
    """Get a token as an application does: from the service, by its id and secret."""
    server = _server(opened, or_issuer=True)
    secret = first_line("secret") if secret_stdin else _typed("Secret", "--secret-stdin")
    body = {"clientId": client_id, "secret": secret} | ({"scope": " ".join(scopes)} if scopes else {})
    answer: dict[str, Any] = _call(server, "POST", "/application/token", body=body)["data"]
    return answer


@command(token, "inspect")
@click.argument("text", metavar="[TOKEN]", required=False)
def inspect(opened: Opened, text: str | None) -> Any:
    """Show what a token says, and whether the service takes it; read from standard input where none is named."""
    given = text or first_line("token")
    parts = [_json_in(part) for part in given.split(".")[:2]] if given.count(".") == 2 else [None, None]
    valid, check = _verdict(opened, given)
    return {"valid": valid, "check": check, "header": parts[0], "claims": parts[1]}


@command(cli, "completion", is_local=True)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(_opened: Opened, shell: str) -> Any:
    """Print what makes SHELL complete commands, options and names: `source <(identity completion bash)`."""
    found = get_completion_class(shell)
    assert found is not None, "one of the choices"
    return found(cli, {}, "identity", "_IDENTITY_COMPLETE").source()


def _verdict(opened: Opened, text: str) -> tuple[bool, str]:
    if opened.server:
        server = _server(opened)
        headers = {"Authorization": f"Bearer {text}"}
        status, answer, _ = server.send("GET", "/verify", query={"tenant": "optional"}, headers=headers)
        return status == 200, "" if status == 200 else str(answer.get("message", status))
    from identity.ambient import Origin
    from identity.core.access import callers
    from identity.core.access.callers import Presented

    try:
        callers.identify(opened.rt, Origin.command_line(), Presented(text), own_routes=False)
    except Refused as refused:
        return False, refused.problem.message
    return True, ""


def _json_in(part: str) -> Any:
    try:
        return json.loads(decode_base64url(part) or b"null")
    except (ValueError, RecursionError):
        return None


def _server(opened: Opened, *, or_issuer: bool = False) -> Any:
    from identity.cli.remote import OverNetwork

    if not opened.server and not or_issuer:
        raise Refused(_NO_SERVER)
    return OverNetwork(opened.server or opened.settings.issuer)


def _call(server: Any, method: str, path: str, **options: Any) -> dict[str, Any]:
    status, answer, _ = server.send(method, path, **options)
    if status >= 400:
        raise Refused(UNAUTHENTICATED.saying(str(answer.get("message", f"status {status}"))))
    return dict(answer)


def _typed(words: str, option: str, *, unseen: bool = True) -> str:
    """What a person types; where nobody can, say which option gives it."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{words} is asked for on a terminal only; give {option}", click.get_current_context())
    answer: str = click.prompt(words, hide_input=unseen, err=True)
    return answer


def _signed_in(server: Any, email: str | None, *, is_piped: bool) -> dict[str, Any]:
    """The tokens of a login in two steps; the code is asked for only where the service wants one."""
    who = email or _typed("Email", "--email", unseen=False)
    password = first_line("password") if is_piped else _typed("Password", "--password-stdin")
    first = _call(server, "POST", "/auth/login", body={"email": who, "password": password})
    if "accessToken" in first:
        return first
    kind = first["mfaMethod"]
    words = "Code of your authenticator" if kind == "TOTP" else "Code from your mail"
    code = first_line("code") if is_piped else _typed(words, "--password-stdin", unseen=False)
    field = "totpCode" if kind == "TOTP" else "emailCode"
    return _call(
        server, "POST", "/auth/mfa/challenge", body={"mfaChallengeToken": first["mfaChallengeToken"], field: code}
    )
