"""Group C over a real server: the seed's conversation with real mail, races for one code, and revocation seen by every process."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller

from identity.core.proofs.codes import Code
from tests.builders import a_session, a_user
from tests.conftest import BACKENDS, fresh_database
from tests.faults.rig import rounds
from tests.world import Live, code_in, free_port, start_live

ACKNOWLEDGED = {"message": "acknowledged"}


class Sink:
    """An SMTP server that keeps what it is given."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())
        self._controller.start()
        self.url = f"smtp://127.0.0.1:{self._controller.port}"

    async def handle_DATA(  # noqa: N802 -- aiosmtpd calls it so
        self, _server: Any, _session: Any, envelope: Any
    ) -> str:
        self.recipients.append(envelope.rcpt_tos)
        self.mails.append(BytesParser(EmailMessage, policy=SMTP).parsebytes(envelope.content))
        return "250 OK"

    def stop(self) -> None:
        self._controller.stop()

    def newest_to(self, address: str, *, seconds: float = 10) -> EmailMessage:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [mail for mail in self.mails if address in str(mail["To"])]
            if found:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no mail to {address}")


@pytest.fixture(params=BACKENDS, scope="module")
def posted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Sink]]:
    """A server of two processes whose mail goes to a real SMTP server."""
    folder, sink = tmp_path_factory.mktemp("posted"), Sink()
    try:
        with start_live(folder, fresh_database(request.param, folder), {"mail_url": sink.url}, workers=2) as service:
            yield service, sink
    finally:
        sink.stop()


def converse(service: Live, mount: str, address: str, take_code: Callable[[str], str], *, alias: str) -> dict[str, Any]:
    """The seed's conversation, from registering to leaving; each step's answer is what the next one sends."""
    call = service.call
    registered = call("POST", f"{mount}/user", json={"email": address, "fullName": "John Doe", "alias": alias}).json()
    code = take_code(address)
    verification = {"verificationCodeID": registered["verificationCodeID"], "code": code}
    assert call("PUT", f"{mount}/session/verification", json=verification).json() == ACKNOWLEDGED
    asked = call("POST", f"{mount}/session", json={"email": address})
    assert asked.status_code == 202, asked.text
    session = asked.json()
    refused = call("GET", f"{mount}/session", bearer=session["bearer"])
    assert refused.status_code == 401
    assert refused.headers["x-error"] == refused.json()["message"]
    assert refused.headers["x-error-id"]
    verification = {"verificationCodeID": session["verificationCodeID"], "code": take_code(address)}
    assert call("PUT", f"{mount}/session/verification", json=verification).json() == ACKNOWLEDGED
    bearer = session["bearer"]
    seen = call("GET", f"{mount}/session", bearer=bearer)
    assert (seen.status_code, seen.json()["alias"]) == (200, alias)
    made = call("POST", f"{mount}/keypair", bearer=bearer, json={"name": "Example", "days": 365}).json()
    verification = {"verificationCodeID": made["verificationCodeID"], "code": take_code(address)}
    assert call("PUT", f"{mount}/keypair/verification", json=verification).json() == ACKNOWLEDGED
    key = {"api-key": made["apiKey"], "api-secret": made["apiSecret"]}
    checked = call("GET", f"{mount}/keypair", headers=key)
    assert (checked.status_code, checked.json()["userAlias"]) == (200, alias)
    second = f"second.{address}"
    added = call("POST", f"{mount}/email", bearer=bearer, json={"address": second}).json()
    verification = {"verificationCodeID": added["verificationCodeID"], "code": take_code(second)}
    assert call("PUT", f"{mount}/email/verification", json=verification).json() == ACKNOWLEDGED
    listed = call("GET", f"{mount}/emails", bearer=bearer).json()["emails"]
    assert [(each["address"], each["verified"], each["preferred"]) for each in listed] == [
        (address, True, True),
        (second, True, False),
    ]
    assert call("PUT", f"{mount}/session/extend", bearer=bearer).json() == ACKNOWLEDGED
    assert call("GET", f"{mount}/user/id/{seen.json()['userID']}", headers=key).json() == {"alias": alias}
    assert call("DELETE", f"{mount}/keypair/{made['keyID']}", bearer=bearer).json() == ACKNOWLEDGED
    assert call("GET", f"{mount}/keypair", headers=key).status_code == 401
    assert call("DELETE", f"{mount}/session/{session['sessionID']}", bearer=bearer).json() == ACKNOWLEDGED
    assert call("GET", f"{mount}/session", bearer=bearer).status_code == 401
    return session


def codes_of(read: Callable[[str], list[EmailMessage]]) -> Callable[[str], str]:
    """A reader of codes that waits for a mail to the address which it has not returned yet."""
    used: set[str] = set()

    def take(address: str) -> str:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for mail in read(address):
                if mail["Message-ID"] not in used and "ode" in mail.get_body(("plain",)).get_content():
                    used.add(mail["Message-ID"])
                    with_code = code_or_none(mail)
                    if with_code is not None:
                        return with_code
            time.sleep(0.02)
        raise AssertionError(f"no new code for {address}")

    return take


def code_or_none(mail: EmailMessage) -> str | None:
    try:
        return code_in(mail)
    except AssertionError:
        return None


@pytest.mark.parametrize("mount", ["", "/api/auth/v2"])
def test_the_seed_conversation_with_mail_in_files(live: Live, mount: str) -> None:
    take = codes_of(lambda address: [mail for mail in live.mails() if mail["To"] == address])
    converse(live, mount, f"john{len(mount)}@doe.example", take, alias=f"johnny{len(mount)}")


@pytest.mark.parametrize("mount", ["", "/api/auth/v2"])
def test_the_seed_conversation_with_mail_over_smtp(posted: tuple[Live, Sink], mount: str) -> None:
    service, sink = posted
    take = codes_of(lambda address: [mail for mail in list(sink.mails) if mail["To"] == address])
    converse(service, mount, f"jane{len(mount)}@doe.example", take, alias=f"janey{len(mount)}")
    assert {len(each) for each in sink.recipients} == {1}


def test_a_mail_leaves_within_a_second(posted: tuple[Live, Sink]) -> None:
    service, sink = posted
    ada = a_user(service.rt)
    started = time.monotonic()
    service.post("/session", {"email": ada.email})
    sink.newest_to(ada.email)
    # Half a second of polling and the way; the rest is for a machine that is busy with other tests.
    assert time.monotonic() - started < 2.5


def race(service: Live, body: dict[str, str], *, tries: int) -> Counter[tuple[int, str]]:
    """What `tries` submissions of `body` at once are answered."""
    barrier = threading.Barrier(tries)

    def submit(_: int) -> tuple[int, str]:
        barrier.wait()
        answer = requests.put(f"{service.url}/session/verification", json=body, timeout=60)
        return answer.status_code, answer.json().get("error", "")

    with ThreadPoolExecutor(tries) as pool:
        return Counter(pool.map(submit, range(tries)))


def ask_and_read(service: Live, sink: Sink) -> dict[str, str]:
    """A session that waits, and the right code for it."""
    ada = a_user(service.rt)
    asked = service.post("/session", {"email": ada.email}).json()
    return {"verificationCodeID": asked["verificationCodeID"], "code": code_in(sink.newest_to(ada.email))}


def test_of_fifty_right_submissions_at_once_one_succeeds(posted: tuple[Live, Sink]) -> None:
    """`IDENTITY_FAULT_ROUNDS=200` is the long form."""
    service, sink = posted
    for _ in range(rounds(3)):
        outcome = race(service, ask_and_read(service, sink), tries=50)
        assert outcome[202, ""] == 1, outcome
        assert set(outcome) <= {(202, ""), (401, "INVALID_CODE")}, outcome


def test_of_two_hundred_wrong_submissions_at_once_five_are_looked_at(posted: tuple[Live, Sink]) -> None:
    service, sink = posted
    body = ask_and_read(service, sink)
    bad = body | {"code": f"{(int(body['code']) + 1) % 1_000_000:06d}"}
    outcome = race(service, bad, tries=200)
    assert set(outcome) <= {(401, "INVALID_CODE"), (429, "RATE_LIMITED")}, outcome
    with service.rt.database.reading() as session:
        assert session.get(Code, body["verificationCodeID"]).attempts == 5


def test_revoking_is_seen_by_the_next_request_of_any_process(posted: tuple[Live, Sink]) -> None:
    service, _ = posted
    ada = a_user(service.rt)
    for _ in range(10):
        opened = a_session(service.rt, ada)
        bearer = opened.bearer.reveal()
        # New connections each time, so that both processes have known the session before it ends.
        assert {service.get("/session", bearer=bearer).status_code for _ in range(8)} == {200}
        assert service.call("DELETE", f"/session/{opened.session.id}", bearer=bearer).status_code == 202
        assert {service.get("/session", bearer=bearer).status_code for _ in range(8)} == {401}


def test_known_unknown_and_disabled_addresses_take_the_same_time(posted: tuple[Live, Sink]) -> None:
    service, _ = posted
    count, taken = 40, {"known": [], "unknown": [], "disabled": []}
    known = [a_user(service.rt).email for _ in range(count)]
    disabled = [a_user(service.rt, enabled=False).email for _ in range(count)]
    with requests.Session() as connection:
        for number in range(count):
            addresses = {
                "known": known[number],
                "unknown": f"nobody{number}@acme.example",
                "disabled": disabled[number],
            }
            for kind, address in addresses.items():
                started = time.perf_counter()
                answer = connection.post(f"{service.url}/session", json={"email": address}, timeout=30)
                taken[kind].append(time.perf_counter() - started)
                assert answer.status_code == 202
    medians = {kind: statistics.median(times) for kind, times in taken.items()}
    spread = statistics.median(abs(each - medians["known"]) for each in taken["known"])
    for kind in ("unknown", "disabled"):
        assert abs(medians[kind] - medians["known"]) < max(3 * spread, 0.003), (medians, spread)


def test_hot_routes_answer_the_same_below_flask_and_in_it(live: Live) -> None:
    ada = a_user(live.rt)
    bearer = a_session(live.rt, ada).bearer.reveal()
    hot = live.get("/session", bearer=bearer)
    assert hot.status_code == 200
    assert hot.json() == live.get("/api/auth/v2/session", bearer=bearer).json()
    for bad in ("", "x", bearer[:-1]):
        answer = live.get("/session", bearer=bad) if bad else live.get("/session")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers["x-error-id"]


@pytest.mark.parametrize("name", ["x\u2713", "a\r\nb", "\x0b", "\ud800"])
def test_hostile_text_never_breaks_an_answer(live: Live, name: str) -> None:
    bearer = a_session(live.rt, a_user(live.rt)).bearer.reveal()
    answer = live.call("POST", "/keypair", bearer=bearer, json={"name": name, "days": 1})
    assert answer.status_code in (202, 400)
    assert answer.headers.get("x-error", "").isascii()


def test_mails_are_written_where_the_operator_said(live: Live) -> None:
    ada = a_user(live.rt)
    live.post("/session", {"email": ada.email})
    mail = live.wait_for_mail(ada.email)
    assert mail["From"] == "identity@localhost"
    assert Path(live.folder / "mail").stat().st_mode & 0o777 == 0o700
