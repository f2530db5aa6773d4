"""The verdict on a token: one course of checks, driven by a thread or by an event loop.

`_course` is that course. It is a generator which stops only where it has to wait (for keys, for a list, for an answer), and yields what it
waits for. `verify` lets its thread wait; `averify` awaits. So both give the same verdict, and neither has checks of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, Literal, TypeVar, cast

from identity_verifier import clocks, status
from identity_verifier.cached import Cached
from identity_verifier.caller import Caller, caller_of, check_claims
from identity_verifier.clocks import Clock
from identity_verifier.introspection import Introspection
from identity_verifier.jose import (
    ACCESS_TOKEN,
    MAX_TOKEN_BYTES,
    Key,
    KeySet,
    Unfit,
    UnknownKey,
    check_signature,
    claims_of,
    find_key,
    split,
)
from identity_verifier.refusals import (
    BAD_TOKEN,
    CHANGED,
    EXPIRED,
    FORBIDDEN,
    NO_TOKEN,
    TENANTS_UNTOLD,
    TWO_TOKENS,
    UNAVAILABLE,
    Problem,
    Refused,
    Unreachable,
)
from identity_verifier.sources import STALE_KEYS_SECONDS, WAIT_SECONDS, Sources
from identity_verifier.transport import HttpTransport, Transport, check_issuer

OnStale = Literal["accept", "introspect", "refuse"]
T = TypeVar("T")

_UNKNOWN_KID_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 30.0
_ASKING_THREADS: Final = 16
_RIGHTS: Final = ("roles", "groups", "tenants", "scope", "tenants_omitted")
_all: Final[weakref.WeakSet[Verifier]] = weakref.WeakSet()

# What a course yields: a flight to wait for, or a question to put, whose answer is sent back.
_Wait = Future[None] | Callable[[], Any]
_Course = Generator[_Wait, Any, T]


class Verifier:
    """Verifies access tokens of one issuer for one audience; make one for each process and share it among its threads.

    `audience` is this service as its clients name it. `client` is this service's own client id and secret, with the scope `introspect`,
    for what only the issuer can tell: `fresh=True`, rights that have changed, tenants that did not fit into the token.

    `on_stale` says what becomes of a token when its status list cannot be renewed: `accept` believes the last list for `max_stale` seconds
    more, `introspect` asks about each token, `refuse` answers 503 at once.

    Nothing is fetched before the first token comes; `warm()` fetches the keys at start.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        client: tuple[str, str] | None = None,
        on_stale: OnStale = "accept",
        max_stale: float = 86_400,
        leeway: float = 30,
        allow_http: bool = False,
        jwks_uri: str | None = None,
        introspection_endpoint: str | None = None,
        transport: Transport | None = None,
        wall: Clock = clocks.wall,
        elapsed: Clock = clocks.elapsed,
    ) -> None:
        if not audience:
            raise ValueError("an audience is required: what this service is called in the tokens that are meant for it")
        if on_stale not in ("accept", "introspect", "refuse"):
            raise ValueError(f"on_stale is accept, introspect or refuse, not {on_stale!r}")
        if on_stale == "introspect" and client is None:
            raise ValueError("on_stale='introspect' needs a client to ask as")
        self.issuer = check_issuer(issuer, insecure=allow_http)
        self.audience = audience
        self._on_stale = on_stale
        self._max_stale = max_stale
        self._leeway = leeway
        self._wall = wall
        self._elapsed = elapsed
        self._own_transport = HttpTransport() if transport is None else None
        self._transport: Transport = transport or cast("Transport", self._own_transport)
        base = issuer.rstrip("/")
        self._sources = Sources(
            issuer, jwks_uri or f"{base}/.well-known/jwks.json", self._transport, wall=wall, elapsed=elapsed
        )
        endpoint = introspection_endpoint or f"{base}/oauth/introspect"
        self._introspection = Introspection(endpoint, client, self._transport, elapsed=elapsed) if client else None
        self._next_unknown_kid = 0.0
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        _all.add(self)

    @property
    def can_ask(self) -> bool:
        """Whether it has a client to introspect as."""
        return self._introspection is not None

    def verify(
        self,
        authorization: str | None,
        *,
        tenant: str | None = None,
        role: str | Iterable[str] | None = None,
        scope: str | Iterable[str] | None = None,
        fresh: bool = False,
    ) -> Caller:
        """Who the `Authorization` header speaks for. Raises Refused.

        `tenant`: the caller must be a member. `role`, `scope`: the caller must have it, or all of them; roles in that tenant count.
        `fresh`: ask the issuer, for what an ended session must not do even within the age of a status list.
        """
        course = self._course(authorization, tenant, _words(role), _words(scope), fresh)
        try:
            wait = next(course)
            while True:
                try:
                    answer = _block(wait)
                except Unreachable as exc:
                    wait = course.throw(exc)
                else:
                    wait = course.send(answer)
        except StopIteration as done:
            return self._count("accepted", cast("Caller", done.value))
        except Refused as refused:
            raise self._count(f"refused {refused.status}", refused) from refused.__cause__

    async def averify(
        self,
        authorization: str | None,
        *,
        tenant: str | None = None,
        role: str | Iterable[str] | None = None,
        scope: str | Iterable[str] | None = None,
        fresh: bool = False,
    ) -> Caller:
        """The same as `verify`, for an event loop, which goes on with other things while this waits."""
        course = self._course(authorization, tenant, _words(role), _words(scope), fresh)
        try:
            wait = next(course)
            while True:
                try:
                    answer = await self._await(wait)
                except Unreachable as exc:
                    wait = course.throw(exc)
                else:
                    wait = course.send(answer)
        except StopIteration as done:
            return self._count("accepted", cast("Caller", done.value))
        except Refused as refused:
            raise self._count(f"refused {refused.status}", refused) from refused.__cause__

    def warm(self) -> bool:
        """Fetch the keys now, and tell whether that worked; for the start of a service, which need not wait for its first caller."""
        flight = self._sources.keys.renewal()
        if flight is not None:
            _block(flight)
        return self._sources.keys.is_fresh()

    def health(self) -> dict[str, Any]:
        """What a health page shows: `ok`, `degraded` (going on with what is stale), or `down` (no keys); ages, and the last failures.

        It fetches nothing. A service that is not warm yet is `ok`: it has not been asked for anything.
        """
        keys, lists = self._sources.keys, list(self._sources.lists.items())  # A copy: others add to it meanwhile.
        usable = keys.stale(up_to_seconds=STALE_KEYS_SECONDS) is not None
        state = "ok"
        if not usable and keys.failure is not None:
            state = "down"
        elif keys.failure is not None or any(each.failure is not None for _, each in lists):
            state = "degraded"
        return {
            "status": state,
            "issuer": self.issuer,
            "keys": _shown(keys),
            "statusLists": [{"uri": uri, **_shown(each)} for uri, each in lists],
            "counters": self.counters(),
        }

    def counters(self) -> dict[str, int]:
        """How often what happened since the start: `accepted`, `refused 401`, `introspected`, `fetches of keys` and so on."""
        with self._lock:
            counted = dict(self._counted)
        counted["fetches of keys"] = self._sources.keys.attempts
        counted["fetches of status lists"] = sum(each.attempts for each in list(self._sources.lists.values()))
        return counted

    def close(self) -> None:
        """Close connections and threads. A verifier may be used again afterwards."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
        if self._own_transport is not None:
            self._own_transport.close()

    # The course of the checks. The order is part of what it promises: nothing of a token is believed, and nothing fetched for it but keys,
    # before its signature has held; and nobody learns from the words of a refusal what a forged token would have opened.

    def _course(
        self,
        authorization: str | None,
        tenant: str | None,
        roles: tuple[str, ...],
        scopes: tuple[str, ...],
        fresh: bool,
    ) -> _Course[Caller]:
        token = _bearer(authorization)
        try:
            # 1. Ours?
            header, body, signature = split(token)
            key = yield from self._key(header)
            check_signature(key, header, body, signature)
            claims: Mapping[str, Any] = claims_of(body)
            # 2. Whole, of this issuer, for this audience, and at this time?
            check_claims(claims, issuer=self.issuer, audience=self.audience)
            self._check_times(claims)
            named = status.reference_of(claims, issuer=self.issuer)
            # 3. Not ended since, and with the rights of now?
            asked = fresh
            if fresh:
                claims = yield from self._told(token, claims, otherwise=UNAVAILABLE)
            elif named is not None and (yield from self._must_ask(claims, named)):
                claims = yield from self._told(token, claims, otherwise=CHANGED, keep_seconds=_ANSWER_SECONDS)
            # A list that was read on the way may have brought newer keys: an emergency shows there first.
            self._sources.check_current(key)
            if tenant is not None and claims.get("tenants_omitted"):
                claims = yield from self._told(token, claims, otherwise=TENANTS_UNTOLD, keep_seconds=_ANSWER_SECONDS)
        except Unfit as exc:
            raise Refused(BAD_TOKEN, str(exc)) from exc
        # 4. A member, with the rights that this needs?
        caller = caller_of(claims, tenant=tenant, fresh=asked)
        if not caller.roles.issuperset(roles):
            raise Refused(FORBIDDEN, f"lacks a role of {sorted(roles)}")
        if not caller.scopes.issuperset(scopes):
            raise Refused(FORBIDDEN, f"lacks a scope of {sorted(scopes)}", scope=sorted(scopes))
        return caller

    def _key(self, header: str) -> _Course[Key]:
        keys = yield from self._keys()
        try:
            return find_key(keys, header, ACCESS_TOKEN)
        except UnknownKey:
            # A key may have been published since; a stranger may have made up its name. So one fetch in 10 s, for whoever comes first;
            # who comes while it is under way waits for it too.
            flight = self._flight_for_unknown_kid()
        if flight is not None:
            yield flight
        newer = self._sources.keys.stale(up_to_seconds=STALE_KEYS_SECONDS)
        try:
            return find_key(newer or keys, header, ACCESS_TOKEN)
        except UnknownKey as exc:
            if self._sources.keys.failure is not None:
                raise Refused(UNAVAILABLE, "an unknown kid, and the keys cannot be renewed") from exc
            raise Unfit("an unknown kid") from exc

    def _keys(self) -> _Course[KeySet]:
        cached = self._sources.keys
        keys = cached.fresh()
        if keys is None:
            usable = cached.stale(up_to_seconds=STALE_KEYS_SECONDS) is not None
            flight = cached.awaited(can_go_on=usable)
            if flight is not None:
                yield flight
            keys = cached.stale(up_to_seconds=STALE_KEYS_SECONDS)
        if keys is None:
            raise Refused(UNAVAILABLE, f"no keys: {cached.failure or 'the issuer does not answer'}")
        return keys

    def _flight_for_unknown_kid(self) -> Future[None] | None:
        cached = self._sources.keys
        with self._lock:
            now = self._elapsed()
            first = now >= self._next_unknown_kid
            if first:
                self._next_unknown_kid = now + _UNKNOWN_KID_SECONDS
        return cached.renewal(even_if_fresh=True) if first else cached.in_flight()

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._wall()
        if claims["nbf"] > now + self._leeway:
            raise Unfit("not valid yet: the clocks of this host and of the issuer differ")
        if claims["exp"] <= now - self._leeway:
            raise Refused(EXPIRED, "expired")

    def _must_ask(self, claims: Mapping[str, Any], named: status.Reference) -> _Course[bool]:
        """Whether only the issuer knows the rights of now. Raises Unfit for a token that was ended."""
        cached = self._sources.list_at(named.uri)
        listed = cached.fresh()
        if listed is None:
            usable = self._on_stale == "accept" and cached.stale(up_to_seconds=self._max_stale) is not None
            flight = cached.awaited(can_go_on=usable or self._on_stale == "introspect")
            if flight is not None:
                yield flight
            listed = cached.fresh() or cached.stale(up_to_seconds=self._max_stale)
            if not cached.is_fresh():
                self._count("judged by a stale list", None)
                if self._on_stale == "introspect":
                    return True
                if listed is None or self._on_stale == "refuse":
                    raise Refused(UNAVAILABLE, f"no status list that is new enough: {cached.failure}")
        assert listed is not None
        if claims["jti"] in listed.revoked_tokens:
            raise Unfit("revoked: the token itself")
        value = listed.status(named.index)
        if value not in (status.VALID, status.CHANGED):
            raise Unfit("revoked: its login or its secret was ended")
        return value == status.CHANGED

    def _told(
        self, token: str, claims: Mapping[str, Any], *, otherwise: Problem, keep_seconds: float = 0
    ) -> _Course[Mapping[str, Any]]:
        """The claims with the rights of now. `otherwise` is the refusal of a verifier that has no client to ask as."""
        introspection = self._introspection
        if introspection is None:
            raise Refused(otherwise, "the issuer should be asked, and this verifier has no client")
        self._count("introspected", None)
        try:
            told = yield lambda: introspection.ask(token, keep_seconds=keep_seconds)
        except Unreachable as exc:
            raise Refused(UNAVAILABLE, str(exc)) from exc
        if told is None:
            raise Unfit("the issuer says inactive; it says so of every token to a client without the scope introspect")
        if told.get("sub") != claims["sub"]:
            raise Unfit("the issuer speaks of another subject")
        # What it does not tell, the caller no longer has: nothing of the old rights may shine through.
        kept = {name: value for name, value in claims.items() if name not in _RIGHTS}
        merged = kept | {name: told[name] for name in _RIGHTS if name in told}
        check_claims(merged, issuer=self.issuer, audience=self.audience)
        return merged

    async def _await(self, wait: _Wait) -> Any:
        loop = asyncio.get_running_loop()
        if isinstance(wait, Future):
            try:
                return await asyncio.wait_for(asyncio.wrap_future(wait), WAIT_SECONDS)
            except TimeoutError:
                return None
        with self._lock:
            pool = self._pool = self._pool or ThreadPoolExecutor(_ASKING_THREADS, "identity-verifier asks")
        return await loop.run_in_executor(pool, wait)

    def _count(self, what: str, passed_on: T) -> T:
        with self._lock:
            self._counted[what] += 1
        return passed_on

    def _start_again_in_child(self) -> None:
        self._lock = threading.Lock()
        self._pool = None
        self._sources.forget_lock()
        if self._introspection is not None:
            self._introspection.forget_lock()
        if self._own_transport is not None:
            self._own_transport.forget_connections()


def _bearer(authorization: str | None) -> str:
    """The token of an `Authorization` header. Raises Refused."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        raise Refused(NO_TOKEN, "no bearer")
    token = token.strip(" ")
    if "," in token:
        # Two header lines become one with a comma between them; which of the two was meant is anybody's guess.
        raise Refused(TWO_TOKENS, "two Authorization headers")
    if len(token) > MAX_TOKEN_BYTES:
        raise Refused(BAD_TOKEN, "a token of more than 8 KiB")
    return token


def _words(given: str | Iterable[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def _block(wait: _Wait) -> Any:
    if not isinstance(wait, Future):
        return wait()
    try:
        return wait.result(timeout=WAIT_SECONDS)
    except FutureTimeoutError:
        return None


def _shown(cached: Cached[Any]) -> dict[str, Any]:
    age = cached.age_seconds()
    return {
        "fresh": cached.is_fresh(),
        "ageSeconds": None if age is None else int(age),
        "failure": cached.failure,
    }


def _after_fork() -> None:
    for verifier in list(_all):
        verifier._start_again_in_child()  # noqa: SLF001 -- its own module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
