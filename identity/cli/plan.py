"""`identity plan` and `identity apply`: tenants, roles, applications, trusts, users and memberships as a file says, and no secret in it.

A plan is the difference between the file and what is. Applying asks the same routes as the commands do, a step at a time: a run that died
has done some steps, and the next plan has the rest. What the file does not mention stays, unless `--prune`; and then only of those
sections that the file has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from identity.canonical import canonical_address
from identity.cli.frame import Opened, cli, command
from identity.errors import VALIDATION, Refused

State = dict[str, dict[str, dict[str, Any]]]
_SECTIONS: Final[dict[str, dict[str, Any]]] = {
    # What each thing has, and what it is where the file says nothing. None: that stays as it is.
    "tenants": {"name": None, "enabled": None, "limits": None},
    "roles": {"description": None},
    "applications": {
        "tenant": None,
        "scopes": None,
        "roles": None,
        "audiences": None,
        "tokenSeconds": None,
        "tokenReuseSeconds": None,
        "tokensPerDay": None,
        "enabled": None,
        "trusts": None,
    },
    "users": {"alias": None, "fullName": None, "roles": None, "groups": None, "enabled": None, "tenants": None},
}
_TRUST: Final = ("issuer", "subject", "claims", "audience", "jwks")
_OF_APPLICATIONS: Final = ("scopes", "roles", "audiences", "tokenSeconds", "tokenReuseSeconds", "tokensPerDay")
_STANDARD: Final = 10


@dataclass(frozen=True, slots=True)
class Ask:
    """A route to ask, behind `/admin`; IMPORT takes a row."""

    method: str
    path: tuple[str, ...]
    body: Any = None


class Step:
    """One difference, and the routes that do away with it."""

    def __init__(self, action: str, kind: str, name: str, changes: Mapping[str, Any] | None = None, *asks: Ask) -> None:
        self.action = action
        self.kind = kind
        self.name = name
        self.changes = dict(changes or {})
        self.asks = asks

    def document(self) -> dict[str, Any]:
        """The step as it is shown: for each change, what is and what will be."""
        return {"action": self.action, "kind": self.kind, "name": self.name, "changes": self.changes}

    def work(self, opened: Opened) -> Any:
        """Do it; give the last answer."""
        answer = None
        for one in self.asks:
            is_row = one.method == "IMPORT"
            answer = _import(opened, one.body) if is_row else opened.ask(one.method, *one.path, body=one.body)
        return answer


def _ask(method: str, *path: str, body: Any = None) -> Ask:
    return Ask(method, path, body)


@command(cli, "plan")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Exit 2 where something would change.")
@click.option("--prune", is_flag=True, help="Also what `apply --prune` would remove.")
@click.option("--from-database", is_flag=True, help="Write the file that says what is; YAML, or JSON with --json.")
def plan(opened: Opened, file: Path | None, check: bool, prune: bool, from_database: bool) -> Any:
    """Show what `apply FILE` would change: tenants, roles, applications, trusts, users, memberships."""
    if (file is None) is not from_database:
        raise click.UsageError("Name a FILE, or --from-database")
    if file is None:
        present = {section: things for section, things in _present(opened)[0].items() if things}
        return present if opened.prints_json else _as_yaml(present)
    steps = [step.document() for step in _steps(opened, _read(file), prune=prune)]
    if check and steps:
        opened.show({"steps": steps})
        sys.exit(2)
    return {"steps": steps}


@command(cli, "apply")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prune", is_flag=True, help="Remove what the file's sections do not mention.")
def apply(opened: Opened, file: Path, prune: bool) -> Any:
    """Make it as FILE says. Run it again as often as you like; secrets of new applications are shown once."""
    wanted = _read(file)
    done = []
    # What one step makes another may need: after each round the difference is taken anew, and is empty in the end.
    for _ in range(3):
        steps = list(_steps(opened, wanted, prune=prune))
        if not steps:
            break
        for step in steps:
            answer = step.work(opened)
            shown = step.document()
            if step.action == "create" and step.kind == "application":
                shown["made"] = {name: answer[name] for name in ("clientId", "secretID", "secret")}
            done.append(shown)
    return {"steps": done}


def _read(file: Path) -> State:
    """The file, checked as far as a file can be. Raises Refused(VALIDATION)."""
    import yaml

    try:
        # JSON is YAML; the loader makes plain values only.
        said = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise Refused(VALIDATION.saying(f"{file} is neither YAML nor JSON"), cause=exc) from exc
    if not isinstance(said, dict) or not all(isinstance(section, dict) for section in said.values()):
        raise Refused(VALIDATION.saying(f"{file} has sections, each with names: {', '.join(_SECTIONS)}"))
    unknown = [name for name in said if name not in _SECTIONS]
    unknown += [
        f"{section}.{name}.{attribute}"
        for section, things in said.items()
        for name, thing in things.items()
        for attribute in (thing or {})
        if attribute not in _SECTIONS.get(section, {})
    ]
    if unknown:
        raise Refused(VALIDATION.saying(f"{file} has what a plan does not know: {', '.join(map(str, unknown[:5]))}"))
    read: State = {
        section: {str(name): dict(thing or {}) for name, thing in things.items()} for section, things in said.items()
    }
    if "users" in read:
        read["users"] = {canonical_address(name) or name: thing for name, thing in read["users"].items()}
    return read


def _present(opened: Opened) -> tuple[State, dict[str, dict[str, str]]]:
    """What is, in the shape of the file, and the ids behind its names."""
    ids: dict[str, dict[str, str]] = {"applications": {}, "users": {}, "trusts": {}}
    state: State = {section: {} for section in _SECTIONS}
    for one in opened.everything("tenants", "tenants"):
        state["tenants"][one["id"]] = {name: one[name] for name in ("name", "enabled", "limits")}
    for one in opened.everything("roles", "roles"):
        if one["declared"]:
            name = f"{one['tenant']}/{one['name']}" if one["tenant"] else one["name"]
            state["roles"][name] = {"description": one["description"]}
    for one in opened.everything("applications", "applications"):
        if one["appId"] == _STANDARD or one.get("decoy"):
            continue
        if one["name"] in state["applications"]:
            raise Refused(
                VALIDATION.saying(f"Two applications are called {one['name']}: a plan needs names of their own")
            )
        ids["applications"][one["name"]] = one["clientId"]
        shown = {name: one[name] for name in ("tenant", *_OF_APPLICATIONS, "enabled")}
        trusts = opened.ask("GET", "application", one["clientId"], "trusts", query={"limit": 200})["trusts"]
        shown["trusts"] = {trust["name"]: {name: trust[name] for name in _TRUST if trust[name]} for trust in trusts}
        ids["trusts"] |= {f"{one['name']}/{trust['name']}": trust["trustID"] for trust in trusts}
        state["applications"][one["name"]] = {name: value for name, value in shown.items() if value is not None}
    for one in opened.everything("users", "users"):
        if not one["email"]:
            continue
        ids["users"][one["email"]] = one["userID"]
        state["users"][one["email"]] = {
            name: one[name] for name in ("alias", "fullName", "roles", "groups", "enabled", "tenants")
        }
    return state, ids


def _steps(opened: Opened, wanted: State, *, prune: bool) -> Iterator[Step]:
    present, ids = _present(opened)
    yield from _tenants(wanted.get("tenants", {}), present["tenants"])
    yield from _roles(wanted.get("roles", {}), present["roles"])
    yield from _applications(wanted.get("applications", {}), present["applications"], ids)
    yield from _users(wanted.get("users", {}), present["users"], ids["users"], prune=prune)
    if prune:
        yield from _removals(wanted, present, ids)


def _differences(wanted: Mapping[str, Any], present: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What of `names` the file says otherwise: from what is to what is wanted. Sets of names have no order."""
    found = {}
    for name in names:
        if name not in wanted:
            continue
        is_set = name in ("scopes", "roles", "groups")
        now, then = present.get(name), wanted[name]
        if (sorted(now or []) != sorted(then or [])) if is_set else now != then:
            found[name] = {"from": now, "to": then}
    return found


def _tenants(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[Step]:
    for name, thing in wanted.items():
        if name not in present:
            body = {"id": name, "name": thing.get("name", name)}
            yield Step("create", "tenant", name, {}, _ask("POST", "tenant", body=body))
            continue
        changes = _differences(thing, present[name], ("name", "limits"))
        if changes:
            body = {key: thing[key] for key in changes}
            yield Step(
                "change",
                "tenant",
                name,
                changes,
                _ask("PATCH", "tenant", name, body=body),
            )
        switched = _differences(thing, present[name], ("enabled",))
        if switched:
            deed = "enable" if thing["enabled"] else "disable"
            yield Step("change", "tenant", name, switched, _ask("PUT", "tenant", name, deed))


def _roles(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[Step]:
    for name, thing in wanted.items():
        changes = _differences(thing, present.get(name, {}), ("description",))
        if name in present and not changes:
            continue
        tenant, _, role = name.rpartition("/")
        body = {"name": role, "description": thing.get("description", role)} | ({"tenant": tenant} if tenant else {})
        action = "change" if name in present else "create"
        yield Step(action, "role", name, changes, _ask("POST", "role", body=body))


def _applications(
    wanted: Mapping[str, Any], present: Mapping[str, Any], ids: Mapping[str, Mapping[str, str]]
) -> Iterator[Step]:
    for name, thing in wanted.items():
        if name not in present:
            body = {key: thing[key] for key in ("tenant", *_OF_APPLICATIONS) if key in thing} | {
                "name": name,
                "newRole": True,
            }
            body.setdefault("scopes", [])
            yield Step("create", "application", name, {}, _ask("POST", "application", body=body))
            continue
        client = ids["applications"][name]
        if thing.get("tenant", present[name].get("tenant")) != present[name].get("tenant"):
            raise Refused(VALIDATION.saying(f"An application cannot move to another tenant: {name}"))
        changes = _differences(thing, present[name], (*_OF_APPLICATIONS, "enabled"))
        if changes:
            body = {key: thing[key] for key in changes} | {"newRole": True}
            yield Step(
                "change", "application", name, changes,
                _ask("PATCH", "application", client, body=body),
            )  # fmt: skip
        yield from _trusts(name, client, thing.get("trusts") or {}, present[name]["trusts"], ids["trusts"])


def _trusts(
    application: str,
    client: str,
    wanted: Mapping[str, Any],
    present: Mapping[str, Any],
    ids: Mapping[str, str],
) -> Iterator[Step]:
    for name, thing in wanted.items():
        full = f"{application}/{name}"
        changes = _differences(thing, present.get(name, {}), _TRUST)
        if name in present and not changes:
            continue

        # A trust is never changed: whoever reads its id must know what it trusts.
        ending = [_ask("DELETE", "application", client, "trust", ids[full])] if full in ids else []
        making = _ask("POST", "application", client, "trust", body={"name": name, **thing})
        yield Step("change" if name in present else "create", "trust", full, changes, *ending, making)


def _users(
    wanted: Mapping[str, Any], present: Mapping[str, Any], ids: Mapping[str, str], *, prune: bool
) -> Iterator[Step]:
    for address, thing in wanted.items():
        if address not in present:
            row = {"email": address} | {
                key: thing[key] for key in ("alias", "fullName", "roles", "groups", "tenants") if key in thing
            }
            yield Step("create", "user", address, {}, Ask("IMPORT", (), row))
            continue
        user_id, now = ids[address], present[address]
        changes = _differences(thing, now, ("alias", "fullName", "roles", "groups"))
        if changes:
            body = {key: thing[key] for key in changes} | {"newRole": True}
            yield Step(
                "change", "user", address, changes,
                _ask("PATCH", "user", user_id, body=body),
            )  # fmt: skip
        switched = _differences(thing, now, ("enabled",))
        if switched:
            deed = "enable" if thing["enabled"] else "disable"
            yield Step(
                "change",
                "user",
                address,
                switched,
                _ask("PUT", "user", user_id, deed),
            )
        yield from _memberships(address, user_id, thing.get("tenants"), now["tenants"], prune=prune)


def _memberships(
    address: str,
    user_id: str,
    wanted: Mapping[str, Any] | None,
    present: Mapping[str, Any],
    *,
    prune: bool,
) -> Iterator[Step]:
    for tenant, roles in (wanted or {}).items():
        if tenant in present and sorted(present[tenant]) == sorted(roles):
            continue
        changes = {"roles": {"from": present.get(tenant), "to": roles}}
        body = {"roles": roles, "newRole": True}
        action = "change" if tenant in present else "create"
        yield Step(
            action, "membership", f"{tenant}/{address}", changes,
            _ask("PUT", "tenant", tenant, "member", user_id, body=body),
        )  # fmt: skip
    for tenant in present if prune and wanted is not None else ():
        if tenant not in (wanted or {}):
            yield Step(
                "remove", "membership", f"{tenant}/{address}",
                {}, _ask("DELETE", "tenant", tenant, "member", user_id),
            )  # fmt: skip


def _removals(wanted: State, present: State, ids: Mapping[str, Mapping[str, str]]) -> Iterator[Step]:
    for name, thing in wanted.get("applications", {}).items():
        for trust in present["applications"].get(name, {}).get("trusts", {}) if "trusts" in thing else ():
            if trust not in (thing["trusts"] or {}):
                path = ("application", ids["applications"][name], "trust", ids["trusts"][f"{name}/{trust}"])
                yield Step("remove", "trust", f"{name}/{trust}", {}, _ask("DELETE", *path))
    for section, kind in (("users", "user"), ("applications", "application"), ("tenants", "tenant")):
        for name in present[section] if section in wanted else ():
            if name not in wanted[section]:
                yield Step("remove", kind, name, {}, _ask("DELETE", kind, ids.get(section, {}).get(name, name)))


def _import(opened: Opened, row: Mapping[str, Any]) -> Any:
    """Make a user without a key pair or a mail, as an import does."""
    query = {"newRole": True}
    answer = opened.desk.ask("POST", "/admin/users/import", query=query, raw=json.dumps(row).encode())
    for one in answer["rejected"]:
        raise Refused(VALIDATION.saying(f"{row['email']}: {one['message']}"), field=one["field"])
    return answer


def _as_yaml(document: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    return text.rstrip()
