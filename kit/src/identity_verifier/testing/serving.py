"""The issuer in memory behind a socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from identity_verifier.refusals import Unreachable
from identity_verifier.transport import Request, Transport


@contextmanager
def listening(transport: Transport) -> Iterator[str]:
    """Answer HTTP on a free loopback port with what `transport` says; yields the address. What it cannot reach is a closed connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            url = f"http://{self.headers.get('Host')}{self.path}"
            try:
                # As real servers do: a header that was sent twice is one with a comma.
                headers = {name: ",".join(self.headers.get_all(name, ())) for name in self.headers}
                answer = transport(Request(self.command, url, headers, body))
            except Unreachable:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = answer  # noqa: N815 -- the names that the base class looks for

        def log_message(self, *_args: object) -> None:
            """Nothing: the tests that ask know what they asked."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
