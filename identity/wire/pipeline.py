"""One declaration of an endpoint, and the one way through it, whatever server carries the request.

An `Endpoint` is a value: where it is mounted, what it reads, how it is limited, what it answers. `Exchange` takes one request through
it: limit, caller, body, deed, answer. Flask and the fast lane only translate their requests and answers; nothing is decided there.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple

from marshmallow import Schema

from identity import logs
from identity.ambient import Origin
from identity.core.access import callers
from identity.core.access.callers import Caller, Presented
from identity.core.record import explain
from identity.errors import (
    INTERNAL,
    MALFORMED_REQUEST_HEAD,
    RATE_LIMITED,
    TOO_LARGE,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    UNAVAILABLE,
    VALIDATION,
    Problem,
    Refused,
)
from identity.instruments import limits
from identity.instruments.limits import Policy, Window
from identity.runtime import Runtime
from identity.storage import Contention
from identity.wire import metrics
from identity.wire.fields import Body, reader
from identity.wire.reading import read_form, read_json, read_query

MAX_BODY: Final = 64 * 1024
_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_NOT_MODIFIED: Final = 304
_CONTENTION_TRIES: Final = 4
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?", re.ASCII
)
_VISIBLE: Final = re.compile(r"[\x20-\x7e]*", re.ASCII)
_log = logging.getLogger("identity.request")


class Reads(Enum):
    """Which credentials an endpoint reads."""

    NOTHING = "none"
    BEARER = "bearer"
    BEARER_OR_KEY = "bearer or key pair"
    KEY = "key pair"
    CLIENT = "client authentication"


class Request(NamedTuple):
    """A request as any server can give it. Header names are lower case; repeated headers are joined by commas."""

    method: str
    target: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes | None
    peer: str


class Reply(NamedTuple):
    """What a handler answers: JSON by default."""

    payload: Any = None
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    content_type: str = "application/json"


class Answer(NamedTuple):
    """A finished response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """How a dialect spells a refusal."""

    name: str
    validation_status: int
    render: Callable[[Refused, int], Any]
    status_of: Callable[[Refused], int | None] = lambda _refused: None
    challenge: str = "Bearer"
    headers_of: Callable[[Refused], tuple[tuple[str, str], ...]] = lambda _refused: ()

    def status(self, refused: Refused) -> int:
        """The HTTP status of a refusal in this dialect."""
        own = self.status_of(refused)
        if own is not None:
            return own
        return self.validation_status if refused.problem.code == VALIDATION.code else refused.problem.status


def _envelope(refused: Refused, status: int) -> dict[str, Any]:
    """The one envelope of contract section 1."""
    body: dict[str, Any] = {"error": refused.problem.code, "message": refused.problem.message}
    if refused.field is not None:
        body["field"] = refused.field
    return body | {"status": status}


ENVELOPE: Final = Shape("envelope", 422, _envelope)
ENVELOPE_400: Final = Shape("envelope, validation is 400", 400, _envelope)


@dataclass(slots=True)
class Call:
    """One request inside its handler: everything that was read and checked."""

    rt: Runtime
    request: Request
    origin: Origin
    endpoint: Endpoint
    params: Mapping[str, str]
    body: dict[str, Any] = field(default_factory=dict)
    query: dict[str, list[str]] = field(default_factory=dict)
    presented: Presented = field(default_factory=Presented)
    window: Window | None = None
    identified: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Who is asking. Only for endpoints that read a credential."""
        if self.identified is None:
            raise Refused(UNAUTHENTICATED)
        return self.identified

    def header(self, name: str) -> str | None:
        """The value of a header, by its lower-case name."""
        return self.request.headers.get(name)

    def limit(self, policy: Policy, key: str, *, budget: str | None = None) -> None:
        """Count this request against a policy; at most once a request."""
        if self.window is None:
            self.window = self.rt.limiter.hit(policy, key, budget=budget)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route: the single source for routing, validation, limits, documentation and the tests that enumerate routes.

    `limit` is counted where its key is known: by client address first of all, by caller once known, by the handler itself where the key
    is in the body (`limits_itself`). `is_page`: a public page that costs more than its bytes; Flask-Limiter counts those.
    `hot` endpoints are mounted on the fast lane too; one that `writes` even when all is well is never run on the event loop.
    """

    method: str
    path: str
    handler: Callable[[Call], Reply]
    mounts: tuple[str, ...] = ("",)
    reads: Reads = Reads.NOTHING
    limit: Policy | None = None
    limits_itself: bool = False
    body: type[Schema] | None = None
    form: bool = False
    query: tuple[str, ...] = ()
    answer: type[Schema] | None = None
    status: int = 200
    shape: Shape = ENVELOPE
    hot: bool = False
    writes: bool = False
    admin: bool = False
    any_method: bool = False
    ignores_body: bool = False
    max_body: int = MAX_BODY
    cacheable: bool = False
    is_page: bool = False
    produces: str = "application/json"
    refusals: tuple[Problem, ...] = ()
    tags: tuple[str, ...] = ()
    load: Callable[[Mapping[str, Any]], dict[str, Any]] = field(init=False, repr=False)
    requires_body: bool = field(init=False)
    #: What logs and metrics call it: never what a client sent.
    name: str = field(init=False)

    def __post_init__(self) -> None:
        schema = self.body or Body
        object.__setattr__(self, "name", f"{self.method} {self.path}")
        object.__setattr__(self, "load", reader(schema))
        object.__setattr__(self, "requires_body", any(one.required for one in schema().fields.values()))

    @property
    def summary(self) -> str:
        """The first line of its handler's docstring."""
        return (self.handler.__doc__ or "").strip().partition("\n")[0]


class Dialect:
    """The endpoints of one wire contract, and what they have in common."""

    def __init__(self, name: str, *, mounts: tuple[str, ...] = ("",), shape: Shape = ENVELOPE, **defaults: Any) -> None:
        self.name = name
        self.endpoints: list[Endpoint] = []
        self._defaults: dict[str, Any] = {"mounts": mounts, "shape": shape, "tags": (name,), **defaults}

    def endpoint(
        self, method: str, path: str, **options: Any
    ) -> Callable[[Callable[[Call], Reply]], Callable[[Call], Reply]]:
        """Declare the decorated function as the handler of `method path`."""

        def declare(handler: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
            self.endpoints.append(Endpoint(method, path, handler, **{**self._defaults, **options}))
            return handler

        return declare


class Exchange:
    """One request on its way through an endpoint. `run` may be called again after WritesElsewhere; nothing is counted twice."""

    __slots__ = ("_call", "_networks", "_started", "endpoint", "rt")

    def __init__(
        self, rt: Runtime, endpoint: Endpoint, request: Request, params: Mapping[str, str], networks: Networks
    ) -> None:
        self._started = time.perf_counter()
        self.rt = rt
        self.endpoint = endpoint
        headers = request.headers
        fresh = _fresh_id(rt)
        given = headers.get("x-request-id")
        origin = Origin(
            address=client_address(request, networks),
            user_agent=_printable(headers.get("user-agent", "")),
            request_id=given if given is not None and _REQUEST_ID.fullmatch(given) else fresh,
            error_id=fresh,
        )
        self._call = Call(rt, request, origin, endpoint, params)

    def run(self) -> Answer:
        """The answer: the handler's, or the refusal in the dialect's shape. Never raises but WritesElsewhere."""
        call = self._call
        try:
            reply = self._attempt(call)
            refused = None
        except Refused as exc:
            reply, refused = _refusal(call, exc), exc
        except WritesElsewhere:
            raise
        except Exception as exc:  # noqa: BLE001 -- the last resort: a fault of ours must not show its insides
            _log.exception(
                "internal error",
                extra={"fields": {"requestID": call.origin.request_id, "errorID": call.origin.error_id}},
            )
            refused = Refused(INTERNAL, detail=type(exc).__name__, cause=exc)
            reply = _refusal(call, refused)
        return self._finish(call, reply, refused)

    def _attempt(self, call: Call) -> Reply:
        for attempt in range(_CONTENTION_TRIES):
            try:
                return self._pass(call)
            except Contention as exc:
                if attempt == _CONTENTION_TRIES - 1:
                    raise Refused(UNAVAILABLE, detail="contention", retry_after_seconds=1, cause=exc) from exc
                self.rt.pause(0.005 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _pass(self, call: Call) -> Reply:
        endpoint, request = self.endpoint, call.request
        # 1. What is no proper request is not counted, not authenticated, not read.
        _check_head(request)
        # 2. Logins are counted by client address before anything else is looked at.
        if endpoint.limit is Policy.AUTH and (endpoint.reads is Reads.NOTHING or not _has_credential(request.headers)):
            call.limit(Policy.AUTH, limits.address_key(call.origin.address))
        # 3. Who is asking, and how much of them.
        if endpoint.reads not in (Reads.NOTHING, Reads.CLIENT):
            call.presented = read_credentials(request.headers, endpoint.reads)
            if not endpoint.limits_itself:
                call.identified = callers.identify(call.rt, call.origin, call.presented)
                if endpoint.admin:
                    call.caller.require_admin()
                if endpoint.limit is not None:
                    self._limit_caller(call, endpoint.limit)
        # 4. What they ask.
        call.query = read_query(request.query)
        unknown = next((name for name in call.query if name not in endpoint.query), None)
        if unknown is not None and not endpoint.form:
            raise Refused(VALIDATION.saying("The query has a parameter that this route does not know"))
        if not endpoint.ignores_body:
            call.body = self._read_body(request)
        # 5. The deed.
        return endpoint.handler(call)

    def _limit_caller(self, call: Call, policy: Policy) -> None:
        tenant = call.header("x-tenant-id")
        if tenant is not None:
            membership = call.caller.memberships.find(tenant)
            if membership is not None:
                call.limit(policy, f"tenant {tenant}", budget=membership[1].get(policy))
                return
        call.limit(policy, f"subject {call.caller.subject}")

    def _read_body(self, request: Request) -> dict[str, Any]:
        endpoint, raw = self.endpoint, request.body
        if raw is None or len(raw) > endpoint.max_body:
            raise Refused(TOO_LARGE, detail=f"over {endpoint.max_body} bytes")
        content_type = request.headers.get("content-type", "")
        if endpoint.form:
            return dict(read_form(raw, content_type))
        if not raw and not endpoint.requires_body:
            return endpoint.load({})
        return endpoint.load(read_json(raw, content_type))

    def _finish(self, call: Call, reply: Reply, refused: Refused | None) -> Answer:
        endpoint, origin = self.endpoint, call.origin
        status = reply.status or endpoint.status
        body = reply.raw if reply.raw is not None else _json_bytes(reply.payload)
        headers: list[tuple[str, str]] = [("X-Request-Id", origin.request_id), ("X-Content-Type-Options", "nosniff")]
        if status != _NOT_MODIFIED:
            headers.append(("Content-Type", reply.content_type))
        if not (endpoint.cacheable and refused is None):
            headers.append(("Cache-Control", "no-store"))
            headers.append(("Vary", "Authorization, Origin"))
        window = call.window
        if window is not None:
            headers.append(("X-RateLimit-Limit", str(window.limit)))
            headers.append(("X-RateLimit-Remaining", str(window.remaining)))
            headers.append(("X-RateLimit-Reset", str(window.reset_at)))
        headers.extend(reply.headers)
        if refused is not None:
            headers.append(("x-error", refused.problem.message[:200]))
            headers.append(("x-error-id", origin.error_id))
            caller = call.identified.subject if call.identified else ""
            explain.note(self.rt, origin, endpoint.name, status, refused, caller=caller)
        elapsed = time.perf_counter() - self._started
        metrics.observe(endpoint.name, status, elapsed)
        _log_request(call, status, elapsed, refused)
        return Answer(status, tuple(headers), body)


class WritesElsewhere(Exception):
    """This exchange needs a transaction, which its thread must not wait for; run it again where it may."""


Networks = tuple[IPv4Network | IPv6Network, ...]


def networks_of(texts: Iterable[str]) -> Networks:
    """The parsed networks of the trusted proxies."""
    return tuple(ip_network(text, strict=False) for text in texts)


def client_address(request: Request, trusted: Networks) -> str:
    """Whose request it is: the peer, or the right-most hop that no trusted proxy is, when the peer is a trusted proxy.

    What stands left of that hop was written by the client and means nothing. A hop that is no address ends the walk at the proxy.
    """
    address = request.peer
    if not trusted or not _is_within(address, trusted):
        return address
    for hop in reversed(request.headers.get("x-forwarded-for", "").split(",")):
        candidate = hop.strip().strip("[]")
        try:
            ip_address(candidate)
        except ValueError:
            return address
        address = candidate
        if not _is_within(address, trusted):
            return address
    return address


def read_credentials(headers: Mapping[str, str], reads: Reads) -> Presented:
    """The credentials in the headers, as far as an endpoint reads them. Raises Refused for a malformed or repeated one."""
    bearer = None
    authorization = headers.get("authorization")
    if authorization is not None and reads is not Reads.KEY:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            bearer = token.strip(" ")
            if "," in bearer:
                raise Refused(
                    TWO_CREDENTIALS.saying("The request carries two bearers"), detail="two Authorization headers"
                )
    if reads is Reads.BEARER:
        return Presented(bearer)
    return Presented(bearer, headers.get("api-key"), headers.get("api-secret"))


def _has_credential(headers: Mapping[str, str]) -> bool:
    return "authorization" in headers or "api-key" in headers


def refuse_outside(
    rt: Runtime,
    request: Request,
    refused: Refused,
    shape: Shape,
    networks: Networks,
    *,
    headers: Sequence[tuple[str, str]] = (),
) -> Answer:
    """The answer to a request that reached no endpoint (404, 405), made by the same pipeline."""

    def handler(_call: Call) -> Reply:
        raise refused

    nowhere = replace(_NOWHERE, handler=handler, shape=shape)
    # Without its query: that is no fault where there is no route that reads one.
    answer = Exchange(rt, nowhere, request._replace(query=""), {}, networks).run()
    return answer._replace(headers=answer.headers + tuple(headers))


def _check_head(request: Request) -> None:
    host = request.headers.get("host", "")
    # `//path` would be routed as `/path`, behind the back of a proxy that judges by paths.
    in_form = request.target.startswith("/") and not request.target.startswith("//")
    if not _HOST.fullmatch(host) or not in_form or "\0" in request.path:
        raise Refused(MALFORMED_REQUEST_HEAD, detail="Host or request target")


def _refusal(call: Call, refused: Refused) -> Reply:
    shape, problem = call.endpoint.shape, refused.problem
    status = shape.status(refused)
    headers = list(shape.headers_of(refused))
    window = refused.evidence.get("window")
    if isinstance(window, Window):
        call.window = window
    if problem.status in (RATE_LIMITED.status, UNAVAILABLE.status):
        headers.append(("Retry-After", str(refused.retry_after_seconds or 1)))
    if status == UNAUTHENTICATED.status:
        challenge = _challenge(call, problem)
        if challenge:
            headers.append(("WWW-Authenticate", challenge))
    return Reply(shape.render(refused, status), status, tuple(headers))


def _challenge(call: Call, problem: Problem) -> str:
    """RFC 6750 section 3: no error code where no token was presented."""
    if call.endpoint.reads in (Reads.NOTHING, Reads.KEY):
        return ""
    if call.endpoint.reads is Reads.CLIENT:
        return call.endpoint.shape.challenge
    presented = call.presented.bearer is not None
    return f'Bearer error="{problem.bearer}"' if presented and problem.bearer else "Bearer"


def _is_within(address: str, networks: Networks) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address == "" and any(network.prefixlen == 0 for network in networks)
    # A socket that serves both families shows IPv4 peers as `::ffff:192.0.2.1`.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return any((mapped or parsed) in network for network in networks)


def _fresh_id(rt: Runtime) -> str:
    """A random UUID (version 4), made by slicing: a request pays for it whether or not it needs it."""
    text = rt.entropy.bytes(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def _printable(text: str) -> str:
    return text[:400] if _VISIBLE.fullmatch(text) else "".join(c if " " <= c <= "~" else "?" for c in text[:400])


def _json_bytes(payload: Any) -> bytes:
    return _encode(payload).encode()


def _log_request(call: Call, status: int, elapsed: float, refused: Refused | None) -> None:
    fields: dict[str, Any] = {
        "requestID": call.origin.request_id,
        "route": call.endpoint.name,
        "status": status,
        "ms": round(elapsed * 1000, 2),
        "address": call.origin.address,
    }
    if refused is not None:
        fields |= {"error": refused.problem.code, "errorID": call.origin.error_id, "detail": refused.detail}
    if call.identified is not None:
        fields["caller"] = call.identified.subject
    logs.request(fields)


def _nowhere(_call: Call) -> Reply:
    """Nothing is here."""
    raise AssertionError("replaced by refuse_outside")


_NOWHERE: Final = Endpoint("ANY", "(no route)", _nowhere, ignores_body=True, query=())
