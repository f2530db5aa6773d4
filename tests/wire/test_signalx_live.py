"""The seed's GraphQL conversation as its curl examples have it: over a socket, with a code from a real mail."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.builders import a_user
from tests.wire.test_signalx import EXCESSIVE, LOGIN, OTP
from tests.world import Live, code_in


def test_the_seeds_conversation(live: Live) -> None:
    john = a_user(live.rt, email="john.doe@company.example", alias="john.doe", full_name="John Doe")
    first = live.post(
        "/query",
        json={
            "operationName": "Login",
            "query": LOGIN,
            "variables": {"username": john.email, "password": john.password, "appId": 10},
        },
    )
    assert first.status_code == 200, first.text
    login = first.json()["data"]["login"]
    assert (login["code"], login["message"]) == ("OK", "Session ID creation successful")
    code = code_in(live.wait_for_mail(john.email))
    second = live.post(
        "/query",
        json={
            "operationName": "OTP",
            "query": OTP,
            "variables": {"appId": 10, "otp": code, "sessionID": login["sessionID"]},
        },
    )
    assert second.status_code == 200, second.text
    otp = second.json()["data"]["otp"]
    assert (otp["code"], otp["message"]) == ("OK", "Token created successfully")
    assert otp["userDetails"] == {
        "username": "john.doe",
        "firstName": "John",
        "lastName": "Doe",
        "email": "john.doe@company.example",
    }
    assert live.get("/auth/me", bearer=otp["token"]).json()["userID"] == john.id


def test_of_many_right_answers_at_once_one_gets_a_token(live: Live) -> None:
    ada = a_user(live.rt)
    variables = {"username": ada.alias, "password": ada.password}
    session_id = live.post("/query", json={"query": LOGIN, "variables": variables}).json()["data"]["login"]["sessionID"]
    code = code_in(live.wait_for_mail(ada.email))

    def answer(_: int) -> str:
        body = {"query": OTP, "variables": {"otp": code, "sessionID": session_id}}
        reply = live.post("/query", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["data"]["otp"]["code"])

    with ThreadPoolExecutor(10) as pool:
        codes = list(pool.map(answer, range(20)))
    assert codes.count("OK") == 1
    assert set(codes) <= {"OK", "INVALID_CODE", "RATE_LIMITED"}


def test_an_excessive_document_is_refused_by_the_server_too(live: Live) -> None:
    for name, document in EXCESSIVE.items():
        answer = live.post("/query", json={"query": document})
        assert answer.status_code == 400, name
        assert answer.json()["errors"][0]["message"].startswith(answer.headers["x-error"]), name


def test_a_body_over_8_kib_is_413(live: Live) -> None:
    answer = live.post("/query", json={"query": "{ service }" + " " * 8192})
    assert answer.status_code == 413
    assert answer.json() == {"errors": [{"message": "The request body is too large"}]}


def test_get_is_405(live: Live) -> None:
    answer = live.get("/query?query=%7Bservice%7D")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
