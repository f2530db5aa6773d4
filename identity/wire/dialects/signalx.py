"""Group D: the two-step login as SignalX's clients ask for it, in GraphQL (docs/interfaces.md).

A document may be small and do one thing: what GraphQL offers beyond that (aliases and batches that guess many times in one request, deep or
quadratic documents) is refused before it costs anything. A refused login answers 200 with the error in the data, as its clients expect;
everything that is no answer to a well-formed question answers `{"errors": [...]}` with a status of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from marshmallow import Schema, fields

from identity.core.clients import applications
from identity.core.clients.applications import STANDARD_APP_ID, ApplicationInfo
from identity.core.signin import by_password, challenges, password_proof
from identity.core.signin.by_password import Handout
from identity.errors import INTERNAL, INVALID_CODE, MALFORMED, RATE_LIMITED, Refused
from identity.instruments.limits import Policy
from identity.wire.endpoint import Call, Dialect, Reply, Shape
from identity.wire.fields import Body, Text

# graphql-core takes a seventh of a second to import; only a process that is asked in GraphQL pays for it.
if TYPE_CHECKING:
    from graphql import DocumentNode, GraphQLError, GraphQLResolveInfo, GraphQLSchema

MAX_TOKENS: Final = 200
_MAX_BODY: Final = 8 * 1024
_MAX_COMMENTS: Final = 20
_MAX_INTROSPECTION_TOKENS: Final = 2_000
_MAX_MESSAGE: Final = 200

UNFIT_DOCUMENT: Final = MALFORMED.saying("The GraphQL document does not parse or does not fit the schema")
UNFIT_VARIABLES: Final = MALFORMED.saying("The variables do not fit the GraphQL document")
ONE_FIELD: Final = MALFORMED.saying("Send one operation with one root field in each request")
NO_INTROSPECTION: Final = MALFORMED.saying("Introspection is switched off")

SCHEMA: Final = '''
"""The service, for those who ask for nothing in particular: GraphQL wants a query type."""
type Query { service: String! }

type Mutation {
  """The first step: name (an address or an alias) and password. `sessionID` is for `otp`."""
  login(username: String!, password: String!, appId: Int = 10): Login!
  """The second step: the user's TOTP code, else the one that was mailed, else the one that an administrator fixed."""
  otp(otp: String!, sessionID: String!, appId: Int = 10): Otp!
}

"""`code` is OK, or an error code of the REST API; then the other fields are null."""
type Login { message: String! code: String! sessionID: String }

type Otp { message: String! code: String! token: String userDetails: UserDetails }

type UserDetails { username: String! firstName: String! lastName: String! email: String! }
'''


class QueryBody(Body):
    """A GraphQL request (GraphQL over HTTP, section 5.4)."""

    operationName = Text(allow_none=True, min_length=0, max_length=200)
    query = Text(required=True, max_length=_MAX_BODY)
    variables = fields.Dict(keys=fields.String(), allow_none=True)
    extensions = fields.Raw(allow_none=True)


class QueryAnswer(Schema):
    """What the root field answered."""

    data = fields.Dict(required=True)


class _InData(Refused):
    """A refusal that the data tells."""

    def __init__(self, refused: Refused, data: dict[str, Any]) -> None:
        super().__init__(
            refused.problem,
            detail=refused.detail,
            evidence=refused.evidence,
            retry_after_seconds=refused.retry_after_seconds,
            cause=refused,
        )
        self.data = data


class _Unfit(Refused):
    """A document that was not executed, and what its author may read about it."""

    def __init__(self, error: GraphQLError) -> None:
        super().__init__(UNFIT_DOCUMENT, detail=type(error).__name__)
        self.hint = f"{UNFIT_DOCUMENT.message}: {error.message[:_MAX_MESSAGE]}"


@dataclass(slots=True)
class _Run:
    """One execution: the request, and the refusal that it met."""

    call: Call
    refused: Refused | None = None


def _render(refused: Refused, _status: int) -> dict[str, Any]:
    if isinstance(refused, _InData):
        return {"data": refused.data}
    return {"errors": [{"message": refused.hint if isinstance(refused, _Unfit) else refused.problem.message}]}


_SHAPE: Final = Shape("GraphQL", 400, _render, status_of=lambda refused: 200 if isinstance(refused, _InData) else None)
signalx = Dialect("D: GraphQL", shape=_SHAPE)


@signalx.endpoint(
    "POST",
    "/query",
    headers=("Origin",),
    limit=Policy.AUTH,
    body=QueryBody,
    max_body=_MAX_BODY,
    answer=QueryAnswer,
    refusals=(UNFIT_DOCUMENT, UNFIT_VARIABLES, ONE_FIELD, NO_INTROSPECTION, RATE_LIMITED),
)
def query(call: Call) -> Reply:
    """Sign in by GraphQL in two steps, the mutations `login` and `otp`; a refusal is told by their `code`."""
    from graphql import execute_sync  # noqa: PLC0415 -- see above

    run = _Run(call)
    result = execute_sync(
        _schema(),
        _document(call),
        context_value=run,
        variable_values=call.body.get("variables") or {},
        operation_name=call.body.get("operationName") or None,
        hide_suggestions=True,
    )
    for error in result.errors or ():
        _raise(error)
    data: dict[str, Any] = result.data or {}
    if run.refused is not None:
        raise _InData(run.refused, data)
    return Reply({"data": data})


def _document(call: Call) -> DocumentNode:
    """The parsed and valid document. Raises Refused for one that is too much, does too much, or does not fit."""
    from graphql import GraphQLError, parse, validate  # noqa: PLC0415 -- see above
    from graphql.language import FieldNode, OperationDefinitionNode  # noqa: PLC0415 -- see above

    introspects = call.rt.settings.development
    limit = _MAX_INTROSPECTION_TOKENS if introspects else MAX_TOKENS
    try:
        document = parse(
            call.body["query"],
            max_lexical_tokens=limit,
            max_comments=_MAX_COMMENTS,
            allow_empty_selection_sets=False,
        )
    except GraphQLError as exc:
        raise _Unfit(exc) from exc
    operations = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    roots = [root for operation in operations for root in operation.selection_set.selections]
    if len(roots) != 1 or not isinstance(roots[0], FieldNode):
        raise Refused(ONE_FIELD, evidence={"operations": len(operations), "root selections": len(roots)})
    if roots[0].name.value.startswith("__") and not introspects:
        raise Refused(NO_INTROSPECTION)
    # More than the first fault is nobody's business, and finding them all is where validation becomes slow.
    faults = validate(_schema(), document, max_errors=1, hide_suggestions=True, allow_empty_selection_sets=False)
    if faults:
        raise _Unfit(faults[0])
    return document


def _raise(error: GraphQLError) -> None:
    """What stopped an execution: a fault below the resolver goes on as itself; anything else were the variables."""
    from graphql import GraphQLError  # noqa: PLC0415 -- see above

    original = error.original_error
    if original is not None and not isinstance(original, GraphQLError):
        raise original
    # graphql-core quotes the variable's value, which may be a password.
    raise Refused(UNFIT_VARIABLES, cause=error)


@functools.cache
def _schema() -> GraphQLSchema:
    from graphql import build_schema  # noqa: PLC0415 -- see above

    schema = build_schema(SCHEMA)
    assert schema.query_type is not None
    assert schema.mutation_type is not None
    schema.query_type.fields["service"].resolve = lambda *_: "identity"
    schema.mutation_type.fields["login"].resolve = _resolver(_login)
    schema.mutation_type.fields["otp"].resolve = _resolver(_otp)
    return schema


def _resolver(deed: Callable[[Call, dict[str, Any]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def resolve(_source: object, info: GraphQLResolveInfo[_Run], **arguments: Any) -> dict[str, Any]:
        run = info.context
        try:
            _check_text(arguments)
            return deed(run.call, arguments)
        except Refused as refused:
            if refused.problem.status >= INTERNAL.status:
                raise
            run.refused = refused
            return {"code": refused.problem.code, "message": refused.problem.message}

    return resolve


def _check_text(arguments: dict[str, Any]) -> None:
    """Refuse what an escape of GraphQL's own has written past the reader of JSON."""
    if any(isinstance(value, str) and "\0" in value for value in arguments.values()):
        raise Refused(MALFORMED, detail="NUL")


def _login(call: Call, arguments: dict[str, Any]) -> dict[str, Any]:
    rt, origin = call.rt, call.origin
    identifier, password = arguments["username"], arguments["password"]
    resource = by_password.user_resource(rt, call.header("origin"))
    app = _find_application(call, arguments)
    if app is None:
        # The same work and the same count as for a wrong password: the numbers of applications cannot be listed by time or text.
        proof = password_proof.check_password(rt, origin, identifier, password)
        proof.guess.refuse(actor=proof.user.id, detail="no such application")
    issued = by_password.begin(
        rt,
        origin,
        identifier=identifier,
        password=password,
        handout=Handout.DAY,
        client_id=app.id,
        resource=resource,
        allows_fixed=True,
    )
    return {"code": "OK", "message": "Session ID creation successful", "sessionID": issued.token.reveal()}


def _otp(call: Call, arguments: dict[str, Any]) -> dict[str, Any]:
    rt, token = call.rt, arguments["sessionID"]
    app = _find_application(call, arguments)
    if app is None or challenges.get(rt, token, handout=Handout.DAY).client_id != app.id:
        raise Refused(INVALID_CODE, detail="the login began with another application")
    grant = by_password.complete(rt, call.origin, token=token, handout=Handout.DAY, code=arguments["otp"])
    first, _, last = grant.user.full_name.partition(" ")
    return {
        "code": "OK",
        "message": "Token created successfully",
        "token": call.hand_out(grant.access).text,
        "userDetails": {
            "username": grant.user.alias,
            "firstName": first,
            "lastName": last,
            "email": grant.user.email,
        },
    }


def _find_application(call: Call, arguments: dict[str, Any]) -> ApplicationInfo | None:
    """The enabled application that `appId` names; none given, or null, is the standard one."""
    app_id = arguments.get("appId")
    app = applications.find_by_app_id(call.rt, STANDARD_APP_ID if app_id is None else app_id)
    return app if app is not None and app.is_usable else None
