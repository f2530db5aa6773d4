"""Mail is as sure as the deed it tells of, leaves once, and leaves nothing behind."""

import email
import email.policy
import functools
import pathlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
import sqlalchemy

from identity.ambient import Origin
from identity.core.mail import letters, outbox
from identity.core.mail.letters import Template
from identity.errors import INVALID_CODE, NOT_FOUND, UNAVAILABLE, Refused
from identity.instruments.transports import FileMailer
from identity.runtime import Runtime
from identity.storage import Contention
from tests import servers
from tests.core.mail_world import ORIGIN, START, World, fresh_url, opened, runtime

ADA = "ada@example.com"
CODE = {"code": "012345", "verification_id": "0", "until": START}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[], servers.Postgres]]:
    started = functools.cache(servers.start_postgres)
    yield started
    if started.cache_info().currsize:
        started().stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path, postgres: Callable[[], servers.Postgres]) -> str:
    return fresh_url(request.param, tmp_path, postgres)


@pytest.fixture
def world(url: str) -> Iterator[World]:
    with opened(url) as world:
        yield world


@pytest.fixture
def sqlite(tmp_path: pathlib.Path) -> Iterator[World]:
    with opened(f"sqlite:///{tmp_path}/identity.db") as world:
        yield world


def queue(world: World, template: Template = Template.SESSION_CODE, **values: object) -> str:
    expires_at = values.pop("expires_at", None)
    with world.rt.unit(ORIGIN) as unit:
        return outbox.queue(world.rt, unit, template, to=ADA, values=values or CODE, expires_at=expires_at)


def state_of(world: World, mail_id: str) -> str:
    return next(mail.state for mail in world.rows() if mail.id == mail_id)


def sealed_of(world: World, mail_id: str) -> bytes:
    with world.rt.database.reading() as session:
        return session.get_one(outbox.Mail, mail_id).sealed


# --- Queued with the deed ---------------------------------------------------------------------------------------------


def test_a_queued_mail_is_delivered_once_and_its_body_is_erased(world: World) -> None:
    mail_id = queue(world)
    assert sealed_of(world, mail_id) != b""
    assert outbox.deliver_due(world.rt) == 1
    assert outbox.deliver_due(world.rt) == 0
    assert [mail["To"] for mail in world.mailbox.mails] == [ADA]
    assert sealed_of(world, mail_id) == b""
    [info] = world.rows()
    assert (info.state, info.attempts, info.last_error, info.sent_at) == ("sent", 1, "", START)


def test_a_rollback_takes_the_mail_with_it(world: World) -> None:
    def deed() -> None:
        with world.rt.unit(ORIGIN) as unit:
            outbox.queue(world.rt, unit, Template.SESSION_CODE, to=ADA, values=CODE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        deed()
    assert world.rows() == []
    assert outbox.deliver_due(world.rt) == 0


def test_a_refusal_that_keeps_writes_keeps_the_mail(world: World) -> None:
    def deed() -> None:
        with world.rt.unit(ORIGIN) as unit:
            outbox.queue(world.rt, unit, Template.SESSIONS_ENDED, to=ADA, values={})
            raise Refused(INVALID_CODE)

    with pytest.raises(Refused):
        deed()
    assert outbox.deliver_due(world.rt) == 1


def test_a_mail_is_not_visible_to_delivery_before_its_commit(sqlite: World) -> None:
    with sqlite.rt.unit(ORIGIN) as unit:
        outbox.queue(sqlite.rt, unit, Template.SESSION_CODE, to=ADA, values=CODE)
        assert outbox.deliver_due(sqlite.rt) == 0
    assert outbox.deliver_due(sqlite.rt) == 1


def test_the_body_at_rest_does_not_show_the_code(world: World) -> None:
    mail_id = queue(world)
    assert b"012345" not in sealed_of(world, mail_id)
    assert b"012345" not in repr(world.rows()).encode()


def test_a_body_that_was_moved_to_another_row_does_not_open(world: World) -> None:
    first, second = queue(world), queue(world)
    with world.rt.unit(ORIGIN) as unit:
        unit.execute(
            sqlalchemy.update(outbox.Mail).where(outbox.Mail.id == second).values(sealed=sealed_of(world, first))
        )
    outbox.deliver_due(world.rt)
    assert (state_of(world, first), state_of(world, second)) == ("sent", "dead")
    assert [mail.last_error for mail in world.rows() if mail.id == second] == ["unsealable"]


def test_a_void_mail_is_never_sent_and_names_nobody(world: World) -> None:
    with world.rt.unit(ORIGIN) as unit:
        outbox.queue_void(world.rt, unit, Template.SESSION_CODE, values=CODE)
    world.clock.tick(3600)
    assert outbox.deliver_due(world.rt) == 0
    assert outbox.list_mails(world.rt) == []
    assert [mail.recipient for mail in world.rows()] == [""]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "a\r\nBcc: x@b.co",
        '"a\r\nBcc: x"@b.co',
        '"a b"@b.co',
        "a@b.co, c@d.co",
        "a@b.co\n",
        "a@[127.0.0.1]",
        "á@b.co",
        "a＠evil.com@x.com",
        "a@b..co",
        ".a@b.co",
        "a@" + "b" * 300 + ".co",
    ],
)
def test_a_recipient_that_is_no_normalised_address_is_a_fault(sqlite: World, address: str) -> None:
    with pytest.raises(ValueError, match="normalised"), sqlite.rt.unit(ORIGIN) as unit:
        outbox.queue(sqlite.rt, unit, Template.SESSION_CODE, to=address, values=CODE)


# --- Retries ----------------------------------------------------------------------------------------------------------


def test_a_refused_mail_waits_longer_each_time_and_then_goes(world: World) -> None:
    mail_id = queue(world)
    world.mailbox.refuse()
    pauses = []
    for _ in range(14):
        outbox.deliver_due(world.rt)
        [info] = world.rows()
        pauses.append((info.next_at - world.clock.now()).total_seconds())
        world.clock.tick(pauses[-1])
    bases = [min(5 * 2**n, 3600) for n in range(14)]
    assert all(base <= pause <= min(base * 1.2, 3600) for base, pause in zip(bases, pauses, strict=True))
    world.mailbox.accept()
    assert outbox.deliver_due(world.rt) == 1
    assert state_of(world, mail_id) == "sent"


def test_a_mail_is_not_tried_before_its_time(world: World) -> None:
    queue(world)
    world.mailbox.refuse()
    outbox.deliver_due(world.rt)
    [info] = world.rows()
    wait = (info.next_at - world.clock.now()).total_seconds()
    world.mailbox.accept()
    world.clock.tick(wait - 0.000001)
    assert outbox.deliver_due(world.rt) == 0
    world.clock.tick(0.000001)
    assert outbox.deliver_due(world.rt) == 1


def test_the_reason_kept_is_the_kind_of_error_and_never_its_text(world: World) -> None:
    queue(world)
    world.mailbox.refuse()
    outbox.deliver_due(world.rt)
    assert [mail.last_error for mail in world.rows()] == ["SMTPRecipientsRefused 451"]


def test_a_mail_is_given_up_after_a_day_and_ten_attempts(world: World) -> None:
    mail_id = queue(world)
    world.mailbox.refuse()
    seen = []
    while state_of(world, mail_id) == "pending":
        outbox.deliver_due(world.rt)
        [info] = world.rows()
        seen.append((world.clock.now() - START).total_seconds())
        world.clock.tick(max(0, (info.next_at - world.clock.now()).total_seconds()))
    assert len(seen) >= outbox.MIN_ATTEMPTS
    assert seen[-2] < outbox.GIVE_UP_SECONDS <= seen[-1]
    assert outbox.deliver_due(world.rt) == 0


def test_a_day_in_which_nothing_ran_gives_no_mail_up(world: World) -> None:
    mail_id = queue(world)
    world.clock.tick(5 * 86_400)
    world.mailbox.refuse()
    outbox.deliver_due(world.rt)
    assert state_of(world, mail_id) == "pending"


def test_one_mail_that_cannot_be_sent_does_not_stop_the_others(world: World) -> None:
    bad = queue(world)
    world.clock.tick(1)
    good = queue(world)

    def fail_once() -> None:
        world.mailbox.accept()
        raise RuntimeError("a fault of the mailer itself")

    world.mailbox.fail = fail_once
    assert outbox.deliver_due(world.rt) == 2
    assert (state_of(world, bad), state_of(world, good)) == ("pending", "sent")


@pytest.mark.parametrize(("seconds", "state"), [(599, "sent"), (600, "dead"), (601, "dead")])
def test_a_mail_whose_code_expired_is_not_sent(world: World, seconds: int, state: str) -> None:
    mail_id = queue(world, **CODE, expires_at=START + timedelta(seconds=600))
    world.clock.tick(seconds)
    outbox.deliver_due(world.rt)
    assert state_of(world, mail_id) == state
    assert sealed_of(world, mail_id) == b""
    assert len(world.mailbox.mails) == (state == "sent")


def test_a_dead_mail_can_be_tried_again(world: World) -> None:
    mail_id = queue(world)
    with world.rt.unit(ORIGIN) as unit:
        unit.execute(sqlalchemy.update(outbox.Mail).values(state="dead", attempts=40))
    assert outbox.deliver_due(world.rt) == 0
    with world.rt.unit(ORIGIN) as unit:
        assert outbox.retry(unit, mail_id) == 1
    assert outbox.deliver_due(world.rt) == 1
    assert state_of(world, mail_id) == "sent"


def test_all_that_waits_can_be_hastened(world: World) -> None:
    queue(world)
    queue(world)
    world.mailbox.refuse()
    outbox.deliver_due(world.rt)
    world.mailbox.accept()
    with world.rt.unit(ORIGIN) as unit:
        assert outbox.retry(unit) == 2
    assert outbox.deliver_due(world.rt) == 2


def test_a_mail_without_a_body_cannot_be_tried_again(world: World) -> None:
    mail_id = queue(world)
    outbox.deliver_due(world.rt)
    for unknown in (mail_id, "nonsense"):
        with pytest.raises(Refused) as refused, world.rt.unit(ORIGIN) as unit:
            outbox.retry(unit, unknown)
        assert refused.value.problem == NOT_FOUND


# --- Claims -----------------------------------------------------------------------------------------------------------


def test_two_processes_at_once_send_each_mail_once(world: World, url: str) -> None:
    ids = {queue(world) for _ in range(20)}

    def deliver(rt: Runtime) -> None:
        outbox.deliver_due(rt, limit=100)
        rt.database.close()  # here, because connections are kept by thread

    threads = [threading.Thread(target=deliver, args=(runtime(url, world.clock, world.mailbox),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox.deliver_due(world.rt)
    sent = [re.match("<(.+)@", mail["Message-ID"])[1] for mail in world.mailbox.mails]
    assert sorted(sent) == sorted(ids)


def test_a_claimed_mail_is_left_alone_until_the_claim_runs_out(world: World) -> None:
    mail_id = queue(world)
    assert outbox._claim(world.rt) is not None
    assert outbox.deliver_due(world.rt) == 0
    world.clock.tick(outbox.CLAIM_SECONDS - 0.000001)
    assert outbox.deliver_due(world.rt) == 0
    world.clock.tick(0.000001)
    assert outbox.deliver_due(world.rt) == 1
    assert state_of(world, mail_id) == "sent"


def test_a_failure_under_a_lost_claim_does_not_disturb_the_new_holder(world: World) -> None:
    queue(world)
    slow = outbox._claim(world.rt)
    world.clock.tick(outbox.CLAIM_SECONDS)
    quick = outbox._claim(world.rt)
    assert slow is not None
    assert quick is not None
    outbox._postpone(world.rt, slow, "TimeoutError")
    with world.rt.database.reading() as session:
        assert session.get_one(outbox.Mail, quick.id).claimed_until == quick.claimed_until
    outbox._note_sent(world.rt, quick)
    outbox._postpone(world.rt, slow, "TimeoutError")
    assert [mail.state for mail in world.rows()] == ["sent"]


_KILLED = """
import os, signal, sys
from identity.core.mail import outbox
from identity.instruments.transports import FileMailer
from tests.core.mail_world import HandClock, runtime

class Killer:
    def send(self, message):
        if sys.argv[3] == "after":
            FileMailer(__import__("pathlib").Path(sys.argv[2])).send(message)
        os.kill(os.getpid(), signal.SIGKILL)

outbox.deliver_due(runtime(sys.argv[1], HandClock(), Killer()))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_killed_around_sending_loses_no_mail(
    world: World, url: str, tmp_path: pathlib.Path, moment: str
) -> None:
    mail_id, folder = queue(world), tmp_path / "mail"
    command = [sys.executable, "-c", _KILLED, url, str(folder), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert state_of(world, mail_id) == "pending"
    assert len(list(folder.glob("*.eml"))) == (moment == "after")
    world.rt.mailer = FileMailer(folder)
    world.clock.tick(outbox.CLAIM_SECONDS)
    assert outbox.deliver_due(world.rt) == 1
    # The same name: in files, the duplicate is not even one.
    assert [mail_id in path.name for path in folder.glob("*.eml")] == [True]


# --- The loop ---------------------------------------------------------------------------------------------------------


def test_the_loop_delivers_within_a_second_and_stops_when_told(sqlite: World) -> None:
    arrived, stop = threading.Event(), threading.Event()
    sqlite.mailbox.fail = arrived.set
    loop = threading.Thread(target=outbox.deliver_until, args=(sqlite.rt, stop))
    loop.start()
    try:
        stop.wait(0.1)  # let it find nothing first
        queue(sqlite)
        assert arrived.wait(1)
    finally:
        stop.set()
        loop.join(2)
    assert not loop.is_alive()


def test_the_loop_survives_whatever_interrupts_it(sqlite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, stop, real = threading.Event(), threading.Event(), outbox.deliver_due
    failures = iter([Refused(UNAVAILABLE), Contention(), RuntimeError()])

    def flaky(*args: object, **options: object) -> int:
        for failure in failures:
            raise failure
        return real(*args, **options)

    monkeypatch.setattr(outbox, "deliver_due", flaky)
    monkeypatch.setattr(outbox, "POLL_SECONDS", 0.01)
    sqlite.mailbox.fail = arrived.set
    queue(sqlite)
    loop = threading.Thread(target=outbox.deliver_until, args=(sqlite.rt, stop))
    loop.start()
    try:
        assert arrived.wait(2)
    finally:
        stop.set()
        loop.join(2)


def test_looking_for_mail_takes_no_write_lock(sqlite: World) -> None:
    with sqlite.rt.unit(ORIGIN):
        assert outbox.deliver_due(sqlite.rt) == 0


def test_the_search_for_due_mail_uses_the_index_of_pending_ones(sqlite: World) -> None:
    sql, arrange, _ = outbox._DUE.compiled_for(sqlite.rt.database.engine.dialect)
    with sqlite.rt.database.reading() as session:
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", arrange({"now": START})).fetchall()
    assert "ix_mail_due" in str(plan)


# --- Keeping ----------------------------------------------------------------------------------------------------------


def test_old_mails_are_forgotten_and_pending_ones_stay(world: World) -> None:
    sent = queue(world)
    outbox.deliver_due(world.rt)
    pending = queue(world)
    with world.rt.unit(ORIGIN) as unit:
        outbox.queue_void(world.rt, unit, Template.SESSION_CODE, values=CODE)
    world.clock.tick(outbox.KEEP_SENT_SECONDS)
    with world.rt.unit(ORIGIN) as unit:
        assert outbox.purge(world.rt, unit) == 0
    world.clock.tick(1)
    with world.rt.unit(ORIGIN) as unit:
        assert outbox.purge(world.rt, unit) == 2
    assert sent not in {mail.id for mail in world.rows()}
    assert [mail.id for mail in world.rows()] == [pending]


def test_erasing_a_user_takes_every_mail_to_the_address(world: World) -> None:
    queue(world)
    outbox.deliver_due(world.rt)
    queue(world)
    with world.rt.unit(ORIGIN) as unit:
        assert outbox.forget(unit, "other@example.com") == 0
        assert outbox.forget(unit, ADA) == 2
    assert world.rows() == []


def test_bodies_are_sealed_anew_under_a_new_master_key(world: World) -> None:
    from identity.instruments.vault import Vault
    from tests.core.mail_world import MASTER_KEY

    mail_id = queue(world)
    world.rt.ring.vault = Vault((bytes(32), MASTER_KEY), world.rt.entropy)
    with world.rt.unit(ORIGIN) as unit:
        assert outbox.reseal(world.rt, unit) == 1
        assert outbox.reseal(world.rt, unit) == 0
    world.rt.ring.vault = Vault((bytes(32),), world.rt.entropy)
    outbox.deliver_due(world.rt)
    assert state_of(world, mail_id) == "sent"


def test_mails_are_listed_newest_first_by_state(world: World) -> None:
    first = queue(world)
    outbox.deliver_due(world.rt)
    world.clock.tick(1)
    second = queue(world)
    assert [mail.id for mail in outbox.list_mails(world.rt)] == [second, first]
    assert [mail.id for mail in outbox.list_mails(world.rt, outbox.State.SENT)] == [first]
    assert [mail.id for mail in outbox.list_mails(world.rt, limit=1)] == [second]


# --- What is in the envelope ------------------------------------------------------------------------------------------

VALUES: dict[str, str | datetime] = {
    "key_name": "build",
    "tenant": "Acme Bank",
    "address": "new@example.com",
    "change": "switched on",
    "found": "two tokens",
    "until": START,
}


def sent(world: World, template: Template, **values: str | datetime) -> email.message.EmailMessage:
    queue(world, template, **values)
    outbox.deliver_due(world.rt)
    raw = world.mailbox.mails[-1].as_bytes()
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 78
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    return message


def parts(message: email.message.EmailMessage) -> tuple[str, str]:
    plain, html = message.iter_parts()
    return plain.get_content(), html.get_content()


@pytest.mark.parametrize("template", Template)
def test_every_letter_says_who_asked_from_where_when_and_what_to_do(sqlite: World, template: Template) -> None:
    code = {"code": "012345"} if letters.LETTERS[template].has_code else {}
    message = sent(sqlite, template, **VALUES, **code, account="ada", by="Grace")
    assert "id.example.com" in message["Subject"]
    assert "012345" not in message["Subject"]
    for part in parts(message):
        for fact in (
            "Asked for by: Grace",
            "From: 203.0.113.9",
            "With: Browser/1.0",
            "At: 2026-11-01 12:00:00 UTC",
            "Account: ada",
        ):
            assert fact in part
        assert "If " in part
        assert part.count("012345") == len(code)
    # Whoever looks for a code, by eye or by machine, finds one.
    assert len(re.findall(r"\b[0-9]{6}\b", message.as_string())) == 2 * len(code)


def test_the_envelope_holds_what_the_standards_ask_for(sqlite: World) -> None:
    message = sent(sqlite, Template.SESSIONS_ENDED, account="ada")
    [info] = sqlite.rows()
    assert message["From"] == "Identity <identity@example.com>"
    assert message["To"] == ADA
    assert message["Message-ID"] == f"<{info.id}@example.com>"
    assert message["Date"].datetime == START
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


def test_a_duplicate_carries_the_same_message_id(world: World) -> None:
    queue(world)
    claimed = outbox._claim(world.rt)
    assert claimed is not None
    world.rt.mailer.send(outbox._message(world.rt, claimed))
    world.clock.tick(outbox.CLAIM_SECONDS)
    outbox.deliver_due(world.rt)
    first, second = world.mailbox.mails
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]


@pytest.mark.parametrize(
    "name", ["Eve\r\nBcc: x@evil.example", "Eve\nX: y", "Eve\x00\x0b\x85\u2028Bcc: x", "\u202eEve"]
)
def test_line_breaks_in_names_end_up_in_no_header(sqlite: World, name: str) -> None:
    message = sent(sqlite, Template.INVITATION, account=name, by=name)
    assert [key for key in message if key in ("Bcc", "X")] == []
    assert message["To"].addresses[0].addr_spec == ADA
    plain, _ = parts(message)
    assert not re.search("^(Bcc|X):", plain, re.MULTILINE)
    assert "\u202e" not in plain


def test_markup_in_a_strangers_words_is_escaped(sqlite: World) -> None:
    message = sent(sqlite, Template.KEYPAIR_ADDED, key_name="<img src=x onerror=alert(1)>", by="<b>&\"'")
    _, html = parts(message)
    assert "<img" not in html
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;&quot;&#x27;" in html


@pytest.mark.parametrize(
    "words", ["win at http://evil.com/x", "evil.com", "HTTPS://EVIL.COM", "ｅvil.ｃom", "www.evil.co.uk"]
)
def test_no_mail_program_finds_a_link_in_a_strangers_words(words: str) -> None:
    shown = letters.one_line(words)
    assert "://" not in shown
    assert not re.search(r"\w\.[^\W\d_]", shown)


def test_a_strangers_words_are_cut(sqlite: World) -> None:
    with sqlite.rt.unit(Origin(address="203.0.113.9", user_agent="x" * 100_000)) as unit:
        outbox.queue(sqlite.rt, unit, Template.SESSION_CODE, to=ADA, values=CODE)
    outbox.deliver_due(sqlite.rt)
    assert len(sqlite.mailbox.mails[-1].as_bytes()) < 5_000


def test_an_invitation_links_to_the_url_given(sqlite: World) -> None:
    message = sent(sqlite, Template.INVITATION, url="https://portal.example.com/welcome?a=1&b=2")
    plain, html = parts(message)
    assert "https://portal.example.com/welcome?a=1&b=2" in plain
    assert 'href="https://portal.example.com/welcome?a=1&amp;b=2"' in html


@pytest.mark.parametrize(
    ("template", "values"),
    [
        (Template.INVITATION, {"url": "javascript:alert(1)"}),
        (Template.INVITATION, {"url": "https://a.example/\r\nX: y"}),
        (Template.KEYPAIR_ADDED, {}),
        (Template.SESSION_CODE, {}),
        (Template.PASSWORD_CHANGED, {"code": "012345"}),
        (Template.PASSWORD_CHANGED, {"password": "x"}),
    ],
)
def test_values_that_do_not_fit_the_letter_are_a_fault(template: Template, values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"value|url"):
        letters.render(template, values, issuer="https://id.example.com", asked_at=START)


def test_a_code_does_not_show_in_the_repr_of_a_letter() -> None:
    letter = letters.render(Template.SESSION_CODE, {"code": "012345"}, issuer="https://id.example.com", asked_at=START)
    assert "012345" in letter.text
    assert "012345" not in repr(letter)
