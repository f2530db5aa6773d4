"""What holds for every route and every module: declared credentials and limits, a pinned URL map, one clock, no secret at rest or in a log.

`python -m tests.test_architecture > tests/url_map.txt` writes the map anew; the change is then for a reviewer to see.
"""

from __future__ import annotations

import ast
import json
import re
import time
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text

from identity.app import endpoints
from identity.instruments.limits import Policy
from identity.wire.endpoint import Endpoint, Reads
from tests.builders import PASSWORD, a_user, an_application
from tests.world import CODE, MASTER_KEY, Live, Web

PACKAGE = Path(__file__).parent.parent / "identity"
URL_MAP = Path(__file__).parent / "url_map.txt"

PUBLIC = {
    # Anybody may read these, as often as they like: they cost a cached answer and tell nothing of anybody.
    "GET /.well-known/jwks.json",
    "GET /.well-known/oauth-authorization-server",
    "GET /.well-known/openid-configuration",
    "GET /.well-known/status-lists",
    "GET /.well-known/status-lists/{id}",
    "GET /health/live",
    "GET /health/ready",
    "GET /openapi.json",
    "GET /docs",
    "GET /",
    "GET /style.css",
    "GET /docs.md",
    "GET /dev/inbox",  # only in development, only from the loopback
}


def url_map() -> str:
    """Every route: methods, path, credential, limit, mounts."""
    rows = []
    for endpoint in endpoints():
        for prefix in endpoint.mounts:
            method = "ANY" if endpoint.any_method else endpoint.method
            reads = endpoint.reads.value + (", administrators" if endpoint.admin else "")
            rows.append((prefix + endpoint.path, method, reads, str(endpoint.limit or "no limit")))
    return "".join(f"{method:6} {path:58} {reads:36} {limit}\n" for path, method, reads, limit in sorted(rows))


def test_the_url_map_is_the_pinned_one() -> None:
    assert url_map() == URL_MAP.read_text(), "if that is meant: python -m tests.test_architecture > tests/url_map.txt"


def test_every_route_declares_a_limit_or_is_public() -> None:
    assert {endpoint.name for endpoint in endpoints() if endpoint.limit is None} == PUBLIC


def test_every_route_reads_a_credential_or_is_limited_as_a_login_or_is_public() -> None:
    open_routes = {
        endpoint for endpoint in endpoints() if endpoint.reads is Reads.NOTHING and endpoint.name not in PUBLIC
    }
    assert {endpoint.name for endpoint in open_routes if endpoint.limit is not Policy.AUTH} == {
        "POST /application/token"
    }


def test_every_administrators_route_is_declared_as_one() -> None:
    for endpoint in endpoints():
        assert endpoint.admin is (endpoint.path.startswith("/admin/") or endpoint.path == "/user/by-email"), (
            endpoint.name
        )


def test_no_two_routes_claim_the_same_place() -> None:
    places = [(prefix + endpoint.path, endpoint.method) for endpoint in endpoints() for prefix in endpoint.mounts]
    assert len(places) == len(set(places))


def test_every_route_tells_its_documentation_what_it_does_and_answers() -> None:
    for endpoint in endpoints():
        assert re.fullmatch(r"[A-Z`].{8,}[.]", endpoint.summary), f"{endpoint.name}: {endpoint.summary!r}"
        assert endpoint.tags, endpoint.name
        assert endpoint.answer is not None or endpoint.name in PUBLIC | {"GET /verify", "POST /oauth/revoke"}, (
            endpoint.name
        )


def test_every_route_of_the_map_is_mounted_and_nothing_else(web: Web) -> None:
    mounted = {re.sub(r"<([^>]*)>", r"{\1}", rule.rule) for rule in web.app.url_map.iter_rules()}
    assert mounted == {prefix + endpoint.path for endpoint in endpoints() for prefix in endpoint.mounts}


def test_every_route_that_reads_a_credential_refuses_without_one(web: Web) -> None:
    for endpoint in endpoints():
        if endpoint.reads in (Reads.BEARER, Reads.BEARER_OR_KEY, Reads.KEY):
            answer = web.call(endpoint.method, a_path(endpoint))
            assert (answer.status_code, answer.json["error"]) == (401, "UNAUTHENTICATED"), endpoint.name


def test_every_administrators_route_refuses_everybody_else(web: Web) -> None:
    from tests.builders import a_token

    token = a_token(web.rt, a_user(web.rt, roles=("analyst",)))
    for endpoint in endpoints():
        if endpoint.admin:
            answer = web.call(endpoint.method, a_path(endpoint), bearer=token)
            assert (answer.status_code, answer.json["error"]) == (403, "FORBIDDEN"), endpoint.name


def a_path(endpoint: Endpoint) -> str:
    return endpoint.mounts[0] + re.sub(r"\{[^}]*\}", "00000000-0000-7000-8000-000000000000", endpoint.path)


# One clock, one source of chance.


def test_time_and_chance_are_injected_everywhere() -> None:
    forbidden = {
        ("datetime", "now"),
        ("datetime", "utcnow"),
        ("date", "today"),
        ("time", "time"),
        ("os", "urandom"),
        ("uuid", "uuid4"),
    }
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and (node.value.id, node.attr) in forbidden
            ):
                found.add((path.relative_to(PACKAGE).as_posix(), f"{node.value.id}.{node.attr}"))
            if isinstance(node, ast.Import | ast.ImportFrom):
                # Our own `secrets` are the clients'.
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module}
                found |= {(path.relative_to(PACKAGE).as_posix(), name) for name in names & {"random", "secrets"}}
    # Windows are shared by processes and lines of the log by everybody: both read the host's clock.
    assert found == {
        ("ambient.py", "datetime.now"),
        ("ambient.py", "secrets"),
        ("instruments/windows.py", "time.time"),
        ("logs.py", "time.time"),
    }


def test_every_module_says_what_lives_in_it() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, path


def test_no_handler_opens_a_transaction() -> None:
    for path in (PACKAGE / "wire").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            opens = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "unit"
            assert not opens, f"{path.relative_to(PACKAGE)}:{node.lineno}: a transaction is the domain's"


def test_administrators_transactions_are_opened_by_what_carries_their_rights() -> None:
    for path in (PACKAGE / "core" / "admin").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            opens = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "unit"
            by_rights = opens and isinstance(node.func.value, ast.Name) and node.func.value.id == "by"
            assert not opens or by_rights or path.name in ("by.py", "erasure.py"), (  # users erase themselves, too
                f"{path.name}:{node.lineno}: open it with by.unit or by.unit_within"
            )


def test_data_of_a_log_line_goes_through_the_one_helper() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name == "logs.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and any(keyword.arg == "extra" for keyword in node.keywords):
                raise AssertionError(f"{path.relative_to(PACKAGE)}:{node.lineno}: use logs.event")


def test_no_module_and_no_function_is_too_long_to_read() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "versions" in path.parts:
            continue
        text_ = path.read_text()
        assert len(text_.splitlines()) <= 500, path
        for node in ast.walk(ast.parse(text_)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno}: {node.name}"


# No secret in a log line, a column or an answer that is not its own.


def test_a_whole_run_leaves_no_secret_in_the_log_or_the_database(live: Live) -> None:
    secrets: dict[str, str] = {"password": PASSWORD, "master key": MASTER_KEY}
    handed_out: set[str] = set()
    heard: list[Any] = []

    def said(answer: Any) -> Any:
        heard.append((answer.text, dict(answer.headers)))
        assert answer.status_code < 500, answer.text
        return answer.json()

    def kept(name: str, value: str) -> str:
        secrets[name] = value
        handed_out.add(value)
        return value

    # 1. Everybody signs in, rightly and wrongly.
    ada = a_user(live.rt)
    feed = an_application(live.rt)
    secrets["client secret"] = feed.secret
    secrets["wrong password"] = "hunter2-never-mine"
    said(live.post("/user/token", {"email": ada.email, "password": secrets["wrong password"]}))
    kept(
        "user token", said(live.post("/user/token", {"email": ada.email, "password": PASSWORD}))["data"]["accessToken"]
    )
    kept(
        "application token",
        said(live.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}))["data"][
            "accessToken"
        ],
    )
    said(live.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret[:-1] + "x"}))
    secrets["mistyped client secret"] = feed.secret[:-1] + "x"
    # 2. A session by an emailed code, and a key pair of its own.
    opened = said(live.post("/session", {"email": ada.email}))
    bearer = kept("session bearer", opened["bearer"])
    code = emailed_code(live, ada.email, 1)
    said(
        live.call(
            "PUT", "/session/verification", json={"verificationCodeID": opened["verificationCodeID"], "code": code}
        )
    )
    said(live.get("/session", bearer=bearer))
    pair = said(live.call("POST", "/keypair", json={"name": "laptop", "days": 3}, bearer=bearer))
    kept("api secret", pair["apiSecret"])
    code = emailed_code(live, ada.email, 2)
    said(
        live.call("PUT", "/keypair/verification", json={"verificationCodeID": pair["verificationCodeID"], "code": code})
    )
    said(live.get("/keypair", headers={"api-key": pair["apiKey"], "api-secret": pair["apiSecret"]}))
    said(live.get("/keypairs", bearer=bearer))
    # 3. A login in two steps, and its refresh.
    challenge = kept(
        "challenge", said(live.post("/auth/login", {"email": ada.email, "password": PASSWORD}))["mfaChallengeToken"]
    )
    code = emailed_code(live, ada.email, 3)
    pair_of_tokens = said(live.post("/auth/mfa/challenge", {"mfaChallengeToken": challenge, "emailCode": code}))
    kept("access token", pair_of_tokens["accessToken"])
    refresh = kept("refresh token", pair_of_tokens["refreshToken"])
    kept("next refresh token", said(live.post("/auth/refresh", {"refreshToken": refresh}))["refreshToken"])
    enrolment = said(live.call("POST", "/auth/mfa/totp", bearer=pair_of_tokens["accessToken"]))
    kept("authenticator seed", enrolment["secret"])
    # 4. Everything that is wrong is presented once, where it may be logged.
    for value in list(secrets.values()):
        said(live.get("/verify", bearer=value.replace(" ", "")))
        said(live.get("/nowhere", headers={"User-Agent": value, "api-secret": value}))
    time.sleep(1.5)  # Notes are written by the background loop.
    # 5. Nothing of it stayed.
    log = live.log.read_text()
    rows = everything_in(live)
    for name, secret in secrets.items():
        assert secret not in log, f"{name} in the log"
        for table, content in rows.items():
            # A session remembers the user agent that opened it; nobody opened one by such a name.
            assert secret not in content, f"{name} in {table}"
            assert secret.encode().hex() not in content, f"{name} in {table}"
    refusals = [(body, headers) for body, headers in heard if "x-error" in {one.lower() for one in headers}]
    assert refusals
    for body, headers in refusals:
        for name, secret in secrets.items():
            assert secret not in body + json.dumps(headers), f"{name} in a refusal"
    for secret in handed_out:
        assert sum(secret in body for body, _ in heard) <= 1, "a secret is shown once"


def emailed_code(live: Live, address: str, number: int) -> str:
    """The code of the `number`th mail to `address` that holds one; notices hold none."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        bodies = [mail.get_body(("plain",)) for mail in live.mails() if address in str(mail["To"])]
        codes = [found[1] for body in bodies if body and (found := CODE.search(body.get_content()))]
        if len(codes) >= number:
            return codes[number - 1]
        time.sleep(0.05)
    raise AssertionError(f"no {number}. code for {address}")


def everything_in(live: Live) -> dict[str, str]:
    """Each table as text, bytes as hex."""
    content = {}
    with live.rt.database.reading() as session:
        for table in inspect(session.connection()).get_table_names():
            rows = session.execute(text(f'SELECT * FROM "{table}"')).all()
            cells = [cell.hex() if isinstance(cell, bytes | memoryview) else str(cell) for row in rows for cell in row]
            content[table] = "\n".join(cells)
    return content


def test_what_a_docstring_says_of_another_module_is_there() -> None:
    # `module.name`, for each module of ours: a reader looks it up, and nobody renames what stands in prose.
    home = Path(__file__).parent.parent / "identity"
    trees = {path: ast.parse(path.read_text()) for path in home.rglob("*.py")}
    names: dict[str, set[str]] = {}
    for path, tree in trees.items():
        stem = path.parent.name if path.stem == "__init__" else path.stem
        said = names.setdefault(stem, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
                said.add(node.name)
            elif isinstance(node, ast.Name):
                said.add(node.id)
        names.setdefault(path.parent.name, set()).add(path.stem)
        names.setdefault(path.parent.parent.name, set()).add(path.parent.name)
    missing = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                for module, name in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", ast.get_docstring(node) or ""):
                    if module in names and name not in names[module]:
                        missing.append((path.name, module, name))
    assert set(missing) <= {("custom_claims.py", "tenant", "plan")}, "an attribute of a tenant, not of a module"


def test_no_repr_shows_a_secret(web: Web) -> None:
    from tests.builders import a_session

    opened = a_session(web.rt, a_user(web.rt))
    assert opened.bearer
    assert opened.refresh
    shown = repr(opened) + repr(web.rt.settings) + repr(web.rt)
    for secret in (opened.bearer.reveal(), opened.refresh.reveal(), MASTER_KEY, PASSWORD):
        assert secret not in shown


if __name__ == "__main__":
    print(url_map(), end="")
