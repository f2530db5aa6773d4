"""Group E: OAuth 2.0 for machines, on Authlib's authorization server (docs/interfaces.md).

Authlib runs the protocol; what it leaves to its user is decided here: one place for parameters and one way of authentication a request
(RFC 6749 sections 2.3 and 3.2), who a client is, what a token holds. Its errors become Refused like everybody's. The only grant is
`client_credentials`; there is no authorization endpoint.
"""

from __future__ import annotations

import base64
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from marshmallow import Schema, fields

from identity import grounds
from identity.canonical import canonical_id
from identity.core.access import introspection
from identity.core.clients import assertions, issuers, machine_tokens, secrets
from identity.core.clients.machine_tokens import DAY_LIMITED, SCOPE_REFUSED, TARGET_REFUSED
from identity.core.clients.secrets import Authenticated, name_of
from identity.errors import CLIENT_MISMATCH, LOCKED_OUT, MALFORMED, UNAUTHENTICATED, Problem, Refused
from identity.instruments.jws import unverified_claims
from identity.instruments.limits import Policy
from identity.wire.endpoint import Call, Dialect, Reads, Reply, Shape
from identity.wire.fields import Opaque, Text

GRANT: Final = "client_credentials"
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
SPIFFE_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
METHODS: Final = ["client_secret_basic", "client_secret_post", "private_key_jwt"]
_NO_CACHE: Final = (("Pragma", "no-cache"),)

INVALID_REQUEST: Final = MALFORMED.saying("A parameter is missing or malformed")
IN_THE_QUERY: Final = MALFORMED.saying("Send parameters in the body: the address of a request ends up in logs")
TWO_WAYS: Final = MALFORMED.saying("Authenticate in one way only")
TWO_CLIENTS: Final = MALFORMED.saying("The request names two different clients")
UNSUPPORTED_GRANT: Final = Problem(
    "VALIDATION_ERROR", 422, "The only grant here is client_credentials", oauth="unsupported_grant_type"
)
NO_CLIENT: Final = UNAUTHENTICATED.saying(
    "Authenticate with client_secret_basic, client_secret_post or private_key_jwt"
)
_PROBLEMS: Final = {
    problem.oauth: problem for problem in (INVALID_REQUEST, UNSUPPORTED_GRANT, NO_CLIENT, SCOPE_REFUSED)
}

# At its debug level Authlib writes whole tokens.
logging.getLogger("authlib").setLevel(logging.INFO)


def _render(refused: Refused, _status: int) -> dict[str, str]:
    """RFC 6749 section 5.2."""
    return {"error": refused.problem.oauth, "error_description": refused.problem.message}


def _status_of(refused: Refused) -> int:
    """401 for clients that did not prove themselves, 400 for what they asked wrongly; what HTTP itself refuses keeps its status."""
    problem = refused.problem
    if problem.oauth == "invalid_client":
        return 401
    return 400 if problem.status in (401, 403, 404, 409, 422) else problem.status


SHAPE: Final = Shape(
    "RFC 6749 section 5.2",
    400,
    _render,
    status_of=_status_of,
    challenge='Basic realm="identity", charset="UTF-8"',
    headers_of=lambda _refused: _NO_CACHE,
)

oauth = Dialect(
    "E: OAuth 2.0",
    shape=SHAPE,
    reads=Reads.CLIENT,
    form=True,
    limit=Policy.APPLICATION,
    limits_itself=True,
)


class ClientForm(Schema):
    """How a client proves itself in the form; or nothing of it, with HTTP Basic."""

    client_id = Opaque()
    client_secret = Opaque()
    client_assertion_type = Text(metadata={"enum": [ASSERTION_TYPE, SPIFFE_TYPE]})
    client_assertion = Opaque()


class TokenForm(ClientForm):
    """What a client asks for (RFC 6749 section 4.4.2, RFC 8707 section 2)."""

    grant_type = Text(required=True, metadata={"enum": [GRANT]})
    scope = Text(max_length=2048)
    resource = Text(max_length=200)


class PresentedToken(ClientForm):
    """A token to introspect or to revoke; the hint is not needed and changes nothing."""

    token = Opaque(required=True)
    token_type_hint = Text()


class GrantedToken(Schema):
    """An access token (RFC 6749 section 5.1)."""

    access_token = fields.String(required=True)
    token_type = fields.String(required=True, metadata={"enum": ["Bearer"]})
    expires_in = fields.Integer(required=True)
    scope = fields.String()


class Introspection(Schema):
    """What a token stands for now (RFC 7662 section 2.2); nothing but `active` where it is not active."""

    active = fields.Boolean(required=True)
    iss = fields.String()
    sub = fields.String()
    client_id = fields.String()
    username = fields.String()
    aud = fields.Raw(metadata={"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    iat = fields.Integer()
    nbf = fields.Integer()
    exp = fields.Integer()
    jti = fields.String()
    sid = fields.String()
    auth_time = fields.Integer()
    amr = fields.List(fields.String())
    roles = fields.List(fields.String())
    groups = fields.List(fields.String())
    tenants = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))
    scope = fields.String()
    email = fields.String()
    name = fields.String()
    token_type = fields.String(metadata={"enum": ["Bearer"]})
    status = fields.Dict(metadata={"description": "Where the status lists tell of it"})


class Nothing(Schema):
    """An empty object."""


_PARAMETERS: Final = frozenset(TokenForm().fields) | frozenset(PresentedToken().fields)
_AUTHENTICATION: Final = (CLIENT_MISMATCH, assertions.MISMATCH, NO_CLIENT, LOCKED_OUT)


@oauth.endpoint(
    "POST",
    "/oauth/token",
    headers=("Origin",),
    body=TokenForm,
    answer=GrantedToken,
    answer_headers=("X-Token-Reused",),
    hot=True,
    repeats=True,
    refusals=(*_AUTHENTICATION, DAY_LIMITED, UNSUPPORTED_GRANT, SCOPE_REFUSED, TARGET_REFUSED),
)
def token(call: Call) -> Reply:
    """Exchange client credentials for an access token (RFC 6749 section 4.4).

    `resource` (RFC 8707) selects the audience among those of the application; without it, the `Origin` header or its default does.
    """
    reply: Reply = _server().create_token_response(call)
    return reply


@oauth.endpoint(
    "POST",
    "/oauth/introspect",
    body=PresentedToken,
    answer=Introspection,
    hot=True,
    repeats=True,
    refusals=_AUTHENTICATION,
)
def introspect(call: Call) -> Reply:
    """Say what a token stands for now (RFC 7662): one's own, or with the scope `introspect` anybody's.

    Access tokens and session bearers are checked live, with the rights of their subject as of now. Whatever is forged, expired, revoked,
    a refresh token or somebody else's is `{"active": false}`.
    """
    reply: Reply = _server().create_endpoint_response("introspection", call)
    return reply


@oauth.endpoint("POST", "/oauth/revoke", body=PresentedToken, answer=Nothing, refusals=_AUTHENTICATION)
def revoke(call: Call) -> Reply:
    """End a token that was issued to this client (RFC 7009); a user's token or refresh token ends the session behind it.

    The answer is 200 for unknown, expired and foreign tokens too, and those are left alone.
    """
    reply: Reply = _server().create_endpoint_response("revocation", call)
    return reply


@dataclass(frozen=True, slots=True)
class _Client(ClientMixin):
    """A client that has proven itself in this call."""

    call: Call
    proven: Authenticated

    def __post_init__(self) -> None:
        self.call.proven = f"secret:{self.proven.secret_id}"

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in METHODS

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == GRANT


class _Request(OAuth2Request):
    """A call as Authlib reads one: the parameters are those of the form, and no others."""

    def __init__(self, call: Call) -> None:
        # Whether http will do was decided once, by Settings: a public issuer is https or the service does not start. Authlib would judge
        # each request by its address, which behind a proxy is not the client's, and by an environment variable.
        super().__init__("POST", f"https://{call.rt.settings.issuer.partition('://')[2]}{call.endpoint.path}")
        self.call = call
        # RFC 6749 section 3.2: a parameter without a value was not sent.
        self.parameters = {name: value for name, value in call.body.items() if value}
        self.payload = BasicOAuth2Payload(self.parameters)

    @property
    def form(self) -> Mapping[str, str]:
        return self.parameters


class _Again(dict[str, Any]):
    """The answer of a token that is given again: Authlib hands on what `_issue` makes, and nothing beside it."""


def _reply(body: dict[str, Any], status: int = 200) -> Reply:
    is_reused = isinstance(body, _Again)
    return Reply(body, status, (*_NO_CACHE, ("X-Token-Reused", "1")) if is_reused else _NO_CACHE)


class _Server(AuthorizationServer):
    """Authlib's server, speaking Call and Reply, and refusing like the rest of the house."""

    def create_oauth2_request(self, request: Call | _Request) -> _Request:
        return request if isinstance(request, _Request) else _checked(_Request(request))

    def handle_response(self, status: int, body: dict[str, Any], _headers: Any) -> Reply:
        return _reply(body, status)

    def handle_error_response(self, _request: _Request, error: OAuth2Error) -> Reply:
        raise Refused(_PROBLEMS.get(error.error, INVALID_REQUEST), detail=f"authlib: {error.error}", cause=error)

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens: what happened is in the audit."""


class _ClientCredentials(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS

    def save_token(self, _token: dict[str, Any]) -> None:
        """An application's token is stateless: no row."""


class _Introspection(IntrospectionEndpoint):
    CLIENT_AUTH_METHODS = METHODS

    def authenticate_token(self, request: _Request, client: _Client) -> dict[str, Any] | None:
        call = request.call
        return introspection.find(call.rt, call.origin, client.proven.application, _presented(request))

    def create_introspection_payload(self, token: dict[str, Any] | None) -> dict[str, Any]:
        return {"active": False} if token is None else {"active": True, **token}


class _Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = METHODS

    def authenticate_token(self, request: _Request, client: _Client) -> str:
        return _presented(request)

    def revoke_token(self, token: str, request: _Request) -> None:
        call, proven = request.call, request.client.proven
        origin = call.origin.proven_by(call.proven)
        introspection.revoke(call.rt, origin, proven.application, token)


@functools.cache
def _server() -> _Server:
    server = _Server()
    server.register_client_auth_method("client_secret_basic", _by_basic)
    server.register_client_auth_method("client_secret_post", _by_post)
    server.register_client_auth_method("private_key_jwt", _by_assertion)
    server.register_grant(_ClientCredentials)
    server.register_endpoint(_Introspection)
    server.register_endpoint(_Revocation)
    server.register_token_generator(GRANT, _issue)
    return server


def _checked(request: _Request) -> _Request:
    """A request whose parameters are in one place and whose client proves itself in one way."""
    call, form = request.call, request.form
    if not _PARAMETERS.isdisjoint(call.query):
        raise Refused(IN_THE_QUERY, detail="parameters in the query")
    ways = ("authorization" in call.request.headers, "client_secret" in form, "client_assertion" in form)
    if sum(ways) > 1:
        raise Refused(TWO_WAYS, detail="two client authentications")
    if call.endpoint.body is TokenForm and "grant_type" not in form:
        raise Refused(INVALID_REQUEST.saying("Missing grant_type parameter"))
    return request


def _presented(request: _Request) -> str:
    token = request.form.get("token")
    if token is None:
        raise Refused(INVALID_REQUEST.saying("Missing token parameter"))
    return token


def _by_basic(_query_client: Any, request: _Request) -> _Client | None:
    header = request.call.header("authorization")
    if header is None:
        return None
    scheme, _, encoded = header.partition(" ")
    if "," in encoded:
        raise Refused(TWO_WAYS, detail="two Authorization headers")
    if scheme.lower() != "basic":
        raise Refused(NO_CLIENT, detail="an Authorization header that is not Basic")
    try:
        client_id, _, secret = base64.b64decode(encoded.strip(" "), validate=True).decode().partition(":")
        # RFC 6749 section 2.3.1: both are form-encoded first. Ours read the same with and without.
        if "%" in client_id or "+" in client_id or "%" in secret or "+" in secret:
            client_id, secret = unquote_plus(client_id, errors="strict"), unquote_plus(secret, errors="strict")
    except ValueError as exc:
        raise Refused(NO_CLIENT, detail="malformed Basic credentials", cause=exc) from exc
    return _by_secret(request, client_id, secret)


def _by_post(_query_client: Any, request: _Request) -> _Client | None:
    form = request.form
    if "client_id" not in form or "client_secret" not in form:
        return None
    return _by_secret(request, form["client_id"], form["client_secret"])


def _by_secret(request: _Request, client_id: str, secret: str) -> _Client:
    call = request.call
    with _counted(request, client_id):
        return _Client(call, secrets.authenticate(call.rt, call.origin, client_id, secret))


def _by_assertion(_query_client: Any, request: _Request) -> _Client | None:
    call, form = request.call, request.form
    assertion = form.get("client_assertion")
    way = form.get("client_assertion_type")
    if assertion is None or way not in (ASSERTION_TYPE, SPIFFE_TYPE):
        return None
    issuer, named = call.rt.settings.issuer, form.get("client_id", "")
    maker = str(unverified_claims(assertion).get("iss", ""))
    if way == SPIFFE_TYPE or (named and name_of(maker) != name_of(named)):
        # Somebody else made it than the client that is named: the client's platform, if the client trusts it.
        if not named:
            raise Refused(
                NO_CLIENT.saying("Name the client_id that a workload's token is to prove"), detail="no client_id"
            )
        with _counted(request, named) as count:
            return _Client(
                call,
                issuers.authenticate_workload(
                    call.rt, call.origin, named, assertion, spiffe=way == SPIFFE_TYPE, admit=count
                ),
            )
    ours = tuple(dict.fromkeys((issuer, f"{issuer}/oauth/token", f"{issuer}{call.endpoint.path}")))
    with _counted(request, str(unverified_claims(assertion).get("sub", ""))) as count:
        return _Client(
            call,
            assertions.authenticate_assertion(call.rt, call.origin, assertion, audiences=ours, admit=count),
        )


def _counted(request: _Request, client_id: str) -> AbstractContextManager[Callable[[], None]]:
    """Count this try of a client, whose `client_id` parameter, if any, must name the same one."""
    call = request.call
    name = canonical_id(client_id) or client_id
    said = request.form.get("client_id", client_id)
    if (canonical_id(said) or said) != name:
        raise Refused(TWO_CLIENTS, detail="client_id differs from the authenticated client")
    # Tokens share their window with /application/token; resource servers that introspect must not use it up.
    purpose = "" if call.endpoint.body is TokenForm else f"{call.endpoint.path} "
    return call.limiting_client(client_id, purpose=purpose)


def _issue(client: _Client, scope: str | None, **_unused: Any) -> dict[str, Any]:
    """The token answer, with our claims and our lifetime; Authlib's own would live for ten days."""
    call, app = client.call, client.proven.application
    resource = call.body.get("resource")
    if resource:
        audience = machine_tokens.audience_for_resource(call.rt, app, resource)
    else:
        audience = machine_tokens.audience_of(call.rt, app, origin=call.header("origin"))
    asked = scope.split() if scope else None
    proven = client.proven
    grounds.note_last_step(lambda then: _reply(_grant(then, proven, asked, audience)))
    return _grant(call, proven, asked, audience)


def _grant(call: Call, proven: Authenticated, asked: Sequence[str] | None, audience: Sequence[str]) -> dict[str, Any]:
    call.proven = f"secret:{proven.secret_id}"
    issued = call.hand_out(machine_tokens.issue_token(call.rt, proven, scope=asked, audience=audience))
    answer: dict[str, Any] = {
        "access_token": issued.text,
        "token_type": issued.token_type,
        "expires_in": issued.expires_in,
    }
    answer |= {"scope": " ".join(issued.scope)} if issued.scope else {}
    return _Again(answer) if issued.is_reused else answer
