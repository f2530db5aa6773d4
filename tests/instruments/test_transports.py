"""Mail leaves over SMTP or into files, whole, once if the other side lets it, and never in the clear beyond this host."""

import asyncio
import contextlib
import email
import ipaddress
import pathlib
import smtplib
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.instruments import issuers, transports
from identity.instruments.transports import FileMailer, SmtpMailer, mailer_for
from identity.settings import BadSettings, Settings
from tests.core.mail_world import ORIGIN, START, World, opened
from tests.world import fast_settings

ADA = "ada@example.com"


def a_mail(mail_id: str = "01890000-0000-7000-8000-000000000001", at: datetime = START) -> EmailMessage:
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    message["From"] = "Identity <identity@example.com>"
    message["To"] = ADA
    message["Subject"] = "Hello"
    message["Date"] = at
    message["Message-ID"] = f"<{mail_id}@example.com>"
    message.set_content("A line\n.\n.a dot first\n")
    return message


class Sink:
    """An SMTP server that keeps what it takes, and misbehaves as told at each mail in turn."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.envelopes: list[tuple[str, list[str]]] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.was_tls: list[bool] = []
        self.faults: list[str] = []
        self.greetings: list[str] = []
        self.password = b"s3:c/r@t"

    async def handle_EHLO(  # noqa: N802 -- aiosmtpd's name
        self, _server: Any, session: Any, _envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.greetings.append(hostname)
        return responses

    def __call__(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == self.password, handled=False)

    async def handle_RCPT(  # noqa: N802 -- aiosmtpd's name
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: list[str]
    ) -> str:
        if self.faults and self.faults[0].startswith("rcpt "):
            return self.faults.pop(0).removeprefix("rcpt ")
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 -- aiosmtpd's name
        fault = self.faults.pop(0) if self.faults else ""
        if fault.startswith("data "):
            return fault.removeprefix("data ")
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "drop untaken":
            server.transport.abort()
            return "250 never heard"
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        self.envelopes.append((envelope.mail_from, envelope.rcpt_tos))
        self.was_tls.append(session.ssl is not None)
        if fault == "drop taken":
            server.transport.abort()
        if fault == "drop after 250":
            server.transport.write(b"250 OK\r\n")
            server.transport.close()
        return "250 OK"


@contextlib.contextmanager
def listening(sink: Sink, **options: Any) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    controller = Controller(sink, hostname="127.0.0.1", port=port, authenticator=sink, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def port(sink: Sink) -> Iterator[int]:
    with listening(sink) as port:
        yield port


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A certificate for localhost that signed itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def server_tls(certificate: pathlib.Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this host look like one across the network."""
    monkeypatch.setattr(transports, "_is_loopback", lambda _: False)


# --- SMTP -------------------------------------------------------------------------------------------------------------


def test_a_mail_arrives_whole_for_its_one_recipient(sink: Sink, port: int) -> None:
    SmtpMailer("127.0.0.1", port).send(a_mail())
    [mail] = sink.mails
    assert mail.get_content().replace("\r\n", "\n") == "A line\n.\n.a dot first\n"
    assert mail["Message-ID"] == a_mail()["Message-ID"]
    assert sink.envelopes == [("identity@example.com", [ADA])]


def test_a_mail_to_two_addresses_does_not_leave(sink: Sink, port: int) -> None:
    message = a_mail()
    message.replace_header("To", "ada@example.com, eve@example.com")
    with pytest.raises(ValueError, match="exactly one"):
        SmtpMailer("127.0.0.1", port).send(message)
    assert sink.mails == []


def test_a_mail_to_nobody_does_not_leave(sink: Sink, port: int) -> None:
    message = a_mail()
    del message["To"]
    with pytest.raises(ValueError, match="exactly one"):
        SmtpMailer("127.0.0.1", port).send(message)


@pytest.mark.parametrize(
    "fault", ["rcpt 451 later", "rcpt 550 no such box", "data 452 full", "data 554 spam", "drop untaken", "drop taken"]
)
def test_a_mail_that_was_not_taken_over_raises(sink: Sink, port: int, fault: str) -> None:
    sink.faults = [fault]
    with pytest.raises((smtplib.SMTPException, OSError)):
        SmtpMailer("127.0.0.1", port).send(a_mail())


def test_a_server_that_hangs_up_after_taking_the_mail_over_has_taken_it(sink: Sink, port: int) -> None:
    sink.faults = ["drop after 250"]
    SmtpMailer("127.0.0.1", port).send(a_mail())
    assert len(sink.mails) == 1


def test_a_server_that_is_not_there_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        SmtpMailer("127.0.0.1", port).send(a_mail())


def test_a_server_that_hangs_is_left_after_the_time_of_a_step(sink: Sink, port: int) -> None:
    sink.faults = ["hang"]
    began = time.monotonic()
    with pytest.raises(OSError, match=r".*"):
        SmtpMailer("127.0.0.1", port, step_seconds=0.2).send(a_mail())
    assert time.monotonic() - began < 2


def test_a_server_that_says_nothing_at_all_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OSError, match=r".*"):
        SmtpMailer("127.0.0.1", silent.getsockname()[1], step_seconds=0.2).send(a_mail())


@pytest.mark.parametrize(
    ("first", "implicit_tls"),
    [(b"220 hello\r\n", False), (b"220-", False), (b"\x16\x03\x03\x40\x00", True)],
    ids=["its answer", "its greeting", "its handshake"],
)
def test_a_server_that_drips_is_left_when_the_time_for_all_is_over(first: bytes, implicit_tls: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(first)
                for _ in range(60):
                    time.sleep(0.05)
                    connection.sendall(b"2")

        dripping = threading.Thread(target=drip)
        dripping.start()
        began = time.monotonic()
        with pytest.raises(OSError, match=r".*"):
            SmtpMailer(
                "127.0.0.1", server.getsockname()[1], implicit_tls=implicit_tls, step_seconds=5, total_seconds=0.4
            ).send(a_mail())
        assert time.monotonic() - began < 2
        dripping.join()


def test_of_a_host_that_was_hung_up_on_nothing_plain_is_read(
    certificate: pathlib.Path, server_tls: ssl.SSLContext
) -> None:
    """Whoever stands in between could slip his own keys in behind the words of a slow issuer."""
    ours, theirs = socket.socketpair()
    accepted: list[ssl.SSLSocket] = []
    accepting = threading.Thread(target=lambda: accepted.append(server_tls.wrap_socket(theirs, server_side=True)))
    accepting.start()
    with ssl.create_default_context(cafile=str(certificate)).wrap_socket(ours, server_hostname="localhost") as client:
        accepting.join()
        with accepted[0] as server:
            socket.socket.sendall(server, b"HTTP/1.1 200 OK")
            issuers._hang_up(client)
            with pytest.raises(ssl.SSLError):
                client.recv(100)


def test_all_steps_together_end_before_another_process_may_take_the_mail() -> None:
    # Connecting comes before the clock for all: a name look-up, and a few addresses.
    assert transports.TOTAL_SECONDS + 4 * transports.STEP_SECONDS < outbox.CLAIM_SECONDS


def test_no_thread_is_left_behind(sink: Sink, port: int) -> None:
    before = threading.active_count()
    for _ in range(5):
        SmtpMailer("127.0.0.1", port).send(a_mail())
    time.sleep(0.1)
    assert threading.active_count() <= before


# --- TLS and authentication -------------------------------------------------------------------------------------------


def test_on_this_host_starttls_is_used_when_offered_whatever_the_certificate(
    sink: Sink, server_tls: ssl.SSLContext
) -> None:
    with listening(sink, tls_context=server_tls, require_starttls=True) as port:
        SmtpMailer("127.0.0.1", port).send(a_mail())
    assert sink.was_tls == [True]


def test_user_and_password_are_given_over_tls(sink: Sink, server_tls: ssl.SSLContext) -> None:
    with listening(sink, tls_context=server_tls, require_starttls=True, auth_required=True) as port:
        url = f"smtp://ad%40min:s3%3Ac%2Fr%40t@127.0.0.1:{port}"
        mailer_for(Settings(mail_url=url)).send(a_mail())
    assert sink.logins == [(b"ad@min", b"s3:c/r@t")]
    assert len(sink.mails) == 1


def test_a_wrong_password_raises(sink: Sink, server_tls: ssl.SSLContext) -> None:
    with (
        listening(sink, tls_context=server_tls, auth_required=True) as port,
        pytest.raises(smtplib.SMTPAuthenticationError),
    ):
        SmtpMailer("127.0.0.1", port, user="ada", password="wrong").send(a_mail())
    assert sink.mails == []


@pytest.mark.usefixtures("far_away")
def test_nothing_travels_in_the_clear_beyond_this_host(sink: Sink, port: int) -> None:
    with pytest.raises(ConnectionError, match="STARTTLS"):
        SmtpMailer("127.0.0.1", port, user="ada", password="s3:c/r@t").send(a_mail())
    assert (sink.logins, sink.mails) == ([], [])


@pytest.mark.usefixtures("far_away")
def test_beyond_this_host_a_certificate_that_nobody_vouches_for_is_refused(
    sink: Sink, server_tls: ssl.SSLContext
) -> None:
    with listening(sink, tls_context=server_tls) as port, pytest.raises(ssl.SSLCertVerificationError):
        SmtpMailer("localhost", port, user="ada", password="s3:c/r@t").send(a_mail())
    assert (sink.logins, sink.mails) == ([], [])


@pytest.mark.usefixtures("far_away")
def test_beyond_this_host_a_good_certificate_is_accepted(
    sink: Sink, server_tls: ssl.SSLContext, certificate: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with listening(sink, tls_context=server_tls, require_starttls=True) as port:
        SmtpMailer("localhost", port).send(a_mail())
    assert sink.was_tls == [True]


def test_smtps_speaks_tls_from_the_first_byte(
    sink: Sink, server_tls: ssl.SSLContext, certificate: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(sink, ssl_context=server_tls) as port:
        mailer = mailer_for(Settings(mail_url=f"smtps://127.0.0.1:{port}"))
        with pytest.raises(ssl.SSLCertVerificationError):
            mailer.send(a_mail())
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        mailer.send(a_mail())
    assert len(sink.mails) == 1


# --- Files ------------------------------------------------------------------------------------------------------------


def test_each_mail_becomes_one_file_that_only_the_owner_reads(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "var" / "mail"
    FileMailer(folder).send(a_mail())
    [path] = folder.iterdir()
    assert path.name == "20261101T120000Z-01890000-0000-7000-8000-000000000001.eml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    read = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert (read["To"], read["Subject"]) == (ADA, "Hello")


def test_names_of_files_sort_by_time(tmp_path: pathlib.Path) -> None:
    for number in (3, 1, 2):
        FileMailer(tmp_path).send(a_mail(f"m{9 - number}", START + timedelta(seconds=number)))
    assert [path.name[-6:-4] for path in sorted(tmp_path.glob("*.eml"))] == ["m8", "m7", "m6"]


def test_the_same_mail_again_leaves_one_file(tmp_path: pathlib.Path) -> None:
    FileMailer(tmp_path).send(a_mail())
    FileMailer(tmp_path).send(a_mail())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_could_not_be_written_whole_is_not_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        FileMailer(tmp_path).send(a_mail())
    assert list(tmp_path.iterdir()) == []


def test_a_message_id_cannot_lead_out_of_the_directory(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        FileMailer(tmp_path).send(a_mail("../../x"))


# --- Which one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:var/mail", "FileMailer('var/mail')"),
        ("file:/srv/mail", "FileMailer('/srv/mail')"),
        ("file:///srv/mail", "FileMailer('/srv/mail')"),
        ("smtp://mail.example.com", "SmtpMailer('mail.example.com', 25)"),
        ("smtp://ada:x@mail.example.com", "SmtpMailer('mail.example.com', 587)"),
        ("smtps://ada:x@mail.example.com/", "SmtpMailer('mail.example.com', 465)"),
        ("smtp://[::1]:2525", "SmtpMailer('::1', 2525)"),
    ],
)
def test_the_url_chooses_the_mailer(url: str, shown: str) -> None:
    assert repr(mailer_for(Settings(mail_url=url))) == shown


@pytest.mark.parametrize(
    "url",
    [
        "file:",
        "file://",
        "smtp://",
        "smtp://:25",
        "smtp://host:99999",
        "smtp://host:x",
        "smtp://[::1",
        "http://host",
        "smtp://a:se/cret@host",
        "smtp://a:se#cret@host",
        "smtp://a:se?cret@host",
    ],
)
def test_a_url_that_names_no_mailer_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(BadSettings, match="IDENTITY_MAIL_URL") as caught:
        mailer_for(Settings(mail_url=url))
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("mail.example.com", False),
        ("localhost.evil.example", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert transports._is_loopback(host) is expected


# --- With the outbox: no mail lost, at most one duplicate -------------------------------------------------------------


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    with opened(f"sqlite:///{tmp_path}/identity.db") as world:
        yield world


def queue(world: World) -> str:
    with world.rt.unit(ORIGIN) as unit:
        return outbox.queue(world.rt, unit, Template.SESSIONS_ENDED, to=ADA, values={})


@pytest.mark.parametrize(
    ("fault", "arrivals", "reason"),
    [
        ("rcpt 451 later", 1, "SMTPRecipientsRefused 451"),
        ("data 452 full", 1, "SMTPDataError 452"),
        ("hang", 1, "SMTPServerDisconnected"),
        ("drop untaken", 1, "SMTPServerDisconnected"),
        ("drop taken", 2, "SMTPServerDisconnected"),
        ("drop after 250", 1, ""),
    ],
)
def test_whatever_the_server_does_the_mail_arrives_and_at_most_twice(
    world: World, sink: Sink, port: int, fault: str, arrivals: int, reason: str
) -> None:
    world.rt.mailer = SmtpMailer("127.0.0.1", port, step_seconds=0.3)
    sink.faults = [fault]
    mail_id = queue(world)
    outbox.deliver_due(world.rt)
    assert [mail.last_error for mail in world.rows()] == [reason]
    world.clock.tick(10)
    outbox.deliver_due(world.rt)
    assert [mail.state for mail in world.rows()] == ["sent"]
    assert [mail["Message-ID"] for mail in sink.mails] == [f"<{mail_id}@example.com>"] * arrivals


def test_a_mail_server_that_is_away_delays_mail_and_loses_none(world: World, sink: Sink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        world.rt.mailer = SmtpMailer("127.0.0.1", free.getsockname()[1])
    ids = [queue(world) for _ in range(5)]
    outbox.deliver_due(world.rt)
    assert {mail.last_error for mail in world.rows()} == {"ConnectionRefusedError"}
    with listening(sink) as port:
        world.rt.mailer = SmtpMailer("127.0.0.1", port)
        world.clock.tick(10)
        outbox.deliver_due(world.rt)
    assert sorted(mail["Message-ID"].partition("@")[0][1:] for mail in sink.mails) == sorted(ids)


def test_a_hanging_mail_server_does_not_slow_the_requests_that_queue(world: World, sink: Sink, port: int) -> None:
    world.rt.mailer = SmtpMailer("127.0.0.1", port, step_seconds=1)
    sink.faults = ["hang"] * 20
    queue(world)
    delivery = threading.Thread(target=outbox.deliver_due, args=(world.rt,), kwargs={"limit": 1})
    delivery.start()
    time.sleep(0.2)
    slowest = max(_seconds(lambda: queue(world)) for _ in range(20))
    assert delivery.is_alive()
    assert slowest < 0.3
    delivery.join()


def _seconds(deed: Callable[[], object]) -> float:
    began = time.monotonic()
    deed()
    return time.monotonic() - began


@pytest.mark.parametrize("fault", ["rcpt 550 no such box", "data 554 spam"])
def test_what_the_server_will_never_take_is_given_up_at_once(world: World, sink: Sink, port: int, fault: str) -> None:
    world.rt.mailer = SmtpMailer("127.0.0.1", port)
    sink.faults = [fault]
    mail_id = queue(world)
    outbox.deliver_due(world.rt)
    (info,) = [mail for mail in outbox.list_mails(world.rt) if mail.id == mail_id]
    assert (info.state, info.attempts) == ("dead", 1)
    standing = outbox.standing_of(world.rt.database, world.rt.clock.now())
    assert (standing.waiting, standing.given_up) == (0, 1)


@pytest.mark.parametrize(
    ("issuer", "name"),
    [
        ("https://auth.example.com", "auth.example.com"),
        ("https://192.0.2.7:8443", "[192.0.2.7]"),
        ("https://[2001:db8::7]", "[IPv6:2001:db8::7]"),
    ],
)
def test_the_issuers_host_greets(sink: Sink, issuer: str, name: str) -> None:
    with listening(sink) as port:
        mailer_for(fast_settings(issuer=issuer, mail_url=f"smtp://127.0.0.1:{port}")).send(a_mail())
    assert sink.greetings[0] == name


def test_a_password_may_be_any_text(sink: Sink) -> None:
    sink.password = "pässword ✓".encode()
    with listening(sink, auth_require_tls=False) as port:
        SmtpMailer("127.0.0.1", port, user="jürgen", password="pässword ✓").send(a_mail())
        with pytest.raises(smtplib.SMTPAuthenticationError):
            SmtpMailer("127.0.0.1", port, user="jürgen", password="wrong ✓").send(a_mail())
    assert sink.logins[0] == ("jürgen".encode(), sink.password)
    assert len(sink.mails) == 1


@pytest.mark.parametrize(
    ("user", "allows_plain", "is_sent"), [("", True, True), ("", False, False), ("a", True, False)]
)
def test_a_plain_relay_is_used_where_that_is_permitted_and_never_with_a_password(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, user: str, *, allows_plain: bool, is_sent: bool
) -> None:
    monkeypatch.setattr(transports, "_is_loopback", lambda _host: False)
    with listening(sink, auth_require_tls=False) as port:
        mailer = SmtpMailer("127.0.0.1", port, user=user, password="x", allows_plain=allows_plain)
        with contextlib.nullcontext() if is_sent else pytest.raises(ConnectionError):
            mailer.send(a_mail())
    assert len(sink.mails) == is_sent
    assert sink.logins == []
