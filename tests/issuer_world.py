"""A stand-in for a platform that gives its workloads tokens: an issuer with a discovery document, keys, and moods."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from identity.ambient import Clock
from tests.oauth_world import ec_key, rsa_key

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
JWT_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
_ED = Ed25519PrivateKey.generate()


def ed_key() -> Any:
    """An Ed25519 key."""
    return _ED


def public_jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half of a key, as a member of a key set."""
    if isinstance(key, Ed25519PrivateKey):
        entry = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        algorithm = ECAlgorithm if hasattr(key, "curve") else RSAAlgorithm
        entry = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {name: value for name, value in entry.items() if name != "key_ops"} | {"kid": kid, "use": "sig"} | more


class StandIn:
    """An issuer on the loopback. `mood` names how it misbehaves; `hits` counts requests by path."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.mood = ""
        self.hits: dict[str, int] = {}
        self.headers: dict[str, str] = {"Cache-Control": "max-age=300"}
        self.keys: dict[str, Any] = {"k1": rsa_key("issuer"), "k2": ec_key(), "k3": ed_key()}
        self.jwks_uri = f"{self.url}/keys"
        self.issuer = self.url
        #: Signs a token for an audience, where a workload asks for one over HTTP.
        self.id_token: Callable[[str], str] = lambda _audience: ""

    def jwks(self) -> dict[str, Any]:
        return {"keys": [public_jwk(key, kid) for kid, key in self.keys.items()]}

    def document(self, path: str) -> Any:
        if path == "/keys":
            return self.jwks()
        if path.startswith("/id-token?"):
            return {"count": 1, "value": self.id_token(parse_qs(urlsplit(path).query)["audience"][0])}
        return {"issuer": self.issuer, "jwks_uri": self.jwks_uri}

    def token(self, clock: Clock, *, kid: str | None = "k1", alg: str = "RS256", key: Any = None, **claims: Any) -> str:
        """A token of a workload that is good, but for what `claims` change; a claim of None is left out."""
        now = int(clock.now().timestamp())
        said = {"iss": self.issuer, "sub": "workload", "aud": "http://127.0.0.1:8000", "iat": now, "exp": now + 600}
        said = {name: value for name, value in (said | claims).items() if value is not None}
        signing = self.keys.get(kid or "", self.keys["k1"]) if key is None else key
        return jwt.encode(said, signing, alg, headers={"kid": kid} if kid is not None else None)


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn

    def do_GET(self) -> None:
        issuer = self.stand_in
        issuer.hits[self.path] = issuer.hits.get(self.path, 0) + 1
        with contextlib.suppress(OSError):
            self._answer(issuer)

    def _answer(self, issuer: StandIn) -> None:
        body = json.dumps(issuer.document(self.path)).encode()
        match issuer.mood:
            case "down":
                self.connection.close()
            case "slow":
                time.sleep(30)
            case "drip":
                self._send(200, b"", {"Content-Length": "60"})
                for _ in range(60):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.5)
            case "huge":
                self._send(200, b"", {"Content-Length": str(1 << 30)})
                while True:
                    self.wfile.write(b" " * 65_536)
            case "large":
                self._send(200, body + b" " * 65_537, {})
            case "redirecting":
                self._send(302, b"", {"Location": f"{issuer.url}/elsewhere", "Content-Length": "0"})
            case "html":
                self._send(200, b"<html>It works!</html>", {"Content-Type": "text/html"})
            case "error":
                self._send(500, b"{}", {})
            case _:
                self._send(200, body, issuer.headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def a_stand_in() -> Iterator[StandIn]:
    """A running issuer."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    stand_in = handler.stand_in = StandIn(server)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
