"""Tokens for a service that calls others: got once, renewed before they end, given to whatever sends the request.

machine = Machine("https://auth.example", "my-client-id", secret=os.environ["CLIENT_SECRET"])
requests.get(url, auth=machine)                 # requests
httpx.Client(auth=machine.httpx_auth())         # httpx, also AsyncClient
headers = {"Authorization": machine.authorization()}
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from identity_verifier import clocks
from identity_verifier.cached import Cached, Loaded
from identity_verifier.clocks import Clock
from identity_verifier.refusals import Unreachable
from identity_verifier.transport import HttpTransport, Request, Response, Transport, check_issuer

_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:"
_ASSERTION_SECONDS: Final = 60
_PAUSES: Final = (0.2, 1.0)
_MAX_PAUSE: Final = 5.0
_WAIT_SECONDS: Final = 30.0
_YOUNG_SECONDS: Final = 30.0


class NoToken(RuntimeError):
    """The issuer gave no token; the text says why, and holds no secret."""


class Machine:
    """A client of the issuer. Share one among all threads and tasks: it holds one token, and never asks for two at a time.

    Exactly one proof: `secret`; `key`, a private key (PEM or object) of a registered key set, named by `kid`; or `workload`, the path of
    the token that the platform writes (read anew for each request; `spiffe=True` where it is a JWT-SVID).

    From 80 % of its life on a token is renewed behind the scenes, and used as long as it lives while that fails.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        *,
        secret: str | None = None,
        key: Any = None,
        kid: str | None = None,
        workload: str | Path | None = None,
        spiffe: bool = False,
        scope: str | Iterable[str] | None = None,
        resource: str | None = None,
        token_endpoint: str | None = None,
        allow_http: bool = False,
        transport: Transport | None = None,
        wall: Clock = clocks.wall,
        elapsed: Clock = clocks.elapsed,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if sum(proof is not None for proof in (secret, key, workload)) != 1:
            raise ValueError("a machine proves itself in exactly one way: secret, key or workload")
        self._issuer = check_issuer(issuer, insecure=allow_http)
        self.client_id = client_id
        self._secret = secret
        self._key: Any = load_pem_private_key(_bytes(key), None) if isinstance(key, str | bytes) else key
        self._kid = kid
        self._workload = None if workload is None else Path(workload)
        self._assertion_type = _TYPE + ("jwt-spiffe" if spiffe else "jwt-bearer")
        self._asked = {"grant_type": "client_credentials"}
        if scope is not None:
            self._asked["scope"] = scope if isinstance(scope, str) else " ".join(scope)
        if resource is not None:
            self._asked["resource"] = resource
        self._endpoint = token_endpoint or issuer.rstrip("/") + "/oauth/token"
        self._own_transport = HttpTransport() if transport is None else None
        self._transport: Transport = transport or cast("Transport", self._own_transport)
        self._wall = wall
        self._elapsed = elapsed
        self._pause = pause
        self._held: Cached[str] = Cached(f"the token of {client_id}", self._load, elapsed=elapsed)

    def __repr__(self) -> str:
        return f"Machine({self._issuer!r}, {self.client_id!r})"

    def token(self) -> str:
        """A token that is good now. Raises NoToken."""
        token = self._held.fresh()
        if token is not None:
            return token
        flight = self._held.renewal()
        if flight is not None:
            with contextlib.suppress(FutureTimeoutError):
                flight.result(timeout=_WAIT_SECONDS)
        return self._found()

    async def atoken(self) -> str:
        """The same for an event loop, which is not blocked."""
        token = self._held.fresh()
        if token is not None:
            return token
        flight = self._held.renewal()
        if flight is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(flight), _WAIT_SECONDS)
        return self._found()

    def authorization(self) -> str:
        """The value of an `Authorization` header."""
        return f"Bearer {self.token()}"

    def close(self) -> None:
        """Close connections. A machine may be used again afterwards."""
        if self._own_transport is not None:
            self._own_transport.close()

    def give_up(self, token: str) -> bool:
        """Get another token next time, since somebody refused this one; tell whether that is worth a try.

        A token that is only just made is kept: whoever refuses it would refuse the next one too.
        """
        age = self._held.age_seconds()
        if self._held.fresh() != token:
            return True
        if age is None or age < _YOUNG_SECONDS:
            return False
        self._held.drop(token)
        return True

    def __call__(self, request: Any) -> Any:
        """The hook for `requests`, and for synchronous `httpx`: put the token into a request. `requests` tries a 401 once more."""
        request.headers["Authorization"] = self.authorization()
        if hasattr(request, "register_hook"):
            request.register_hook("response", self._again)
        return request

    def httpx_auth(self) -> Any:
        """The `auth` of an `httpx.Client` or `httpx.AsyncClient`: a 401 is tried once more with a new token."""
        from identity_verifier.httpx_auth import MachineAuth  # noqa: PLC0415 -- httpx is no dependency of ours

        return MachineAuth(self)

    def _again(self, response: Any, **options: Any) -> Any:
        request = response.request
        used = request.headers.get("Authorization", "").removeprefix("Bearer ")
        repeatable = request.body is None or isinstance(request.body, bytes | str)
        if response.status_code != 401 or not repeatable or not self.give_up(used):
            return response
        _ = response.content  # Read to its end, so that the connection serves again.
        response.close()
        again = request.copy()
        again.headers["Authorization"] = self.authorization()
        answered = response.connection.send(again, **options)
        answered.history.append(response)
        answered.request = again
        return answered

    def _found(self) -> str:
        token = self._held.fresh()
        if token is None:
            raise NoToken(f"{self.client_id}: {self._held.failure or 'the issuer does not answer'}")
        return token

    def _load(self, _held: str | None, _etag: str | None) -> Loaded[str]:
        for pause in (*_PAUSES, None):
            try:
                response = self._transport(self._request())
            except Unreachable:
                if pause is None:
                    raise
                self._pause(pause)
                continue
            if response.status == 200:
                return _loaded(response)
            if pause is None or response.status not in (429, 500, 502, 503, 504):
                raise Unreachable(_refusal(response))
            self._pause(_asked_pause(response, pause))
        raise AssertionError("the last try returns or raises")

    def _request(self) -> Request:
        form = dict(self._asked)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if self._secret is not None:
            pair = f"{quote(self.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form |= {
                "client_id": self.client_id,
                "client_assertion_type": self._assertion_type,
                "client_assertion": self._assertion(),
            }
        return Request("POST", self._endpoint, headers, urlencode(form).encode())

    def _assertion(self) -> str:
        if self._workload is not None:
            try:
                return self._workload.read_text().strip()
            except OSError as exc:
                raise Unreachable(f"the workload's token cannot be read: {type(exc).__name__}") from exc
        now = int(self._wall())
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self._issuer,
            "iat": now,
            "exp": now + _ASSERTION_SECONDS,
            "jti": str(uuid.uuid4()),
        }
        alg = "ES256" if isinstance(self._key, EllipticCurvePrivateKey) else "RS256"
        return jwt.encode(claims, self._key, alg, {"kid": self._kid} if self._kid else None)


def _loaded(response: Response) -> Loaded[str]:
    try:
        said = json.loads(response.body)
        token, seconds = said["access_token"], float(said["expires_in"])
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Unreachable("the answer is no token") from exc
    if not isinstance(token, str) or not token:
        raise Unreachable("the answer is no token")
    return Loaded(token, max(1.0, seconds))


def _refusal(response: Response) -> str:
    try:
        said = json.loads(response.body)
        word = said.get("error", "") if isinstance(said, dict) else ""
    except (ValueError, RecursionError):
        word = ""
    return f"the issuer answered {response.status} {word if isinstance(word, str) else ''}".strip()


def _asked_pause(response: Response, otherwise: float) -> float:
    asked = response.headers.get("retry-after", "")
    return min(_MAX_PAUSE, float(asked)) if asked.isascii() and asked.isdigit() else otherwise


def _bytes(pem: str | bytes) -> bytes:
    return pem.encode() if isinstance(pem, str) else pem
