"""docs/recipes/apache.md in a real Apache with mod_auth_openidc, before a real service.

`make recipes` installs both.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.builders import Machine, a_user, an_application
from tests.conftest import fresh_database
from tests.oauth_world import as_client, ec_key, session_of
from tests.world import Live, free_port, start_live, stop

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "apache.md"
AUDIENCE = "https://api.example"
# An Apache that serves one file; what it demands comes from the recipe.
BASE = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/error.log
Listen 127.0.0.1:{port}
DocumentRoot {folder}/www
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule auth_openidc_module {modules}/mod_auth_openidc.so
Header set X-Seen-User "expr=%{{REMOTE_USER}}"
OIDCCABundlePath {certificate}
"""


@dataclass
class Apache:
    """An Apache in front of a file, and the service that it trusts."""

    url: str
    live: Live

    def get(self, token: str = "") -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.get(f"{self.url}/api/hello", headers=headers, timeout=10)

    def granted(self, machine: Machine, **form: str) -> str:
        asked = {"grant_type": "client_credentials", **form}
        answer = self.live.call("POST", "/oauth/token", data=asked, headers=as_client(machine))
        token: str = answer.json()["access_token"]
        return token


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, which signs itself: Apache asks only over TLS."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, ec_key().public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ec_key(), SHA256())
    )
    key = ec_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + key)
    return path


class Forward(socketserver.BaseRequestHandler):
    """Carries one connection out of TLS to the service."""

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as inner:
            back = threading.Thread(target=self.carry, args=(inner, self.request), daemon=True)
            back.start()
            self.carry(self.request, inner)
            back.join()

    @staticmethod
    def carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Tls(socketserver.ThreadingTCPServer):
    """TLS in front of a service, as every public one has."""

    daemon_threads = True
    allow_reuse_address = True
    target = ("", 0)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no event."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("apache-service")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Tls(("127.0.0.1", 0), Forward) as front:
        front.socket = context.wrap_socket(front.socket, server_side=True)
        threading.Thread(target=front.serve_forever, daemon=True).start()
        issuer = {"issuer": f"https://127.0.0.1:{front.server_address[1]}"}
        with start_live(folder, fresh_database("sqlite", folder), issuer) as live:
            front.target = ("127.0.0.1", int(live.url.rpartition(":")[2]))
            yield live
        front.shutdown()


@contextlib.contextmanager
def running(live: Live, number: int, folder: Path, certificate: Path) -> Iterator[Apache]:
    """Apache with the recipe's block of this number; the names in the recipe become those of the running service."""
    blocks = re.findall(r"^```apache\n(.*?)^```$", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    watcher = an_application(live.rt, name="apache", scopes=("introspect",))
    recipe = blocks[number].replace("https://auth.example", live.rt.settings.issuer)
    recipe = recipe.replace("CLIENT_ID", watcher.client_id).replace("CLIENT_SECRET", watcher.secret)
    page = folder / "www" / "api" / "hello"
    page.parent.mkdir(parents=True)
    page.write_text("hello")
    for parent in (folder, *list(folder.parents)[:2], page.parent.parent, page.parent):
        parent.chmod(0o755)  # Where root starts it, Apache serves as another user.
    port = free_port()
    server = shutil.which("apache2") or shutil.which("httpd", path="/usr/sbin:/usr/bin") or "/usr/sbin/apache2"
    base = BASE.format(folder=folder, port=port, modules="/usr/lib/apache2/modules", certificate=certificate)
    config = folder / "apache.conf"
    config.write_text(base + recipe)
    process = subprocess.Popen([server, "-X", "-f", str(config)], start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, folder / "error.log")
        yield Apache(url, live)
    finally:
        stop(process)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(url, timeout=5)
            return
        assert process.poll() is None, log.read_text() if log.exists() else "Apache did not start"
        time.sleep(0.05)
    raise AssertionError("Apache did not listen in time")


@pytest.fixture(scope="module", params=[0, 1], ids=["by public keys", "by introspection"])
def apache(
    request: pytest.FixtureRequest, service: Live, tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> Iterator[Apache]:
    with running(service, request.param, tmp_path_factory.mktemp("apache"), certificate) as server:
        yield server


def test_a_token_for_this_audience_passes_and_names_the_client(apache: Apache) -> None:
    feed = an_application(apache.live.rt, audiences=(AUDIENCE,))
    answer = apache.get(apache.granted(feed))
    assert (answer.status_code, answer.text) == (200, "hello")
    assert answer.headers["X-Seen-User"] == feed.client_id


def test_without_a_token_nothing_passes(apache: Apache) -> None:
    assert apache.get().status_code == 401


def test_a_token_for_another_audience_is_refused(apache: Apache) -> None:
    feed = an_application(apache.live.rt)
    assert apache.get(apache.granted(feed, resource="https://other.example")).status_code in (401, 403)


def test_a_forged_token_is_refused(apache: Apache) -> None:
    head, body, signature = apache.granted(an_application(apache.live.rt, audiences=(AUDIENCE,))).split(".")
    assert apache.get(f"{head}.{body}.{signature[:-8]}AAAAAAAA").status_code == 401


def test_a_revoked_token_is_refused_at_once_where_apache_introspects(
    service: Live, tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> None:
    feed = an_application(service.rt, audiences=(AUDIENCE,))
    with running(service, 1, tmp_path_factory.mktemp("apache"), certificate) as server:
        token = server.granted(feed)
        assert server.get(token).status_code == 200
        answer = service.call("POST", "/oauth/revoke", data={"token": token}, headers=as_client(feed))
        assert answer.status_code == 200
        assert server.get(token).status_code == 401


def test_a_session_bearer_passes_where_apache_introspects(
    service: Live, tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> None:
    ada, portal = a_user(service.rt), an_application(service.rt)
    bearer = session_of(service.rt, ada, portal.client_id).bearer
    assert bearer is not None
    with running(service, 1, tmp_path_factory.mktemp("apache"), certificate) as server:
        answer = server.get(bearer.reveal())
        assert (answer.status_code, answer.headers["X-Seen-User"]) == (200, ada.id)
        assert server.get(bearer.reveal()[:-1]).status_code == 401
