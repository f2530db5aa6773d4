"""The conformance run: what it says of a careless service, of a guarded one, and of one that it cannot judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from identity_verifier import Refused, conformance
from identity_verifier.conformance import Attempt, Verdict, attempts, attempts_of_testkit, judge
from identity_verifier.testing import Issuer, Token
from identity_verifier.testing.serving import listening
from identity_verifier.transport import Request, Response
from services import SERVICES, Client, over_wsgi

TENANT = "acme-bank"


def careless() -> Client:
    """What is written on a Friday: it reads the token, and believes it."""
    from flask import Flask, request

    app = Flask("careless")

    @app.get("/plain")
    def plain() -> Any:
        try:
            token = request.headers["Authorization"].split()[-1].split(",")[0]
            claims = jwt.decode(token, options={"verify_signature": False})
        except (KeyError, IndexError, jwt.PyJWTError):
            return {"error": "no"}, 401
        return {"hello": claims.get("sub")}

    return over_wsgi(app)


def sender(service: Client, path: str) -> conformance.Sender:
    def send(attempt: Attempt) -> tuple[int, dict[str, str]]:
        answered = service(f"{path}?{attempt.query}", attempt.headers)
        return answered.status, answered.headers

    return send


def everything(issuer: Issuer, token: Token) -> list[Attempt]:
    testkit = {"good": [{"name": "a second", "token": issuer.user_token(tenants={TENANT: ["analyst"]})}], "bad": [
        {"name": name, "token": bad} for name, bad in issuer.signed_bad_tokens().items()
    ]}  # fmt: skip
    tried = attempts(token, issuer.keys[-1].jwk, tenant=TENANT)
    return [*tried, *attempts_of_testkit(testkit, tenant=TENANT)]


@pytest.fixture
def token(issuer: Issuer) -> Token:
    return issuer.user_token(tenants={TENANT: ["analyst"]})


def test_a_careless_service_lets_in_more_than_forty(issuer: Issuer, token: Token) -> None:
    alone = judge(sender(careless(), "/plain"), attempts(token, issuer.keys[-1].jwk))
    assert sum(each.verdict is Verdict.LET_IN for each in alone) >= 40
    outcomes = judge(sender(careless(), "/plain"), everything(issuer, token))
    assert sum(each.verdict is Verdict.LET_IN for each in outcomes) >= 60
    assert outcomes[0].verdict is Verdict.RIGHT
    assert "LET IN (200): expired" in conformance.report(outcomes)


@pytest.mark.parametrize("name", SERVICES)
def test_every_guard_passes(issuer: Issuer, token: Token, name: str) -> None:
    service = SERVICES[name](issuer.verifier(client=issuer.client))
    outcomes = judge(sender(service, "/reports"), everything(issuer, token))
    assert [each for each in outcomes if each.verdict is not Verdict.RIGHT] == []
    assert sum(not each.attempt.good for each in outcomes) >= 90
    assert "bad requests were refused; 2 good ones" in conformance.report(outcomes)


def test_the_attempts_are_no_good_tokens_and_have_names_of_their_own(issuer: Issuer, token: Token) -> None:
    tried = [each for each in everything(issuer, token) if not each.good]
    assert len({each.name for each in tried}) == len(tried)
    assert "eyJ" not in repr(tried)


def test_a_service_that_breaks_has_not_refused(issuer: Issuer, token: Token) -> None:
    outcomes = judge(lambda attempt: (200 if attempt.good else 500, {}), attempts(token, issuer.keys[-1].jwk))
    assert {each.verdict for each in outcomes if not each.attempt.good} == {Verdict.BROKE}


@pytest.fixture
def live(issuer: Issuer) -> Iterator[tuple[Issuer, str, list[Request]]]:
    """An issuer and a guarded service behind sockets."""
    asked: list[Request] = []
    with issuer.serve():
        verifier = issuer.verifier(transport=None)

        def service(request: Request) -> Response:
            asked.append(request)
            headers = {name.lower(): value for name, value in request.headers.items()}
            try:
                verifier.verify(headers.get("authorization"))
            except Refused as refused:
                return Response(refused.status, {}, b"")
            return Response(200, {}, b"{}")

        with listening(service) as url:
            yield issuer, url, asked
        verifier.close()


def test_the_command_says_good(live: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    issuer, url, _ = live
    testkit = tmp_path / "testkit.json"
    bad = [{"name": name, "token": bad} for name, bad in issuer.signed_bad_tokens().items()]
    testkit.write_text(json.dumps({"good": [], "bad": bad}))
    arguments = [url, "--token", issuer.user_token(), "--token", issuer.user_token(), "--testkit", str(testkit)]
    assert conformance.main([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {each["verdict"] for each in shown} == {"right"}
    assert sum(not each["good"] for each in shown) > 90


def test_the_command_says_bad(live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    issuer, _, _ = live

    with listening(lambda _request: Response(200, {}, b"{}")) as url:
        assert conformance.main([url + "/x?a=b", "--token", issuer.user_token(), "--header", "X-A: b"]) == 1
    said = capsys.readouterr().out
    assert "LET IN (200): no credential" in said
    assert said.splitlines()[-1].startswith("0 of ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["{url}", "--token", "nonsense"], "no signed access token"),
        (["{url}", "--token", "{token}", "--jwks", "http://127.0.0.1:1/"], "no keys from"),
        (["{url}", "--token", "{token}", "--testkit", "/nonexistent"], "cannot be read"),
        (["{url}", "--token", "{token}", "--header", "x"], "--header wants"),
        (["nowhere", "--token", "{token}"], "not an address"),
        (["{url}", "--token", "{expired}"], "refuses every good token"),
    ],
)
def test_what_cannot_be_judged_is_neither_good_nor_bad(
    live: Any, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer, url, _ = live
    filled = [each.format(url=url, token=issuer.user_token(), expired=issuer.expired_token()) for each in arguments]
    assert conformance.main(filled) == 2
    assert why in capsys.readouterr().err


def test_a_testkit_of_another_form_is_told() -> None:
    with pytest.raises(conformance.CannotJudge, match="no testkit"):
        list(attempts_of_testkit({"good": [1], "bad": []}))


def test_too_many_requests_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(conformance.time, "sleep", paused.append)
    answers = [Response(429, {"Retry-After": "3"}, b""), Response(200, {}, b"")]
    with listening(lambda _request: answers.pop(0)) as url:
        send = conformance.http_sender(url, method="POST")
        assert send(Attempt("x", []))[0] == 200
    assert paused == [3]
