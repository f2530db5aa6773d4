"""How mail leaves: SMTP, or files in a directory. What it says and when it goes is decided in `mail.outbox`."""

from __future__ import annotations

import base64
import contextlib
import errno
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from identity.files import make_folder, open_new, sync_folder
from identity.settings import BadSettings, Settings

if TYPE_CHECKING:
    import smtplib
    import ssl

STEP_SECONDS: Final = 10
TOTAL_SECONDS: Final = 30
_GO_ON: Final = 334
_AUTHENTICATED: Final = 235
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


class SmtpMailer:
    """Hands each mail to one SMTP server over a connection of its own.

    Beyond loopback nothing travels without TLS: `implicit_tls`, or STARTTLS, which must then be offered unless `allows_plain`, and never
    is a password sent without; the certificate must be good. On loopback STARTTLS is used when offered, whatever the certificate: nobody
    can stand in between. `greeting` is the name that we give (RFC 5321 section 4.1.1.1).
    """

    def __init__(
        self, host: str, port: int, *, implicit_tls: bool = False, user: str = "", password: str = "",
        greeting: str = "", allows_plain: bool = False, step_seconds: float = STEP_SECONDS, total_seconds: float = TOTAL_SECONDS,
    ) -> None:  # fmt: skip
        self._host = host
        self._port = port
        self._implicit_tls = implicit_tls
        self._user = user
        self._password = password
        self._greeting = greeting
        self._allows_plain = allows_plain
        self._step_seconds = step_seconds
        self._total_seconds = total_seconds

    def __repr__(self) -> str:
        return f"SmtpMailer({self._host!r}, {self._port})"

    def send(self, message: EmailMessage) -> None:
        """Deliver to the one address of `To`. Each step may take `step_seconds`, all together `total_seconds`.

        Returns once the server has taken the mail over, even if it hangs up then. Raises OSError or smtplib.SMTPException.
        """
        sender, recipient = _only_address(message, "From"), _only_address(message, "To")
        with self._connected() as connection:
            connection.send_message(message, from_addr=sender, to_addrs=[recipient])

    def handshake(self) -> None:
        """Go as far as a mail would and send none: connection, TLS, login. Raises OSError or smtplib.SMTPException."""
        with self._connected():
            pass

    @contextlib.contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        plug = socket.create_connection((self._host, self._port), self._step_seconds)
        # A server that drips one byte at a time, of its greeting or of its handshake too, never breaks the limit of a step; this ends it.
        handle = plug.dup()
        cut = threading.Timer(self._total_seconds, _hang_up, [handle])
        cut.daemon = True
        cut.start()
        try:
            connection = self._greeted(plug)
            try:
                self._secure(connection)
                if self._user:
                    _log_in(connection, self._user, self._password)
                yield connection
                # The mail is theirs already: how the goodbye goes must not send it again.
                with contextlib.suppress(OSError):
                    connection.quit()
            finally:
                connection.close()
        finally:
            cut.cancel()
            handle.close()
            plug.close()

    def _greeted(self, plug: socket.socket) -> smtplib.SMTP:
        """What speaks SMTP over `plug`, once the server has said its first words."""
        import smtplib  # noqa: PLC0415 -- 40 ms that a start without SMTP need not pay

        context = self._tls_context() if self._implicit_tls else None
        host = self._host

        class Plugged(smtplib.SMTP):
            # Its own would connect, and greet, before anybody could end it.
            def _get_socket(self, *_: object) -> socket.socket:
                return plug if context is None else context.wrap_socket(plug, server_hostname=host)

        # Left to itself smtplib would ask DNS for our name, for as long as DNS likes.
        name = self._greeting or socket.gethostname()
        name = name if "." in name or name.startswith("[") else "[127.0.0.1]"
        return Plugged(host, self._port, name, timeout=self._step_seconds)

    def _secure(self, connection: smtplib.SMTP) -> None:
        if self._implicit_tls:
            return
        connection.ehlo_or_helo_if_needed()
        if connection.has_extn("starttls"):
            connection.starttls(context=self._tls_context())
            connection.ehlo()
        elif not _is_loopback(self._host) and (self._user or not self._allows_plain):
            raise ConnectionError("the mail server offers no STARTTLS")

    def _tls_context(self) -> ssl.SSLContext:
        import ssl  # noqa: PLC0415 -- see above

        context = ssl.create_default_context()
        if _is_loopback(self._host) and not self._implicit_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class FileMailer:
    """Writes each mail as one `.eml` in a directory, whole or not at all, readable by the owner only.

    Names sort by time, and one mail has one name: delivering it twice leaves one file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"FileMailer({str(self._directory)!r})"

    def send(self, message: EmailMessage) -> None:
        """Write the mail and make it durable. Raises OSError."""
        make_folder(self._directory)
        path = self._directory / _file_name(message)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        draft.unlink(missing_ok=True)  # left by a process that died with these numbers
        try:
            with open(open_new(draft), "wb") as file:  # noqa: PTH123 -- for the mode
                file.write(message.as_bytes(policy=message.policy.clone(linesep="\n")))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(self._directory)

    def handshake(self) -> None:
        """Raise OSError unless a mail could be written there, or the directory be made; nothing is."""
        directory = self._directory.absolute()
        there = next(path for path in (directory, *directory.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "mail cannot be written there", str(there))


def mailer_for(settings: Settings) -> SmtpMailer | FileMailer:
    """The mailer that `settings.mail_url` describes. Nothing is connected or created yet. Raises BadSettings.

    `smtp://[user:password@]host[:port]` (port 587 with a user, else 25), `smtps://...` (port 465), `file:DIR`.
    """
    url = settings.mail_url
    directory = mail_directory(settings)
    if directory is not None:
        return FileMailer(directory)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise BadSettings("IDENTITY_MAIL_URL: is no URL") from exc
    is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname or not is_bare:
        # A `/`, `?` or `#` in a password ends the host early; the password must not be shown to say so.
        raise BadSettings("IDENTITY_MAIL_URL: must be smtp://[user:password@]host[:port]; percent-encode the password")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    is_tls = parts.scheme == "smtps"
    usual = 465 if is_tls else 587 if user else 25
    return SmtpMailer(
        parts.hostname,
        port or usual,
        implicit_tls=is_tls,
        user=user,
        password=password,
        greeting=_greeting(settings.issuer),
        allows_plain=settings.mail_plaintext,
    )


def mail_directory(settings: Settings) -> Path | None:
    """Where mail goes that goes to files, or None. Raises BadSettings."""
    if not settings.mail_url.startswith("file:"):
        return None
    directory = settings.mail_url.removeprefix("file:").removeprefix("//")
    if not directory:
        raise BadSettings("IDENTITY_MAIL_URL: names no directory")
    return Path(directory)


def _greeting(issuer: str) -> str:
    """The issuer's host, as a mail server wants to be greeted: a name with a dot, or an address in brackets; else nothing."""
    host = urlsplit(issuer).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host if "." in host else ""
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def _log_in(connection: smtplib.SMTP, user: str, password: str) -> None:
    """AUTH in UTF-8 (RFC 4616 section 2), which smtplib's own cannot."""
    if (user + password).isascii():
        connection.login(user, password)
        return
    from smtplib import SMTPAuthenticationError  # noqa: PLC0415 -- see above

    connection.ehlo_or_helo_if_needed()
    spelled = [base64.b64encode(text.encode()).decode() for text in (f"\0{user}\0{password}", user, password)]
    if "PLAIN" in connection.esmtp_features.get("auth", "").upper().split():
        code, answer = connection.docmd("AUTH", f"PLAIN {spelled[0]}")
    else:
        code, answer = connection.docmd("AUTH", f"LOGIN {spelled[1]}")
        if code == _GO_ON:
            code, answer = connection.docmd(spelled[2])
    if code != _AUTHENTICATED:
        raise SMTPAuthenticationError(code, answer)


def _only_address(message: EmailMessage, header: str) -> str:
    value = message[header]
    if value is None or len(value.addresses) != 1:
        raise ValueError(f"a mail needs exactly one address in {header}")
    address: str = value.addresses[0].addr_spec
    return address


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hang_up(handle: socket.socket) -> None:
    # Shut down, not closed: that wakes the thread which waits in it. Under TLS too: the handle is of what lies below.
    with contextlib.suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


def _file_name(message: EmailMessage) -> str:
    mail_id = str(message["Message-ID"] or "").strip("<>").partition("@")[0]
    if not _FILE_NAME.fullmatch(mail_id):
        raise ValueError("a mail needs a Message-ID whose left side can be a file name")
    return f"{parsedate_to_datetime(message['Date']):%Y%m%dT%H%M%SZ}-{mail_id}.eml"
