"""Every way this service says no: each problem in every shape, each row of the error table over a real socket, ids that agree."""

from __future__ import annotations

import contextlib
import html
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
import pyotp
import pytest
import requests
from sqlalchemy import create_engine, select, update

from identity import errors
from identity.app import endpoints
from identity.core.clients import applications
from identity.core.people import accounts
from identity.core.proofs.attempts import Meter
from identity.core.record import audit, explain
from identity.core.record.audit import AuditEvent
from identity.core.signin import factors
from identity.core.tokens import claims
from identity.errors import CATALOGUE, RATE_LIMITED, UNAVAILABLE, Problem, Refused
from identity.runtime import Runtime
from identity.wire.endpoint import Request, Shape
from identity.wire.exchange import refuse_outside
from identity.wire.head import Networks
from tests.builders import a_token, a_user, an_application
from tests.world import ORIGIN, Live, Web

LIVE_ENVIRONMENT = {"registration": "0", "explain_per_minute": "1000000"}
PROBLEMS = [value for value in vars(errors).values() if isinstance(value, Problem)]
SHAPES = list({endpoint.shape.name: endpoint.shape for endpoint in endpoints()}.values())
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PLAIN = Request("GET", "/nowhere", "/nowhere", "", {"host": "auth.example", "x-request-id": "mine"}, b"", "192.0.2.1")


# Each problem in every shape.


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.code}: {problem.message[:30]}")
def test_every_problem_renders_in_every_shape(problem: Problem, shape: Shape, plain_rt: Runtime) -> None:
    refused = Refused(
        problem, field="email", detail="hidden detail", evidence={"seen": "hidden evidence"}, retry_after_seconds=7
    )
    answer = refuse_outside(plain_rt, PLAIN, refused, shape, Networks())
    headers = dict(answer.headers)
    assert answer.status == shape.status(refused)
    assert headers["x-error"] == problem.message[:200]
    assert re.fullmatch(r"[\x20-\x7e]{1,200}", headers["x-error"])
    assert UUID4.fullmatch(headers["x-error-id"])
    assert headers["X-Request-Id"] == "mine"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers.get("Retry-After") == ("7" if problem.status in (RATE_LIMITED.status, UNAVAILABLE.status) else None)
    shown = answer.body.decode() + str(answer.headers)
    assert "hidden" not in shown
    if shape.name == "page":
        assert headers["Content-Type"].startswith("text/html")
        assert html.unescape(answer.body.decode()).count(problem.message) == 1
    else:
        json.loads(answer.body)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.code}: {problem.message[:30]}")
def test_the_envelope_says_what_the_contract_says(problem: Problem, plain_rt: Runtime) -> None:
    for envelope in (shape for shape in SHAPES if shape.name.startswith("envelope")):
        status = 400 if problem.code == "VALIDATION_ERROR" and envelope.validation_status == 400 else problem.status
        for field in (None, "email"):
            answer = refuse_outside(plain_rt, PLAIN, Refused(problem, field=field), envelope, Networks())
            expected = {"error": problem.code, "message": problem.message, "field": field, "status": status}
            assert json.loads(answer.body) == {name: value for name, value in expected.items() if value is not None}


def test_every_problem_that_a_route_declares_is_in_the_catalogue() -> None:
    listed = {(problem.code, problem.status) for problem, _ in CATALOGUE}
    declared = {(problem.code, problem.status) for endpoint in endpoints() for problem in endpoint.refusals}
    assert declared <= listed
    assert {(problem.code, problem.status) for problem in PROBLEMS} <= listed


def test_the_catalogue_tells_each_code_once_with_its_reason() -> None:
    codes = [problem.code for problem, _ in CATALOGUE]
    assert sorted(codes) == sorted(set(codes))
    assert all(reason for _, reason in CATALOGUE)


def test_a_refusal_keeps_its_detail_to_itself() -> None:
    refused = Refused(errors.INVALID_CODE, detail="attempt 3 of 5", cause=ValueError("why"))
    assert str(refused) == "INVALID_CODE: attempt 3 of 5"
    assert isinstance(refused.__cause__, ValueError)


@pytest.fixture(scope="module")
def plain_rt(live: Live) -> Runtime:
    return live.rt


# Each row of the table over a socket, on both databases.

Answer = requests.Response


@dataclass(frozen=True)
class Row:
    """One row of the error table, and how a client comes to see it."""

    code: str
    status: int
    provoke: Callable[[Live], Answer]
    message: str = ""


def login(live: Live, email: str, password: str, **more: str) -> Answer:
    return live.post("/user/token", {"email": email, "password": password, **more})


def json_post(live: Live, path: str, data: bytes, content_type: str = "application/json") -> Answer:
    return live.call("POST", path, data=data, headers={"Content-Type": content_type})


def outside_the_window(live: Live) -> Answer:
    ada = a_user(live.rt, ends_at=datetime.now(UTC) - timedelta(seconds=1))
    return login(live, ada.email, ada.password)


def enrolled(live: Live) -> tuple[str, str, pyotp.TOTP]:
    ada = a_user(live.rt)
    user = accounts.get(live.rt, ada.id)
    totp = pyotp.TOTP(factors.enrol(live.rt, ORIGIN, user).seed.reveal())
    factors.confirm(live.rt, ORIGIN, user, totp.now())
    return ada.email, ada.password, totp


def without_the_second_factor(live: Live) -> Answer:
    email, password, _ = enrolled(live)
    return login(live, email, password)


def with_a_wrong_second_factor(live: Live) -> Answer:
    email, password, totp = enrolled(live)
    return login(live, email, password, totpCode=f"{(int(totp.now()) + 1) % 10**6:06}")


def with_an_expired_token(live: Live) -> Answer:
    feed = an_application(live.rt)
    app = applications.get(live.rt, feed.client_id)
    token = claims.issue_application_token(
        live.rt,
        client_id=app.id,
        secret_id=feed.secret_id,
        place=None,
        roles=(),
        tenant=None,
        scope=(),
        audience=("x",),
        seconds=1,
        now=datetime.now(UTC),
    )
    time.sleep(1.1)
    return live.get("/verify?tenant=optional", bearer=token.text)


def locked_out(live: Live) -> Answer:
    ada = a_user(live.rt)
    for _ in range(5):
        assert login(live, ada.email, "wrong").status_code == 401
    return login(live, ada.email, ada.password)


def with_another_version(live: Live) -> requests.Response:
    boss, ada = a_user(live.rt, roles=("users_admin",)), a_user(live.rt)
    headers = {"If-Match": '"999", "1000"'}
    body = {"fullName": "Ada King"}
    return live.call("PATCH", f"/admin/user/{ada.id}", json=body, bearer=a_token(live.rt, boss), headers=headers)


def in_use(live: Live) -> Answer:
    root = a_token(live.rt, a_user(live.rt, roles=("users_admin",)))
    body = {"id": "taken-bank", "name": "Taken"}
    live.call("POST", "/admin/tenant", json=body, bearer=root)
    return live.call("POST", "/admin/tenant", json=body, bearer=root)


def broken_inside(live: Live) -> Answer:
    ada = a_user(live.rt)
    assert login(live, ada.email, "wrong").status_code == 401
    with live.rt.unit(ORIGIN) as unit:
        unit.execute(update(Meter).values(failed="no JSON"))
    try:
        return login(live, ada.email, ada.password)
    finally:
        with live.rt.unit(ORIGIN) as unit:
            unit.execute(update(Meter).values(failed="[]"))


def without_a_database(live: Live) -> Answer:
    ada = a_user(live.rt)
    with database_that_takes_no_write(live):
        answer = login(live, ada.email, ada.password)
    assert login(live, ada.email, ada.password).status_code == 200, "it serves again as soon as the database does"
    return answer


@contextlib.contextmanager
def database_that_takes_no_write(live: Live) -> Iterator[None]:
    """While it lasts, writers wait longer than they may."""
    engine = create_engine(live.rt.database.url)
    with engine.connect() as connection:
        if live.rt.database.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("LOCK TABLE meter IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()
    engine.dispose()


def verify(live: Live, query: str = "", **options: object) -> Answer:
    return live.call("GET", f"/verify{query}", **options)  # type: ignore[arg-type]


ROWS = (
    Row("MALFORMED_REQUEST", 400, lambda live: json_post(live, "/user/token", b"[")),
    Row(
        "MISSING_TENANT",
        400,
        lambda live: verify(live, bearer=a_token(live.rt, a_user(live.rt))),
        "X-Tenant-Id header is required",
    ),
    Row("UNAUTHENTICATED", 401, verify),
    Row(
        "INVALID_CREDENTIALS",
        401,
        lambda live: login(live, "nobody@acme.example", "x"),
        "Email and password do not match",
    ),
    Row(
        "INVALID_CREDENTIALS",
        401,
        lambda live: live.post("/application/token", {"clientId": "x", "secret": "x"}),
        "Client ID and secret do not match",
    ),
    Row("ACCESS_WINDOW_EXPIRED", 401, outside_the_window, "User access window has expired"),
    Row("MFA_REQUIRED", 401, without_the_second_factor),
    Row("INVALID_CODE", 401, with_a_wrong_second_factor),
    Row("INVALID_TOKEN", 401, lambda live: verify(live, bearer="x.y.z")),
    Row("TOKEN_EXPIRED", 401, with_an_expired_token),
    Row(
        "FORBIDDEN",
        403,
        lambda live: verify(live, bearer=a_token(live.rt, a_user(live.rt)), headers={"X-Tenant-Id": "unknown"}),
    ),
    Row(
        "REGISTRATION_DISABLED",
        403,
        lambda live: live.post("/user", {"email": "eve@acme.example", "fullName": "Eve", "alias": "eve"}),
    ),
    Row("NOT_FOUND", 404, lambda live: live.get("/nowhere")),
    Row("METHOD_NOT_ALLOWED", 405, lambda live: live.get("/application/token")),
    Row("CONFLICT", 409, in_use),
    Row("PRECONDITION_FAILED", 412, with_another_version),
    Row("PAYLOAD_TOO_LARGE", 413, lambda live: json_post(live, "/user/token", b"x" * 65_537)),
    Row("UNSUPPORTED_MEDIA_TYPE", 415, lambda live: json_post(live, "/user/token", b"{}", "text/plain")),
    Row(
        "VALIDATION_ERROR",
        422,
        lambda live: live.post("/user/token", {"email": "a@b.co"}),
        "Missing password request body parameter",
    ),
    Row(
        "VALIDATION_ERROR",
        422,
        lambda live: live.post("/user/token", {"password": "x"}),
        "Missing email request body parameter",
    ),
    Row(
        "VALIDATION_ERROR",
        422,
        lambda live: live.post("/application/token", {"secret": "x"}),
        "Missing client ID body parameter",
    ),
    Row(
        "VALIDATION_ERROR",
        422,
        lambda live: live.post("/application/token", {"clientId": "x"}),
        "Missing secret body parameter",
    ),
    Row("RATE_LIMITED", 429, locked_out, "Too many authentication attempts. Try again in 5 minutes"),
    Row("INTERNAL_ERROR", 500, broken_inside),
    Row("UNAVAILABLE", 503, without_a_database),
)


def test_no_row_of_the_table_is_left_out() -> None:
    assert {row.code for row in ROWS} == {problem.code for problem, _ in CATALOGUE}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.code} {row.message}".strip())
def test_each_row_of_the_error_table_is_answered_over_a_socket(live: Live, row: Row) -> None:
    answer = row.provoke(live)
    assert answer.status_code == row.status, answer.text
    body = answer.json()
    assert set(body) <= {"error", "message", "field", "status"}
    assert (body["error"], body["status"]) == (row.code, row.status)
    assert body["message"] == answer.headers["x-error"]
    assert row.message in ("", body["message"])
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Authorization" in answer.headers["Vary"]
    assert not re.search(r"\d", answer.headers.get("Server", ""))
    assert UUID4.fullmatch(answer.headers["x-error-id"])
    assert UUID4.fullmatch(answer.headers["X-Request-Id"])
    if row.status == 405:
        assert answer.headers["Allow"] == "POST"
    if row.status in (429, 503):
        assert 1 <= int(answer.headers["Retry-After"]) <= 300
    if row.code == "MISSING_TENANT":
        assert "WWW-Authenticate" not in answer.headers
    challenges = {
        "UNAUTHENTICATED": "Bearer",
        "INVALID_TOKEN": 'Bearer error="invalid_token"',
        "TOKEN_EXPIRED": 'Bearer error="invalid_token"',
    }
    assert answer.headers.get("WWW-Authenticate") == challenges.get(row.code)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api/auth/v2/nowhere", "/admin/nowhere", "/user/token/", "/user/token/x", "/USER/TOKEN", "/"]
)
def test_what_is_nowhere_is_not_found_on_every_mount(live: Live, path: str) -> None:
    answer = live.get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "NOT_FOUND")
    assert answer.headers["x-error-id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD"])
@pytest.mark.parametrize("path", ["/application/token", "/oauth/token"])
def test_other_methods_are_told_the_right_one(live: Live, method: str, path: str) -> None:
    answer = live.call(method, path)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.headers["x-error-id"]
    assert answer.headers["X-Request-Id"]


def test_a_head_request_gets_the_headers_alone(live: Live) -> None:
    answer, full = live.call("HEAD", "/health/live"), live.get("/health/live")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == full.headers["Content-Length"]


def test_no_cache_keeps_what_was_answered_to_one(live: Live) -> None:
    # Row 27.
    ada, feed = a_user(live.rt), an_application(live.rt)
    answers = [
        login(live, ada.email, ada.password),
        live.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}),
        verify(live, "?tenant=optional", bearer=a_token(live.rt, ada)),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert {"Authorization", "Origin"} <= {name.strip() for name in answer.headers["Vary"].split(",")}


# One occurrence, one id: in the answer, the log, the audit and the explanation.


def test_the_ids_of_the_answer_the_log_the_audit_and_the_explanation_agree(live: Live) -> None:
    ada = a_user(live.rt)
    answer = live.call(
        "POST",
        "/user/token",
        json={"email": ada.email, "password": "hunter2hunter2"},
        headers={"X-Request-Id": "trace-77"},
    )
    error_id = answer.headers["x-error-id"]
    assert answer.headers["X-Request-Id"] == "trace-77"
    with live.rt.database.reading() as session:
        row = session.scalars(select(AuditEvent).where(AuditEvent.error_id == error_id)).one()
        assert (row.action, row.actor, row.request_id) == ("login.failed", ada.id, "trace-77")
    (event,) = audit.search(live.rt, actor=ada.id, action="login.failed")
    assert event.genuine
    assert event.error_id == error_id
    line = logged(live, error_id)
    assert (line["requestID"], line["route"], line["status"], line["error"]) == (
        "trace-77",
        "POST /user/token",
        401,
        "INVALID_CREDENTIALS",
    )
    told = explained(live, error_id)
    assert (told.error, told.request_id, told.route, told.status) == (
        "INVALID_CREDENTIALS",
        "trace-77",
        "POST /user/token",
        401,
    )
    assert told.detail == "wrong password"
    assert "hunter2" not in live.log.read_text()


def test_each_occurrence_has_an_id_of_its_own(live: Live) -> None:
    seen = {live.get("/nowhere").headers["x-error-id"] for _ in range(20)}
    assert len(seen) == 20


def test_a_fault_of_ours_is_logged_with_its_id_and_told_to_nobody(live: Live) -> None:
    answer = broken_inside(live)
    assert answer.json() == {"error": "INTERNAL_ERROR", "message": "Something went wrong on our side", "status": 500}
    assert logged(live, answer.headers["x-error-id"])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        traced = [
            line
            for line in live.log.read_text().splitlines()
            if answer.headers["x-error-id"] in line and "trace" in line
        ]
        if traced:
            break
        time.sleep(0.05)
    assert json.loads(traced[0])["exception"] == "JSONDecodeError"
    assert "no JSON" not in traced[0], "where it happened, never the values"


def logged(live: Live, error_id: str) -> dict[str, object]:
    """The request line of this occurrence, once it is written."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for text_ in live.log.read_text().splitlines():
            if error_id in text_:
                line: dict[str, object] = json.loads(text_)
                if line["event"] == "request":
                    return line
        time.sleep(0.05)
    raise AssertionError(f"{error_id} is not in the log")


def explained(live: Live, error_id: str) -> explain.Explanation:
    """The explanation of this occurrence, once the background loop has written it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(Refused):
            return explain.get(live.rt, error_id)
        time.sleep(0.05)
    raise AssertionError(f"{error_id} cannot be explained")


def test_a_database_that_goes_away_under_a_connection_is_503_and_comes_back(live: Live) -> None:
    if live.rt.database.is_sqlite:
        return  # It has no connection to lose; its lock is the row above.
    ada = a_user(live.rt)
    assert login(live, ada.email, ada.password).status_code == 200
    url = live.rt.database.url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as root:
        name = live.rt.database.url.database
        root.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')  # type: ignore[arg-type]
        root.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        answers = [login(live, ada.email, ada.password) for _ in range(3)]
        root.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')  # type: ignore[arg-type]
    assert [answer.status_code for answer in answers] == [503] * 3
    assert {answer.json()["error"] for answer in answers} == {"UNAVAILABLE"}
    assert login(live, ada.email, ada.password).status_code == 200


def test_a_refusal_in_process_is_the_refusal_on_the_wire(web: Web) -> None:
    answer = web.get("/nowhere")
    assert answer.json == {"error": "NOT_FOUND", "message": errors.NOT_FOUND.message, "status": 404}
