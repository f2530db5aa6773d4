"""Claims of one's own: what an application's `tokenClaims` add to tokens that are meant for its audiences (docs/interfaces.md).

A claim names an attribute (`tenant.plan`: of the application's tenant; `user.department`: of the token's subject; `application.region`: of
the application) or is fixed (`=gold`). They are resolved from the rows of now, for tokens, introspection and the gate alike; a missing
attribute leaves its claim out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Boolean, Text, bindparam, column, select, table

from identity.core.people import attributes
from identity.core.people.accounts import User
from identity.core.people.attributes import MAX_BYTES, NAME
from identity.core.people.tenancy import Tenant
from identity.errors import VALIDATION, Refused
from identity.runtime import Runtime
from identity.storage import Prepared

MOST: Final = 20
OMITTED: Final = "claims_omitted"
_SOURCES: Final = ("tenant", "user", "application")
#: What tokens, introspection and their readers give a meaning to already (RFC 7519, 7662, 8693, 8705, 9068, OpenID Connect, and ours).
RESERVED: Final = frozenset(
    {
        "iss",
        "sub",
        "aud",
        "exp",
        "nbf",
        "iat",
        "jti",
        "client_id",
        "scope",
        "roles",
        "groups",
        "tenants",
        "status",
        "auth_time",
        "amr",
        "acr",
        "azp",
        "sid",
        "nonce",
        "at_hash",
        "c_hash",
        "s_hash",
        "cnf",
        "act",
        "may_act",
        "entitlements",
        "active",
        "username",
        "token_type",
        "typ",
        "events",
        "txn",
        "toe",
        "email",
        "email_verified",
        "name",
        "given_name",
        "family_name",
        "middle_name",
        "nickname",
        "preferred_username",
        "profile",
        "picture",
        "website",
        "gender",
        "birthdate",
        "zoneinfo",
        "locale",
        "phone_number",
        "phone_number_verified",
        "address",
        "updated_at",
        "tenants_omitted",
        "groups_omitted",
        "roles_omitted",
        "claims_omitted",
    }
)
#: The rest of the IANA registry of JWT claims: nothing here reads them, but a verifier may, so they are not given other meanings.
_REGISTERED: Final = frozenset(
    [
        "_claim_names",
        "_claim_sources",
        "ace_profile",
        "also_known_as",
        "at_use_nbr",
        "ath",
        "attest",
        "atc",
        "authorization_details",
        "birth_family_name",
        "birth_given_name",
        "birth_middle_name",
        "bootcount",
        "bootseed",
        "cdnicrit",
        "cdniets",
        "cdniip",
        "cdnistd",
        "cdnistt",
        "cdniuc",
        "cdniv",
        "cnonce",
        "crn",
        "dbgstat",
        "dest",
        "div",
        "dloas",
        "eat_nonce",
        "eat_profile",
        "exi",
        "geohash",
        "htm",
        "htu",
        "hwmodel",
        "hwversion",
        "intuse",
        "jcard",
        "location",
        "manifests",
        "measres",
        "measurements",
        "mky",
        "msgi",
        "msisdn",
        "nationalities",
        "oemboot",
        "oemid",
        "opt",
        "orig",
        "origid",
        "place_of_birth",
        "rcd",
        "rcdi",
        "rph",
        "salutation",
        "sd_hash",
        "sig_val_claims",
        "sip_callid",
        "sip_cseq_num",
        "sip_date",
        "sip_from_tag",
        "sip_via_branch",
        "sph",
        "sub_id",
        "sub_jwk",
        "submods",
        "sueids",
        "swname",
        "swversion",
        "title",
        "token_introspection",
        "ueid",
        "uptime",
        "vc",
        "vct",
        "verified_claims",
        "vot",
        "vp",
        "vtm",
    ]
)
_UNFIT: Final = VALIDATION.saying(
    'tokenClaims are like {"plan": "tenant.plan", "dept": "user.department", "tier": "=gold"}, none of them a registered claim; at most 20'
)
# By its columns alone: an application is the concern of a wing above.
_application = table(
    "application",
    column("id", Text),
    column("app_id", Text),
    column("audiences", Text),
    column("token_claims", Text),
    column("attributes", Text),
    column("tenant_id", Text),
    column("enabled", Boolean),
)


class _Configured(NamedTuple):
    """An application that adds claims."""

    client_id: str
    audiences: str
    token_claims: str
    attributes: str
    tenant_attributes: str | None


_CONFIGURED = Prepared(
    select(
        _application.c.id,
        _application.c.audiences,
        _application.c.token_claims,
        _application.c.attributes,
        Tenant.attributes,
    )
    .select_from(_application.outerjoin(Tenant, Tenant.id == _application.c.tenant_id))
    .where(_application.c.token_claims != "{}", _application.c.enabled)
    .order_by(_application.c.app_id),
    into=_Configured,
)


class _AttributesRow(NamedTuple):
    attributes: str


_OF_USER = Prepared(select(User.attributes).where(User.id == bindparam("id")), into=_AttributesRow)
_OF_APPLICATION = Prepared(
    select(_application.c.attributes).where(_application.c.id == bindparam("id")), into=_AttributesRow
)


def checked(claims: Mapping[str, str]) -> str:
    """`tokenClaims` as they are stored. Raises Refused(VALIDATION)."""
    if len(claims) > MOST:
        raise Refused(_UNFIT, field="tokenClaims", detail="more than 20")
    for name, source in claims.items():
        of, _, attribute = source.partition(".")
        is_fixed = source.startswith("=") and len(source) <= 200 and source.isprintable()
        named = of in _SOURCES and NAME.fullmatch(attribute)
        if not NAME.fullmatch(name) or name in RESERVED | _REGISTERED or not (is_fixed or named):
            raise Refused(_UNFIT, field="tokenClaims", detail=f"claim {name[:64]!a}")
    return json.dumps(dict(claims), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def of(rt: Runtime, audiences: Sequence[str], *, user_id: str = "", client_id: str = "") -> dict[str, Any]:
    """The claims of a token for these audiences whose subject is this user, or this application.

    Where two applications add one claim, the older decides. Claims that would not fit into 4 KiB are left out, and that is said.
    """
    found: dict[str, Any] = {}
    subject: dict[str, Any] | None = None
    for row in rt.database.rows(_CONFIGURED):
        named = (row.audiences or "").split()
        if set(named).isdisjoint(audiences) and (named or row.client_id != client_id):
            continue
        if subject is None:
            subject = _subject(rt, user_id, client_id)
        known = {
            "tenant": attributes.read(row.tenant_attributes),
            "user": subject,
            "application": attributes.read(row.attributes),
        }
        for name, source in json.loads(row.token_claims).items():
            value = source[1:] if source.startswith("=") else _value(known, source)
            if value is not None and name not in RESERVED:
                found.setdefault(name, value)
    return _bounded(found)


def without(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a token says beside claims of one's own, and beside what it left out: those are told as they are now, and whole."""
    return {name: value for name, value in said.items() if name in RESERVED and not name.endswith("_omitted")}


def _value(known: Mapping[str, Mapping[str, Any]], source: str) -> Any:
    of_whom, _, attribute = source.partition(".")
    return known[of_whom].get(attribute)


def _subject(rt: Runtime, user_id: str, client_id: str) -> dict[str, Any]:
    row = rt.database.row(_OF_USER, id=user_id) if user_id else rt.database.row(_OF_APPLICATION, id=client_id)
    return attributes.read(row.attributes if row else None)


def _bounded(claims: dict[str, Any]) -> dict[str, Any]:
    size = 0
    kept: dict[str, Any] = {}
    for name, value in claims.items():
        size += len(json.dumps({name: value}).encode())
        if size > MAX_BYTES:
            return kept | {OMITTED: True}
        kept[name] = value
    return kept
