"""Groups F and I: public keys, metadata and health. None of it depends on who asks."""

from __future__ import annotations

import json

from marshmallow import Schema, fields

from identity import migrations
from identity.core import upkeep
from identity.core.clients import applications
from identity.core.mail import outbox
from identity.errors import UNAVAILABLE, Refused
from identity.instruments.statuslists import PATH as STATUS_LISTS
from identity.runtime import Runtime
from identity.wire.endpoint import Call, Dialect, Reply
from identity.wire.head import is_known

public = Dialect("F and I: keys, metadata, health", ignores_query=True)

CLIENT_METHODS = ["client_secret_basic", "client_secret_post", "private_key_jwt"]

LATE_MAIL_SECONDS = 30


class Jwk(Schema):
    """A public key (RFC 7517): RSA has `n` and `e`, P-256 has `crv`, `x` and `y`."""

    kty = fields.String(required=True)
    use = fields.String(required=True)
    alg = fields.String(required=True)
    kid = fields.String(required=True)
    n = fields.String()
    e = fields.String()
    crv = fields.String()
    x = fields.String()
    y = fields.String()


class JwkSet(Schema):
    """The public keys that verify our tokens."""

    keys = fields.List(fields.Nested(Jwk), required=True)


class Health(Schema):
    """How the service is."""

    status = fields.String(required=True, metadata={"example": "ok"})
    parts = fields.Dict(keys=fields.String(), values=fields.String())


@public.endpoint(
    "GET",
    "/.well-known/jwks.json",
    answer=JwkSet,
    hot=True,
    repeats=True,
    cacheable=True,
    any_origin=True,
    ignores_body=True,
)
def jwks(call: Call) -> Reply:
    """The public signing keys, for verifiers; cache them for as long as `Cache-Control` says."""
    body, etag = call.rt.ring.jwks()
    headers = (("Cache-Control", f"public, max-age={call.rt.settings.jwks_max_age_seconds}"), ("ETag", etag))
    if is_known(call.header("if-none-match"), etag):
        return Reply(raw=b"", status=304, headers=headers)
    return Reply(raw=body, headers=headers)


@public.endpoint(
    "GET", "/.well-known/oauth-authorization-server", is_page=True, cacheable=True, any_origin=True, ignores_body=True
)
def authorization_server(call: Call) -> Reply:
    """What clients of group E need to know (RFC 8414)."""
    return _metadata(call.rt, _server(call.rt))


@public.endpoint(
    "GET", "/.well-known/openid-configuration", is_page=True, cacheable=True, any_origin=True, ignores_body=True
)
def openid_configuration(call: Call) -> Reply:
    """The same where OpenID libraries look for it; there is no OpenID sign-in here."""
    more = {
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(call.rt.ring.algorithms()),
    }
    return _metadata(call.rt, _server(call.rt) | more)


@public.endpoint("GET", "/health/live", answer=Health, hot=True, repeats=True, ignores_body=True)
def live(_call: Call) -> Reply:
    """Whether the process answers."""
    return Reply({"status": "ok"})


@public.endpoint("GET", "/health/ready", answer=Health, ignores_body=True, refusals=(UNAVAILABLE,))
def ready(call: Call) -> Reply:
    """Whether everything that a login needs answers; names the part that does not.

    `degraded` (still 200: no other process would do better) when mail is late.
    """
    rt, parts = call.rt, {}
    checks = {
        "database": lambda: upkeep.prove_writes(rt),
        "migrations": lambda: _check_migrations(rt),
        "keys": lambda: _check_keys(rt),
        "limits": rt.limiter.ping,
    }
    for name, check in checks.items():
        try:
            check()
            parts[name] = "ok"
        except Refused as refused:
            parts[name] = "down"
            raise Refused(
                UNAVAILABLE.saying(f"The part that is down: {name}"), detail=refused.detail, retry_after_seconds=1
            ) from refused
    late = outbox.standing_of(rt.database, rt.clock.now()).oldest_seconds > LATE_MAIL_SECONDS
    parts["mail"] = "degraded" if late else "ok"
    return Reply({"status": parts["mail"], "parts": parts})


def _check_migrations(rt: Runtime) -> None:
    # A newer schema is fine: while an upgrade rolls, the old version goes on being asked.
    if (migrations.current(rt.database) or "") < migrations.HEAD:
        raise Refused(UNAVAILABLE, detail="the database is not migrated")


def _check_keys(rt: Runtime) -> None:
    if not rt.ring.is_ready():
        raise Refused(UNAVAILABLE, detail="no signing key")


def _server(rt: Runtime) -> dict[str, object]:
    """All of RFC 8414 section 2 that we do."""
    issuer = rt.settings.issuer
    endpoints = {
        "token_endpoint": f"{issuer}/oauth/token",
        "introspection_endpoint": f"{issuer}/oauth/introspect",
        "revocation_endpoint": f"{issuer}/oauth/revoke",
    }
    return {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        **endpoints,
        "grant_types_supported": ["client_credentials"],
        # Demanded, and never empty (RFC 8414 section 3.2); there is no authorization endpoint that could answer another.
        "response_types_supported": ["none"],
        **_scopes(rt),
        **{f"{name}_auth_methods_supported": CLIENT_METHODS for name in endpoints},
        **{f"{name}_auth_signing_alg_values_supported": ["RS256", "ES256"] for name in endpoints},
        "service_documentation": f"{issuer}/docs",
        "status_list_aggregation_endpoint": f"{issuer}{STATUS_LISTS}",
    }


def _scopes(rt: Runtime) -> dict[str, object]:
    """The scopes in use; nothing while the database is down, since the rest is true all the same."""
    try:
        return {"scopes_supported": list(applications.public_scopes(rt))}
    except Refused:
        return {}


def _metadata(rt: Runtime, document: dict[str, object]) -> Reply:
    headers = (("Cache-Control", f"public, max-age={rt.settings.jwks_max_age_seconds}"),)
    return Reply(raw=json.dumps(document, separators=(",", ":")).encode(), headers=headers)
