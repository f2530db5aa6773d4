"""The questions over real sockets: bounded in size and time, no redirects, connections kept and replaced."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from identity_verifier.refusals import Unreachable
from identity_verifier.testing import Issuer
from identity_verifier.transport import HttpTransport, Request


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does to each connection what it is told to."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def loop() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    made = HttpTransport(timeout_seconds=0.3)
    yield made
    made.close()


def test_a_whole_verification_over_a_socket_keeps_its_connection() -> None:
    issuer = Issuer()
    with issuer.serve() as url:
        verifier = issuer.verifier(transport=None, client=issuer.client)
        token = issuer.user_token(roles=["r"])
        assert url.startswith("http://127.0.0.1:")
        assert verifier.verify(token.header).roles == {"r"}
        for _ in range(5):
            assert verifier.verify(token.header, fresh=True).fresh
        assert sum(len(kept) for kept in verifier._own_transport._kept.values()) == 1  # type: ignore[union-attr]
        issuer.down = True
        issuer.tick(31)
        assert verifier.verify(token.header)
        verifier.close()


def test_a_connection_that_was_closed_meanwhile_is_replaced(transport: HttpTransport) -> None:
    def one_answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_server(one_answer) as url:
        for _ in range(4):
            assert transport(Request("GET", url)).body == b"ok"


def test_a_redirect_is_not_followed(transport: HttpTransport) -> None:
    def redirect(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    with raw_server(redirect) as url:
        assert transport(Request("GET", url)).status == 302


def test_an_endless_answer_is_cut(transport: HttpTransport) -> None:
    def endless(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with raw_server(endless) as url, pytest.raises(Unreachable, match="more than 1000 bytes"):
        transport(Request("GET", url, max_bytes=1000))


def test_a_dripping_answer_ends_at_the_deadline(transport: HttpTransport) -> None:
    def dripping(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"x")
            threading.Event().wait(0.05)

    with raw_server(dripping) as url, pytest.raises(Unreachable, match="without its end"):
        transport(Request("GET", url))


@pytest.mark.parametrize("said", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"])
def test_nonsense_is_unreachable(transport: HttpTransport, said: bytes) -> None:
    def nonsense(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with raw_server(nonsense) as url, pytest.raises(Unreachable):
        transport(Request("GET", url))


def test_silence_and_refusal_are_unreachable(transport: HttpTransport) -> None:
    with raw_server(lambda connection: threading.Event().wait(1) and None) as url, pytest.raises(Unreachable):
        transport(Request("GET", url))
    with pytest.raises(Unreachable):
        transport(Request("GET", "http://127.0.0.1:1/"))
    with pytest.raises(Unreachable):
        transport(Request("GET", "https://127.0.0.1:1/"))
