"""The command line by its two doors: over the database and over the network it says, makes and refuses the same."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from werkzeug.serving import make_server

from identity import cli as command_line
from identity.cli import access
from identity.cli.frame import as_text, when
from identity.core import upkeep
from identity.core.clients import keypairs
from identity.settings import Settings
from tests.builders import a_session, a_tenant, a_user, an_application
from tests.cli_world import Ran, runner
from tests.world import ORIGIN, Web, code_in


@pytest.fixture
def run(
    settings: Settings, web: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run `identity ...` on the database of this test."""
    return runner(settings, monkeypatch, capsys)


@pytest.fixture
def server(web: Web) -> Iterator[str]:
    """The URL of this test's service, over a socket."""
    # One thread: each thread of a server keeps a connection to the database.
    listening = make_server("127.0.0.1", 0, web.app)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def boss(web: Web, monkeypatch: pytest.MonkeyPatch) -> str:
    """An administrator whose key pair stands in the environment."""
    made = a_user(web.rt, alias="boss", roles=("users_admin",))
    with web.rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(web.rt, unit, made.id, name="cli", days=1, actor="test", verified=True)
    monkeypatch.setenv("IDENTITY_API_KEY", pair.api_key)
    monkeypatch.setenv("IDENTITY_API_SECRET", secret.reveal())
    return made.id


# Each is run by either door, one after the other, on one state that it leaves as it was or sets alike.
COMMANDS = [
    "user list",
    "user list --search ad",
    "user list --email ada@acme.example",
    "user list --email jo+tag@",
    "user list --role analyst",
    "user list --tenant nowhere",
    "user show ada",
    "user show ADA@acme.example",
    "user show nobody",
    "user show not..an..alias",
    "user update ada --full-name Countess",
    "user update ada --alias eve",
    "user update ada",
    "user roles ada --add analyst --new-role",
    "user roles ada --add analist",
    "user roles ada --remove nothing",
    "user disable eve",
    "user enable eve",
    "user access-window ada --starts 2026-01-01 --ends 2126-01-01T01:00:00+01:00",
    "user access-window ada --ends tomorrow",
    "user sessions ada",
    "user logout eve",
    "user unlock ada",
    "user reset-mfa ada",
    "user create --email none --alias xyz --full-name X",
    "user create --email ada@acme.example --alias other --full-name X",
    "user create --email x@acme.example --alias xyz --full-name X --tenant nowhere:lead --new-role",
    "tenant list",
    "tenant list --search a",
    "tenant show acme",
    "tenant show nowhere",
    "tenant members acme",
    "tenant create acme --name Again",
    "tenant create UPPER --name X",
    "tenant update acme --limit standard=500/minute",
    "tenant update acme --limit standard=often",
    "tenant add-member acme --user ada --role lead --new-role",
    "tenant remove-member acme --user eve",
    "application list",
    "application show feed",
    "application show 11",
    "application show nothing",
    "application update feed --scope read --scope write",
    "application update feed --scope Not_A_Name",
    "application disable feed",
    "application enable feed",
    "application secrets feed",
    "application end-secret feed 000000000000",
    "incident --secret 000000000000 --since 1h",
    "incident --key 00000000-0000-7000-8000-000000000000 --since 7d --contain",
    "incident --key 00000000-0000-7000-8000-000000000000 --since 7d --contain --made",
    "incident --key 00000000-0000-7000-8000-000000000000 --since 7d --made",
    "incident --secret a --kid b --since 1h",
    "incident --since 1h",
    "keypair rotate 00000000-0000-7000-8000-000000000000",
    "keypair rotate 00000000-0000-7000-8000-000000000000 --grace 8d",
    "incident --secret 000000000000",
    "role list",
    "role create editor --description Edits",
    "role delete editor --tenant acme",
    "role delete nothing",
    "keypair list --user boss",
    "keypair revoke 00000000-0000-7000-8000-000000000000",
    "session list --user ada",
    "session list --user nobody",
    "session revoke 00000000-0000-7000-8000-000000000000",
    "session revoke --user eve",
    "session revoke",
    "keys list",
    "keys revoke unknown",
    "mail list",
    "mail retry 00000000-0000-7000-8000-000000000000",
    "audit --action user.created",
    "audit --action user.creatd",
    "audit --actor test",
    "audit --actor nobody-at-all",
    "audit --since yesterday",
    "errors --error NONSENSE",
    "explain 01a20000-0000-7000-8000-000000000000",
    "application delete nothing",
    "application trust list feed",
    "application trust add feed --name ci --issuer https://ci.acme.example --subject main",
    "application trust remove feed 00000000-0000-7000-8000-000000000000",
    "user delete nobody",
    "user export nobody",
    "user fixed-otp ada --clear",
    "user password-reset nobody",
    "user import /no/such/file",
    "keypair import /no/such/file --prefix sk_live_",
    "keypair import /no/such/file",
    "tenant invitations acme",
    "tenant invite nowhere --email guest@acme.example",
    "tenant resend-invitation acme 00000000-0000-7000-8000-000000000000",
    "tenant withdraw-invitation acme 00000000-0000-7000-8000-000000000000",
    "tenant delete nowhere",
    "tenant disable acme",
    "tenant enable acme",
    "expiring",
    "no-such-command",
]

# What makes something new each time: `{n}` is another number for each door. Documents have the same members, and refusals the same words.
MAKES = [
    "application create --name made{n} --scope read",
    "application delete made{n}",
    "user invite p{n}@acme.example --alias p{n} --full-name P",
    "user delete p{n}",
    "user fixed-otp ada --clear",
    "user export ada",
    "user import {file}",
    "keypair create ada --name k{n}",
    "keypair import {keys} --prefix sk_live_",
    "keypair import {keys} --without-prefix --dry-run",
    "tenant invite acme --email g{n}@acme.example",
    "keys rotate",
]

# Tried elsewhere by both doors, or with one door of their own.
ELSEWHERE = {
    "login", "logout",  # How the network's door is opened.
    "token get", "token inspect", "application rotate-secret",  # Below.
    "plan", "apply",  # tests/test_cli_plan.py
}  # fmt: skip


def test_every_command_is_tried_by_either_door() -> None:
    tried = [line.split() for line in (*COMMANDS, *MAKES)]
    left = set()
    for path, made in commands_of(command_line.cli):
        is_local = not any("--server" in parameter.opts for parameter in made.params)
        if not is_local and not any(line[: len(path)] == path for line in tried):
            left.add(" ".join(path))
    assert left == ELSEWHERE


def commands_of(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], click.Command]]:
    """Every command below a group, by its words."""
    for name, made in group.commands.items():
        if isinstance(made, click.Group):
            yield from commands_of(made, (*path, name))
        else:
            yield [*path, name], made


def test_what_is_made_new_each_time_is_made_alike_by_either_door(
    run: Callable[..., Ran], web: Web, server: str, boss: str, tmp_path: Path
) -> None:
    a_tenant(web.rt, "acme")
    a_user(web.rt, alias="ada", email="ada@acme.example")
    unlike = []
    for line in MAKES:
        seen = []
        for number, door in enumerate(((), ("--server", server))):
            people = tmp_path / f"people{number}.ndjson"
            people.write_text(
                json.dumps({"email": f"i{number}@acme.example", "alias": f"imported{number}", "fullName": "I"})
            )
            keys = tmp_path / f"keys{number}.csv"
            keys.write_text(
                f"user,apiKey,apiSecret,cidrs,expireAt\nada,sk_live_{number:024},the secret of {number}: 4eC39Hq,,\n".replace(
                    " ", "_"
                )
            )
            ran = run(*door, *line.format(n=number, file=people, keys=keys).split(), "--json")
            members = sorted(json.loads(ran.out)) if ran.out else []
            seen.append((ran.status, members, ran.err.replace(f"made{number}", "").replace(f"p{number}", "")))
        if seen[0] != seen[1]:
            unlike.append((line, *seen))
    assert unlike == []


def test_either_door_says_and_refuses_the_same(run: Callable[..., Ran], web: Web, server: str, boss: str) -> None:
    a_tenant(web.rt, "acme")
    ada = a_user(web.rt, alias="ada", email="ada@acme.example", tenants={"acme": ["lead"]})
    a_user(web.rt, alias="eve", email="eve@acme.example")
    an_application(web.rt, name="feed", scopes=("read",))
    a_session(web.rt, ada)
    unlike = []
    for line in COMMANDS:
        arguments = [*line.split(), "--json"] if line != "no-such-command" else [line]
        # The second run of a deed finds what the first has done; so it is run once before.
        run(*arguments)
        here, there = run(*arguments), run("--server", server, *arguments)
        if not (here.status == there.status and _stable(here.out) == _stable(there.out) and here.err == there.err):
            unlike.append((line, here, there))
    assert unlike == []


def _stable(out: str) -> Any:
    """A document without what every run changes: who uses a key pair does so by one door only."""
    if not out:
        return out
    text = json.loads(out)
    for row in text.get("keypairs", ()) if isinstance(text, dict) else ():
        row.pop("lastUsedAt", None)
        row.pop("lastUsedIp", None)
    for row in text.get("events", ()) if isinstance(text, dict) else ():
        row.pop("eventID")
    return text


def test_what_either_door_makes_is_the_same(run: Callable[..., Ran], web: Web, server: str, boss: str) -> None:
    a_tenant(web.rt, "acme")
    made = []
    for number, door in enumerate(((), ("--server", server))):
        name = f"twin{number}"
        options = ("--email", f"{name}@acme.example", "--alias", name, "--full-name", "Twin", "--tenant", "acme:lead")
        created = run(*door, "user", "create", *options, "--new-role", "--json").json
        shown = run(*door, "user", "show", name, "--json").json
        app = run(*door, "application", "create", "--name", name, "--scope", "read", "--json").json
        made.append((sorted(created), sorted(app), shown["tenants"], shown["verified"], shown["enabled"]))
    assert made[0] == made[1]


def test_either_door_contains_a_leak_and_says_what_it_touched(
    run: Callable[..., Ran], web: Web, server: str, boss: str
) -> None:
    said = []
    for door in ((), ("--server", server)):
        feed = an_application(web.rt)
        asked = {"clientId": feed.client_id, "secret": feed.secret}
        token = web.post("/application/token", asked).json["data"]["accessToken"]
        upkeep.write_tallies(web.rt)
        leaked = (*door, "incident", "--secret", feed.secret_id, "--since", "1d")
        assert "lives" in run(*leaked).out
        assert web.get("/verify?tenant=optional", bearer=token).status_code == 200, "only told"
        told = run(*leaked, "--contain").out
        assert web.get("/verify?tenant=optional", bearer=token).status_code == 401
        again = run(*leaked, "--contain", "--made", "--json").json
        assert again["contained"]["report"]["counts"]["tokens"] == 1
        said.append([line.split() for line in told.replace(feed.secret_id, "ID").splitlines() if "Z" not in line])
    assert said[0] == said[1]
    assert ["POST", "/application/token", "200", "1"] in said[0]


def test_either_door_rotates_a_key_pair(run: Callable[..., Ran], web: Web, server: str, boss: str) -> None:
    ada = a_user(web.rt)
    for door in ((), ("--server", server)):
        with web.rt.unit(ORIGIN) as unit:
            pair, secret = keypairs.create(web.rt, unit, ada.id, name="ci", days=1, actor="test", verified=True)
        made = run(*door, "keypair", "rotate", pair.id, "--grace", "1h", "--json").json
        assert (made["apiKey"], made["keyID"]) == (pair.api_key, pair.id)
        for known in (made["apiSecret"], secret.reveal()):
            sent = {"api-key": pair.api_key, "api-secret": known}
            assert web.get("/keypair", headers=sent).status_code == 200, "the one before has its grace"


def test_the_network_says_who_did_it_and_by_which_key(
    run: Callable[..., Ran], web: Web, server: str, boss: str
) -> None:
    a_user(web.rt, alias="ada")
    run("--server", server, "user", "disable", "ada")
    (event,) = run("audit", "--action", "user.disabled", "--json").json["events"]
    assert event["actor"] == boss
    key = run("keypair", "list", "--user", "boss", "--json").json["keypairs"][0]["keyID"]
    assert event["credential"] == f"key:{key}"
    assert run("audit", "--key", key, "--actor", "boss", "--json").json["items"] == 1
    assert run("audit", "--session", key, "--json").json["items"] == 0


def test_a_login_is_stored_for_its_owner_only_and_ends(
    run: Callable[..., Ran], web: Web, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    boss = a_user(web.rt, alias="boss", roles=("users_admin",))
    monkeypatch.setenv("IDENTITY_SERVER", server)
    assert "identity login" in run("user", "list").err
    shown: list[str] = []

    def typed(text: str, *_option: str, **_options: Any) -> str:
        shown.append(text)
        return {"Email": boss.email, "Password": boss.password}.get(text) or code_in(web.mails()[-1])

    closed = run("login")
    assert (closed.status, closed.err.splitlines()[0].endswith("give --email (see `identity login --help`)")) == (
        2,
        True,
    )
    monkeypatch.setattr(access, "_typed", typed)
    stored = Path(run("login", "--json").json["stored"])
    assert shown == ["Email", "Password", "Code from your mail"]
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert run("user", "show", "boss", "--json").json["userID"] == boss.id
    # An hour later the access token is over, and the refresh token serves.
    web.clock.tick(3601)
    logins = json.loads(stored.read_text())
    logins[server]["expiresAt"] = 0
    stored.write_text(json.dumps(logins))
    assert run("user", "show", "boss").status == 0
    assert run("logout", "--json").json["ended"] is True
    assert run("user", "show", "boss").status == 1
    assert not web.rt.database.is_sqlite or json.loads(stored.read_text()) == {}


def test_a_server_that_is_not_there_or_leads_elsewhere_is_one_line(
    run: Callable[..., Ran], boss: str, server: str
) -> None:
    for url, words in (("http://127.0.0.1:1", "does not answer"), ("ftp://x", "A server is a URL like")):
        ran = run("--server", url, "user", "list")
        assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert words in ran.err
    local = run("--server", server, "keys", "reseal")
    assert local.status == 2
    assert "works on the database itself" in local.err


# Lists.


def test_a_list_says_what_it_left_out(run: Callable[..., Ran], web: Web) -> None:
    for number in range(7):
        a_user(web.rt, alias=f"user-{number}", password=None)
        web.clock.tick()
    some = run("user", "list", "--limit", "3", "--json")
    assert (len(some.json["users"]), some.json["items"], some.json["pages"]) == (3, 7, 3)
    assert some.err == "identity: 3 of 7 users; --page 2 has the next, --all every one\n"
    assert run("user", "list", "--limit", "3", "--page", "3", "--json").err == ""
    whole = run("user", "list", "--all", "--json").json
    assert (len(whole["users"]), whole["items"]) == (7, 7)
    lines = run("user", "list", "--all", "--ndjson").out.splitlines()
    assert [json.loads(line)["alias"] for line in lines] == [f"user-{number}" for number in range(7)]
    assert len(run("user", "list", "--ndjson", "--limit", "2").out.splitlines()) == 2


def test_a_table_fits_the_terminal_and_names_what_had_to_go() -> None:
    rows = [{"userID": "u" * 36, "alias": "ada", "fullName": "n" * 60, "enabled": True}]
    text, dropped = as_text({"pages": 1, "items": 1, "users": rows}, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert dropped == ["fullName"]
    assert "u" * 36 in text
    assert as_text({"pages": 1, "items": 1, "users": rows})[1] == []


@pytest.mark.parametrize(
    ("given", "user", "tenants"),
    [
        ("a:b:analyst", 0, {"a:b": ["analyst"]}),
        ("a:analyst", 0, {"a": ["analyst"]}),
        ("a=b:analyst", 0, {"a": ["b:analyst"]}),
        ("a:b", 0, {"a:b": []}),
        ("c:analyst", 1, {}),
    ],
)
def test_a_membership_is_of_the_longest_tenant_that_exists(
    run: Callable[..., Ran], web: Web, given: str, user: int, tenants: dict[str, list[str]]
) -> None:
    for tenant in ("a", "a:b"):
        a_tenant(web.rt, tenant)
    ran = run(
        "user", "create", "--email", "x@acme.example", "--alias", "xyz", "--full-name", "X", "--tenant", given, "--new-role"
    )  # fmt: skip
    assert ran.status == user, ran.err
    if not user:
        assert run("user", "show", "xyz", "--json").json["tenants"] == tenants


def test_times_are_spans_days_and_moments() -> None:
    assert when("2026-11-29", ago=True) == "2026-11-29T00:00:00+00:00"
    assert when("2026-11-29T10:00:00Z", ago=True) == "2026-11-29T10:00:00Z"
    assert when(None, ago=True) is None
    past, future = when("1h", ago=True), when("7d", ago=False)
    assert past is not None
    assert future is not None
    assert past < future


def test_either_door_rotates_a_secret(run: Callable[..., Ran], web: Web, server: str, boss: str) -> None:
    for number, door in enumerate(((), ("--server", server))):
        machine = an_application(web.rt, name=f"feed{number}", scopes=("read",))
        made = run(*door, "application", "rotate-secret", machine.client_id, "--expires-in", "1h", "--json").json
        old, new = run("application", "secrets", machine.client_id, "--json").json["secrets"]
        assert (old["secretID"], new["secretID"]) == (machine.secret_id, made["secretID"])
        # By the database it is the host's clock that counts.
        assert 3600 <= old["expireAt"] - int(web.clock.now().timestamp()) < 3700
        assert new["expireAt"] is None
        third = run(*door, "application", "rotate-secret", machine.client_id)
        assert (third.status, "Two secrets live" in third.err) == (1, True)
        body = {"oldExpiresIn": 60, "expiresIn": 60}
        both = web.post(f"/admin/application/{machine.client_id}/secret?force=true", body, headers=keys())
        assert (both.status_code, both.json["field"]) == (400, "oldExpiresIn")
        assert run(*door, "role", "create", f"editor{number}", "--description", "Edits").status == 0
        assert run(*door, "role", "delete", f"editor{number}", "--json").json["deleted"] is True
        assert run(*door, "role", "delete", f"editor{number}").status == 1


def keys() -> dict[str, str]:
    """The administrator's key pair, as the environment of this test has it."""
    return {"api-key": os.environ["IDENTITY_API_KEY"], "api-secret": os.environ["IDENTITY_API_SECRET"]}


# Questions, completion, settings.


def test_on_a_terminal_what_cannot_be_undone_is_asked_first(
    run: Callable[..., Ran], web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_user(web.rt, alias="ada")
    monkeypatch.setattr(command_line.frame, "is_conversation", lambda: True)
    asked: list[str] = []

    def no(text: str, **_options: Any) -> None:
        asked.append(text)
        raise click.Abort

    monkeypatch.setattr(click, "confirm", no)
    assert run("user", "delete", "ada").status == 130
    assert asked == ["Erase ada and everything that names them?"]
    assert run("user", "show", "ada").status == 0
    assert run("user", "delete", "ada", "--yes").status == 0
    assert len(asked) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_names(
    run: Callable[..., Ran], web: Web, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    assert "_IDENTITY_COMPLETE" in run("completion", shell).out
    a_user(web.rt, alias="ada")
    a_user(web.rt, alias="adele")
    a_user(web.rt, alias="eve")
    monkeypatch.setenv("_IDENTITY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "identity user show ad")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert run().out.split() == ["plain,ada", "plain,adele"]


def test_the_current_settings_hide_their_secrets(run: Callable[..., Ran], web: Web) -> None:
    shown = run("settings", "--current", "--json")
    values = {one["name"]: one for one in shown.json["settings"]}
    assert values["IDENTITY_MASTER_KEYS"]["value"] == "(set)"
    assert values["IDENTITY_MASTER_KEYS"]["from"] == "environment"
    assert values["IDENTITY_WORKERS"]["from"] == "default"
    assert os.environ["IDENTITY_MASTER_KEYS"] not in shown.out


def test_the_last_refusal_is_explained(run: Callable[..., Ran], web: Web) -> None:
    machine = an_application(web.rt, name="feed")
    web.get("/verify")
    web.clock.tick()
    web.post("/application/token", {"clientId": machine.client_id, "secret": "wrong"})
    web.rt.explanations.flush(web.rt.database, web.clock.now())
    assert run("explain", "--last", "--json").json["error"] == "INVALID_CREDENTIALS"
    assert run("explain", "--address", "127.0.0.1", "--json").json["error"] == "INVALID_CREDENTIALS"
    assert run("explain", "--address", "192.0.2.99").err == "identity: no such refusal is kept\n"
    assert run("explain").status == 2
    assert run("errors", "--error", "UNAUTHENTICATED", "--json").json["items"] == 1


# Tokens, and events as they happen.


def test_a_token_is_got_and_looked_into_by_either_door(
    run: Callable[..., Ran], web: Web, server: str, boss: str
) -> None:
    machine = an_application(web.rt, name="feed", scopes=("read", "write"))
    got = run(
        "--server", server, "token", "get", machine.client_id, "--secret-stdin", "--scope", "read", "--json", stdin=machine.secret
    ).json  # fmt: skip
    for door in ((), ("--server", server)):
        seen = run(*door, "token", "inspect", got["accessToken"], "--json").json
        assert (seen["valid"], seen["header"]["typ"], seen["claims"]["scope"]) == (True, "at+jwt", "read")
        assert run(*door, "token", "inspect", "--json", stdin=got["accessToken"]).json == seen
        for wrong in ("abc", got["accessToken"][:-4]):
            forged = run(*door, "token", "inspect", wrong, "--json").json
            assert forged["valid"] is False
            assert forged["check"]
    refused = run("--server", server, "token", "get", machine.client_id, "--secret-stdin", stdin="wrong")
    assert (refused.status, refused.err) == (1, "identity: Client ID and secret do not match\n")


def test_events_are_followed_as_they_happen(run: Callable[..., Ran], web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    a_user(web.rt, alias="ada")
    rounds = iter(range(3))

    def sleep(_seconds: float) -> None:
        number = next(rounds, None)
        if number is None:
            raise KeyboardInterrupt
        web.clock.tick(2)
        a_user(web.rt, alias=f"late-{number}")

    monkeypatch.setattr(command_line.records.time, "sleep", sleep)
    ran = run("audit", "--action", "user.created", "--follow")
    assert ran.status == 130
    events = [json.loads(line)["eventID"] for line in ran.out.splitlines()]
    assert len(events) == len(set(events)) == 4
