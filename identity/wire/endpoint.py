"""An endpoint as a value: method, path, the credentials it reads, its limit, its schemas and its handler; and what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from marshmallow import Schema

from identity.ambient import Origin
from identity.canonical import canonical_id
from identity.core.access.callers import Caller, Presented
from identity.core.tokens.claims import AccessToken
from identity.errors import (
    UNAUTHENTICATED,
    VALIDATION,
    Problem,
    Refused,
)
from identity.instruments.limits import Policy, Window, client_key
from identity.runtime import Runtime
from identity.wire.fields import Body, SaidAgain, reader

MAX_BODY: Final = 64 * 1024
HTML: Final = "text/html; charset=utf-8"


class Reads(Enum):
    """Which credentials an endpoint reads."""

    NOTHING = "none"
    BEARER = "bearer"
    BEARER_OR_KEY = "bearer or key pair"
    KEY = "key pair"
    CLIENT = "client authentication"
    COOKIE = "the console's cookie"


class Request(NamedTuple):
    """A request as any server can give it. Header names are lower case; repeated headers are joined by commas."""

    method: str
    target: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes | None
    peer: str
    version: str = "1.1"


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
    is_page: bool = False
    """Whether a refusal is a page for people, and no JSON."""

    def status(self, refused: Refused) -> int:
        """The HTTP status of a refusal in this dialect."""
        own = self.status_of(refused)
        if own is not None:
            return own
        return self.validation_status if refused.problem.code == VALIDATION.code else refused.problem.status


def _envelope(refused: Refused, status: int) -> dict[str, Any]:
    """The one envelope of refusals (docs/interfaces.md)."""
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
    #: What proved the machine that asks on a route of `Reads.CLIENT` or `NOTHING`, for the counts of its uses: `secret:ID`.
    proven: str = ""
    #: Whether the answer holds an access token.
    issued: bool = False
    #: The tenant that the caller administers, on routes of `owners`.
    tenant: str = ""

    @property
    def caller(self) -> Caller:
        """Who is asking. Only for endpoints that read a credential."""
        if self.identified is None:
            raise Refused(UNAUTHENTICATED, detail="nobody was identified on this route")
        return self.identified

    def header(self, name: str) -> str | None:
        """The value of a header, by its lower-case name."""
        return self.request.headers.get(name)

    def hand_out(self, token: AccessToken) -> AccessToken:
        """The token, which is about to be answered: what a credential earns is counted."""
        self.issued = True
        return token

    @contextmanager
    def limiting_client(self, client_id: str, *, purpose: str = "") -> Iterator[Callable[[], None]]:
        """Around the authentication of a machine: counts it when it has proven itself, and what fails by client address alone.

        So made-up names leave no window of their own, and the window's headers do not tell whether a name exists. Yields what counts it,
        for an authentication that must be counted before it ends.
        """
        name = canonical_id(client_id) or client_id
        is_counted = False

        def count() -> None:
            nonlocal is_counted
            is_counted = True
            self.limit(Policy.APPLICATION, client_key(name, self.origin.address, purpose))

        try:
            yield count
        except Refused:
            if not is_counted:
                self.limit(Policy.APPLICATION, client_key("refused", self.origin.address, purpose))
            raise
        count()

    def limit(self, policy: Policy, key: str, *, budget: str | None = None) -> None:
        """Count this request against a policy; at most once a request."""
        if self.window is None:
            self.window = self.rt.limiter.hit(policy, key, budget=budget)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route: the single source for routing, validation, limits, documentation and the tests that enumerate routes.

    `limit` is counted where its key is known: by client address first of all, by caller once known, by the handler itself where the key
    is in the body (`limits_itself`). `is_page`: a public page that costs more than its bytes; Flask-Limiter counts those.
    `any_origin`: pages of every origin may read it, since it says the same to everybody (CORS).
    `hot` endpoints are mounted on the fast lane too; one that `writes` even when all is well is never run on the event loop.
    `repeats`: it answers the same request alike while what it was answered from is the same, but for its last step (`repeats`).
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
    #: The body is lines of JSON, which the handler reads.
    lines: bool = False
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    answer: type[Schema] | None = None
    answer_headers: tuple[str, ...] = ()
    status: int = 200
    shape: Shape = ENVELOPE
    hot: bool = False
    writes: bool = False
    repeats: bool = False
    admin: bool = False
    #: About the tenant in `X-Tenant-Id`, for whoever administers it; `recent_login`: only soon after signing in.
    owners: bool = False
    recent_login: bool = False
    #: Makes or changes a credential, which a key pair never does.
    makes_credential: bool = False
    any_method: bool = False
    ignores_body: bool = False
    ignores_query: bool = False
    max_body: int = MAX_BODY
    cacheable: bool = False
    is_page: bool = False
    any_origin: bool = False
    produces: str = "application/json"
    refusals: tuple[Problem, ...] = ()
    tags: tuple[str, ...] = ()
    load: Callable[[Mapping[str, Any]], dict[str, Any]] = field(init=False, repr=False)
    requires_body: bool = field(init=False)
    #: Fields of the body that only say a parameter of the path again, with its name.
    said_again: tuple[tuple[str, str], ...] = field(init=False)
    #: What logs and metrics call it: never what a client sent.
    name: str = field(init=False)
    #: Anybody may ask, uncounted, and nothing that it does can wait.
    is_open: bool = field(init=False)

    def __post_init__(self) -> None:
        is_open = self.reads is Reads.NOTHING and self.limit is None and not self.limits_itself
        object.__setattr__(self, "is_open", is_open)
        schema = self.body or Body
        object.__setattr__(self, "name", f"{self.method} {self.path}")
        object.__setattr__(self, "load", reader(schema))
        known = schema().fields
        object.__setattr__(self, "requires_body", any(one.required for one in known.values()))
        again = tuple((name, one.of) for name, one in known.items() if isinstance(one, SaidAgain))
        object.__setattr__(self, "said_again", again)

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
