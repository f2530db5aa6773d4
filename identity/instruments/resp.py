"""Scripts of Redis on an event loop: the few bytes of its protocol, over a connection that redis-py made.

redis-py does what happens once: addresses, TLS, passwords, databases. Whatever is not the expected answer loses the channel, and the call
is made again on a thread, by redis-py, which knows every error.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from typing import Final

from identity.aside import Channel, Elsewhere

_PATIENCE_SECONDS: Final = 1.0
_RECEIVED_BYTES: Final = 65_536
_LONGEST_ANSWER: Final = 128
# An array of a number, a text or none, a number and a text.
_ANSWER: Final = re.compile(rb"\*4\r\n:(\d+)\r\n\$(?:-1|\d+\r\n([\d.]+))\r\n:(\d+)\r\n\$\d+\r\n([\d.]+)\r\n")


class Calls(Channel):
    """One connection over which a script is called, many times at once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, plug: socket.socket, sha: str, close: Callable[[], None]
    ) -> None:
        self._plug = plug
        self._head = b"*6\r\n$7\r\nEVALSHA\r\n$%d\r\n%b\r\n$1\r\n1\r\n" % (len(sha), sha.encode())
        self._close = close
        self._received = b""
        plug.setblocking(False)
        super().__init__(loop, plug.fileno(), _PATIENCE_SECONDS)

    def call(self, key: str, *numbers: int) -> tuple[bytes, bytes | None, bytes, bytes]:
        """The four values that the script answers for a key and two numbers. Raises Elsewhere for whatever goes wrong, Late."""
        arguments = [key.encode(), *[b"%d" % number for number in numbers]]
        message = self._head + b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments])
        try:
            sent = self._plug.send(message)
        except OSError as exc:
            self.lose(Elsewhere)
            raise Elsewhere from exc
        if sent != len(message):
            # A few hundred bytes do not fit: nobody has read for a while.
            self.lose(Elsewhere)
            raise Elsewhere
        answer: tuple[bytes, bytes | None, bytes, bytes] = self.step_aside()
        return answer

    def receive(self) -> None:
        received = self._received + self._read()
        position = 0
        while len(self):
            found = _ANSWER.match(received, position)
            if found is None:
                break
            position = found.end()
            self.deliver(found.groups())
            if self.is_lost:
                return
        self._received = received[position:]
        if self._received and (not len(self) or len(self._received) > _LONGEST_ANSWER or self._received[:1] != b"*"):
            self.lose(Elsewhere)  # An error, or nothing that was asked for.

    def _read(self) -> bytes:
        """What has arrived, all of it: TLS may hold back what the loop would never hear of."""
        parts: list[bytes] = []
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while True:
                part = self._plug.recv(_RECEIVED_BYTES)
                if not part and not parts:
                    raise ConnectionResetError
                parts.append(part)
                if not part or (len(part) < _RECEIVED_BYTES and not isinstance(self._plug, ssl.SSLSocket)):
                    break
        return b"".join(parts)

    def release(self) -> None:
        self._close()
