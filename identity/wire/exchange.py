"""One declaration of an endpoint, and the one way through it, whatever server carries the request.

An `Endpoint` is a value: where it is mounted, what it reads, how it is limited, what it answers. `Exchange` takes one request through
it: limit, caller, body, deed, answer. Flask and the fast lane only translate their requests and answers; nothing is decided there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.exc import IntegrityError

from identity import logs
from identity.ambient import Origin
from identity.aside import Elsewhere
from identity.core.access import callers, passage
from identity.core.record import explain
from identity.errors import (
    INTERNAL,
    RATE_LIMITED,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNAVAILABLE,
    VALIDATION,
    Problem,
    Refused,
)
from identity.instruments import limits
from identity.instruments.counts import REFUSALS
from identity.instruments.limits import Policy, Window
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Contention, is_race
from identity.wire import metrics
from identity.wire.endpoint import (
    HTML,
    Answer,
    Call,
    Endpoint,
    Reads,
    Reply,
    Request,
    Shape,
)
from identity.wire.head import (
    REQUEST_ID,
    Networks,
    check_head,
    client_address,
    fresh_id,
    has_credential,
    printable,
    read_credentials,
)
from identity.wire.reading import read_form, read_json, read_lines, read_query

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
# Header fields whose values are nobody's to keep.
CREDENTIALS: Final = frozenset({"authorization", "api-key", "api-secret", "cookie", "proxy-authorization"})
BODILESS: Final = (204, 304)
# What stands in the head for any route; a client authenticates to its own routes, and the console reads its cookie itself.
_CREDENTIALS: Final = (Reads.BEARER, Reads.BEARER_OR_KEY, Reads.KEY)
_CONTENTION_TRIES: Final = 4
# What a page can use of an answer beside its body, and what it may send.
_EXPOSED: Final = (
    "Access-Control-Expose-Headers",
    "x-error, x-error-id, X-Request-Id, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset",
)
_SENT_BY_PAGES: Final = (
    "Authorization, Content-Type, X-Tenant-Id, X-Request-Id, If-Match, If-None-Match, api-key, api-secret"
)
_log = logging.getLogger("identity.request")


class Exchange:
    """One request on its way through an endpoint. `run` may be called again after Elsewhere; nothing is counted twice."""

    __slots__ = ("_started", "call", "endpoint", "networks", "refused", "rt")

    def __init__(
        self, rt: Runtime, endpoint: Endpoint, request: Request, params: Mapping[str, str], networks: Networks
    ) -> None:
        self._started = time.perf_counter()
        self.rt = rt
        self.endpoint = endpoint
        self.networks = networks
        headers = request.headers
        fresh = fresh_id(rt)
        given = headers.get("x-request-id")
        origin = Origin(
            address=client_address(request, networks),
            user_agent=printable(headers.get("user-agent", "")),
            request_id=given if given is not None and REQUEST_ID.fullmatch(given) else fresh,
            error_id=fresh,
        )
        self.call = Call(rt, request, origin, endpoint, params)
        #: Why it was refused, once it has run.
        self.refused: Refused | None = None

    def forget_credentials(self) -> None:
        """For an exchange that is kept once it is over: of its request only what says from where it came, and how."""
        call = self.call
        headers = {name: value for name, value in call.request.headers.items() if name not in CREDENTIALS}
        self.call = Call(
            self.rt, call.request._replace(headers=headers, body=b""), call.origin, self.endpoint, call.params
        )

    def run(self) -> Answer:
        """The answer: the handler's, or the refusal in the dialect's shape. Never raises but Elsewhere."""
        call = self.call
        try:
            reply = self._attempt(call)
            refused = None
        except Refused as exc:
            reply, refused = _refusal(call, exc), exc
        except Elsewhere:
            raise
        except Exception as exc:  # noqa: BLE001 -- the last resort: a fault of ours must not show its insides
            ids = {"requestID": call.origin.request_id, "errorID": call.origin.error_id}
            logs.event(_log, logging.ERROR, "internal error", exc_info=exc, **ids)
            refused = Refused(INTERNAL, detail=type(exc).__name__, cause=exc)
            reply = _refusal(call, refused)
        self.refused = refused
        return self._finish(call, reply, refused)

    def turn_away(self) -> Answer | None:
        """The refusal of a caller who may not ask this at all, before a large body of theirs is read; None for one who may."""
        call, endpoint = self.call, self.endpoint
        try:
            check_head(call.request)
            call.presented = read_credentials(call.request.headers, endpoint.reads)
            caller = callers.identify(call.rt, call.origin, call.presented)
            if endpoint.admin:
                caller.require_admin()
        except Refused as exc:
            self.refused = exc
            return self._finish(call, _refusal(call, exc), exc)
        except (Contention, Elsewhere):
            return None  # Asked again with the body, in a place that can wait.
        return None

    def _attempt(self, call: Call) -> Reply:
        for attempt in range(_CONTENTION_TRIES):
            try:
                return self._pass(call)
            except (Contention, IntegrityError) as exc:
                if not is_race(exc):
                    raise
                if attempt == _CONTENTION_TRIES - 1:
                    raise Refused(UNAVAILABLE, detail="contention", retry_after_seconds=1, cause=exc) from exc
                self.rt.pause(0.005 * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _pass(self, call: Call) -> Reply:
        endpoint, request = self.endpoint, call.request
        # 1. What is no proper request is not counted, not authenticated, not read.
        check_head(request)
        # 2. Logins are counted by client address before anything else is looked at.
        if endpoint.limit is Policy.AUTH and (endpoint.reads is Reads.NOTHING or not has_credential(request.headers)):
            call.limit(Policy.AUTH, limits.address_key(call.origin.address))
        # 3. Who is asking, and how much of them.
        if endpoint.reads in _CREDENTIALS:
            call.presented = read_credentials(request.headers, endpoint.reads)
            if not endpoint.limits_itself:
                call.identified = callers.identify(call.rt, call.origin, call.presented)
                call.origin = call.origin.proven_by(call.caller.credential)
                if endpoint.admin:
                    call.caller.require_admin()
                if endpoint.owners:
                    named = call.header("x-tenant-id") or ""
                    call.tenant = passage.administer(
                        call.rt,
                        call.origin,
                        call.caller,
                        named,
                        call.limit,
                        recent=endpoint.recent_login,
                        credential=endpoint.makes_credential,
                    )
                elif endpoint.limit is not None:
                    passage.count_request(call.caller, call.header("x-tenant-id") or "", endpoint.limit, call.limit)
        # 4. What they ask.
        call.query = {} if endpoint.ignores_query else read_query(request.query)
        unknown = next((name for name in call.query if name not in endpoint.query), None)
        if unknown is not None and not endpoint.form:
            raise Refused(VALIDATION.saying("The query has a parameter that this route does not know"))
        if not endpoint.ignores_body:
            call.body = self._read_body(call)
        # 5. The deed.
        return endpoint.handler(call)

    def _read_body(self, call: Call) -> dict[str, Any]:
        endpoint, request, raw = self.endpoint, call.request, call.request.body
        if raw is None or len(raw) > endpoint.max_body:
            raise Refused(TOO_LARGE, detail=f"over {endpoint.max_body} bytes")
        content_type = request.headers.get("content-type", "")
        if endpoint.form:
            return dict(read_form(raw, content_type))
        if endpoint.lines:
            return {"lines": read_lines(raw, content_type)}
        # No body is an object without members: where one is needed, the answer names the field that is missing.
        body = endpoint.load(read_json(raw, content_type) if raw else {})
        for name, parameter in endpoint.said_again:
            if name in body and body.pop(name) != call.params[parameter].lower():
                raise Refused(VALIDATION.saying("The body and the path name two different ids"), field=name)
        return body

    def _finish(self, call: Call, reply: Reply, refused: Refused | None) -> Answer:
        endpoint, origin = self.endpoint, call.origin
        status = reply.status or endpoint.status
        body = reply.raw if reply.raw is not None else _json_bytes(reply.payload)
        headers: list[tuple[str, str]] = [("X-Request-Id", origin.request_id), ("X-Content-Type-Options", "nosniff")]
        if status not in BODILESS:
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
        headers.extend(shared_with(self.rt.settings, endpoint, call.header("origin")))
        if refused is not None:
            headers.append(("x-error", refused.problem.message[:200]))
            headers.append(("x-error-id", origin.error_id))
            caller = call.identified.subject if call.identified else ""
            self.rt.counts.add(REFUSALS, refused.problem.code, metrics.check_of(refused.problem))
            explain.note(self.rt, origin, endpoint.name, status, refused, caller=caller)
        elapsed = time.perf_counter() - self._started
        metrics.observe(endpoint.name, status, elapsed)
        self._count(call, status, issued=call.issued and refused is None)
        fields = logs.members(fields_of(call, refused))
        log_answer(call.origin.request_id, endpoint.name, status, elapsed, fields)
        return Answer(status, tuple(headers), body)

    def _count(self, call: Call, status: int, *, issued: bool) -> None:
        """Add to what the credential behind this request was used for, and to what the key was that signed its token."""
        tallies, name, address = self.rt.tallies, self.endpoint.name, call.origin.address
        caller = call.identified
        credential = call.proven if caller is None else caller.counted_as
        if credential or issued:
            tallies.note(credential, name, status, address, issued=issued)
        if caller is not None and call.presented.bearer is not None:
            kid = self.rt.ring.kid_of(call.presented.bearer)
            if kid:
                tallies.note(f"kid:{kid}", name, status, address, issued=False)


def shared_with(settings: Settings, endpoint: Endpoint, origin: str | None) -> tuple[tuple[str, str], ...]:
    """Which pages of other origins may read an answer (the Fetch standard's CORS): never with credentials of the browser's own.

    What says the same to everybody is open to all; everything else to exactly the origins of `IDENTITY_ORIGINS`.
    """
    if endpoint.any_origin:
        return (("Access-Control-Allow-Origin", "*"), _EXPOSED)
    if origin is not None and origin in settings.origins:
        return (("Access-Control-Allow-Origin", origin), _EXPOSED)
    return ()


def answer_preflight(
    rt: Runtime, request: Request, endpoint: Endpoint, methods: Iterable[str], networks: Networks
) -> Answer | None:
    """The answer to a browser that asks whether a page may call `endpoint`; None where it may not, or where nobody asks that."""
    origin = request.headers.get("origin")
    if "access-control-request-method" not in request.headers or not shared_with(rt.settings, endpoint, origin):
        return None
    headers = (
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", _SENT_BY_PAGES),
        ("Access-Control-Max-Age", "600"),
    )
    asked = replace(_NOWHERE, handler=lambda _call: Reply(raw=b"", status=204, headers=headers))
    asked = replace(asked, any_origin=endpoint.any_origin)
    return Exchange(rt, asked, request._replace(query=""), {}, networks).run()


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
    shown = shape.render(refused, status)
    if isinstance(shown, str):
        return Reply(raw=shown.encode(), status=status, headers=tuple(headers), content_type=HTML)
    return Reply(shown, status, tuple(headers))


def _challenge(call: Call, problem: Problem) -> str:
    """RFC 6750 section 3: no error code where no token was presented."""
    if call.endpoint.reads in (Reads.NOTHING, Reads.KEY, Reads.COOKIE):
        return ""
    if call.endpoint.reads is Reads.CLIENT:
        return call.endpoint.shape.challenge
    presented = call.presented.bearer is not None
    return f'Bearer error="{problem.bearer}"' if presented and problem.bearer else "Bearer"


def _json_bytes(payload: Any) -> bytes:
    return _encode(payload).encode()


def fields_of(call: Call, refused: Refused | None) -> dict[str, Any]:
    """What the log line of an answer says beside its id, route, status and time."""
    fields = {"address": call.origin.address}
    if refused is not None:
        fields |= {"error": refused.problem.code, "errorID": call.origin.error_id, "detail": refused.detail}
    if call.identified is not None:
        fields["caller"] = call.identified.subject
    return fields


def log_answer(request_id: str, route: str, status: int, seconds: float, rest: str) -> None:
    """Write the log line of an answer, whose other fields `rest` spells. Neither an id nor a route has anything to escape."""
    logs.request(
        f'"requestID":"{request_id}","route":"{route}","status":{status},"ms":{round(seconds * 1000, 2)},{rest}'
    )


def _nowhere(_call: Call) -> Reply:
    """Nothing is here."""
    raise AssertionError("replaced by refuse_outside")


_NOWHERE: Final = Endpoint("ANY", "(no route)", _nowhere, ignores_body=True, query=())
