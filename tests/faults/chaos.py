"""A wire that misbehaves: a port of the loopback that passes bytes on to a server, until it is told to do something else."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.world import free_port

Upstream = str | tuple[str, int]
"""A unix socket's path, or a host and a port."""


@dataclass(frozen=True)
class Fault:
    """What the wire does to bytes. The default is nothing."""

    refuses: bool = False
    """Nobody listens, and what was connected is reset."""
    is_silent: bool = False
    """Bytes are taken and go nowhere: a peer that hangs, or a firewall that forgot the connection."""
    resets: bool = False
    """Every connection is reset at its first byte."""
    latency_seconds: float = 0
    cut_after: int | None = None
    """The answer is reset after so many bytes."""
    swallows_answers: bool = False
    """The request arrives, its answer is kept in `Wire.swallowed`, and the client sees the connection close."""


HEALTHY = Fault()
REFUSING = Fault(refuses=True)
SILENT = Fault(is_silent=True)
RESETTING = Fault(resets=True)


class Wire:
    """One listening port in front of `upstream`."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._fault = HEALTHY
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener: socket.socket | None = None
        # Not one of the system's choice: while nobody listens there, an outgoing connection could take it.
        self.port = free_port()
        self.swallowed: list[bytes] = []
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set(REFUSING)

    def set(self, fault: Fault) -> None:
        """Behave like this from now on. What a fault has held up or confused is reset when the next begins."""
        before, self._fault = self._fault, fault
        if fault.refuses and self._listener is not None:
            listener, self._listener = self._listener, None
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        if fault.refuses or fault.resets or before != HEALTHY:
            for pair in list(self._pairs):
                self._drop(pair)
        if not fault.refuses and self._listener is None:
            self._listen()

    def lead_to(self, upstream: Upstream) -> None:
        """What connects from now on goes there; what is connected stays where it is."""
        self._upstream = upstream

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = self._dial()
            except OSError:
                _reset(client)
                continue
            pair = (client, server)
            self._pairs.add(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(pair, source, sink), daemon=True).start()

    def _dial(self) -> socket.socket:
        if isinstance(self._upstream, str):
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._upstream)
            except OSError:
                server.close()
                raise
            return server
        return socket.create_connection(self._upstream, timeout=5)

    def _pump(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        passed, is_answer = 0, source is pair[1]
        with contextlib.suppress(OSError):
            source.settimeout(None)
            while data := source.recv(65536):
                fault = self._fault
                if fault.resets:
                    break
                if fault.is_silent:
                    continue
                if fault.latency_seconds:
                    time.sleep(fault.latency_seconds)
                if is_answer and fault.swallows_answers:
                    self.swallowed.append(data)
                    break
                if is_answer and fault.cut_after is not None:
                    data = data[: fault.cut_after - passed]
                passed += len(data)
                sink.sendall(data)
                if is_answer and fault.cut_after is not None and passed >= fault.cut_after:
                    break
        if self._fault.is_silent:
            return  # Not even the end of the other side comes through.
        self._drop(pair)

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for one in pair:
            _reset(one)


def _reset(connection: socket.socket) -> None:
    """Close with RST, and wake the thread that reads from it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()
