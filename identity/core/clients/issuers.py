"""Trusts: workloads that prove themselves with the token that their platform gives them, so that no secret exists (RFC 7521, RFC 7523).

A trust belongs to an application. It names an issuer and what its tokens must say: a subject, exact or by its beginning, and claims of the
top level. The issuer's keys stand in the trust, or are fetched for issuers that the operator has listed. For SPIFFE the issuer is the trust
domain. What a trust earned ends when it is removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

from sqlalchemy import BigInteger, ForeignKey, String, Text, bindparam, delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Origin, later
from identity.columns import Instant
from identity.core.clients.applications import DECOY_PROVES_NOTHING, ApplicationInfo, find, get_row
from identity.core.clients.assertions import MISMATCH, is_moment
from identity.core.clients.secrets import LONGEST_TOKEN_SECONDS, Authenticated, name_of, refuse
from identity.core.keeping import Keeping, delete_batch
from identity.core.proofs import machines
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import status
from identity.errors import CONFLICT, INVALID_TOKEN, NOT_FOUND, VALIDATION, Refused
from identity.instruments import usage
from identity.instruments.jws import load_issuer_keys, unverified_claims, unverified_header, verify_workload
from identity.instruments.keyring import SKEW_SECONDS
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

if TYPE_CHECKING:
    from identity.instruments.jws import PublicKey

SPIFFE: Final = "spiffe://"
MAX_TRUSTS: Final = 20
MAX_CLAIMS: Final = 20
LONGEST_AHEAD_SECONDS: Final = 86_400
_DOMAIN: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}", re.ASCII)
_CLAIM: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,100}", re.ASCII)
_RESERVED: Final = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})

Rule = tuple[str, bool, Any, Any]
"""A rule's name, whether it holds, what it expects and what it saw."""


class ApplicationTrust(Base):
    """Whose tokens an application may prove itself with. Its id travels in every `jti` that it earns."""

    __tablename__ = "application_trust"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("application.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    issuer: Mapped[str] = mapped_column(String(500))
    subject: Mapped[str | None] = mapped_column(String(500))
    claims: Mapped[str] = mapped_column(Text, default="{}")
    audience: Mapped[str | None] = mapped_column(String(200))
    jwks: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_address: Mapped[str | None] = mapped_column(String(64))
    warned_days: Mapped[int | None] = mapped_column(BigInteger)
    place: Mapped[int | None] = mapped_column(BigInteger)

    tells_callers: ClassVar[bool] = True


class TrustInfo(NamedTuple):
    """A trust as administrators see it."""

    id: str
    client_id: str
    name: str
    issuer: str
    subject: str | None
    claims: Mapping[str, Any]
    audience: str | None
    jwks: Mapping[str, Any] | None
    created_at: datetime
    expires_at: datetime | None
    place: int | None = None
    last_used_at: datetime | None = None
    last_used_ip: str | None = None
    callers: tuple[str, ...] = ()

    @property
    def is_spiffe(self) -> bool:
        return self.issuer.startswith(SPIFFE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trust makes of a token: each rule that was looked at, in order. Signature first: what nobody signed proves no rule."""

    trust: TrustInfo
    rules: tuple[Rule, ...]

    @property
    def passes(self) -> bool:
        return all(holds for _, holds, _, _ in self.rules)


_COLUMNS = (
    ApplicationTrust.id,
    ApplicationTrust.client_id,
    ApplicationTrust.name,
    ApplicationTrust.issuer,
    ApplicationTrust.subject,
    ApplicationTrust.claims,
    ApplicationTrust.audience,
    ApplicationTrust.jwks,
    ApplicationTrust.created_at,
    ApplicationTrust.expires_at,
    ApplicationTrust.place,
)
_OF_CLIENT = Prepared(
    select(*_COLUMNS)
    .where(ApplicationTrust.client_id == bindparam("id"))
    .order_by(ApplicationTrust.created_at, ApplicationTrust.id)
)


# Proving an application.


def authenticate_workload(
    rt: Runtime,
    origin: Origin,
    client_id: str,
    token: str,
    *,
    spiffe: bool,
    admit: Callable[[], None] = lambda: None,
) -> Authenticated:
    """The application that trusts whoever signed `token`. The token needs no `jti` and serves until it ends; nothing is written.

    Raises Refused(MISMATCH) like an assertion that does not hold, Refused(UNAVAILABLE) where the issuer's keys cannot be had, and the
    signal of `without_writes` where they must be fetched first.
    """
    machines.check(rt, origin, name_of(client_id))
    app = find(rt, client_id)
    trusts = [] if app is None else _trusts(rt, app.id)
    if app is None or not app.is_usable or not trusts:
        why = "unknown" if app is None else "without trusts" if app.is_usable else "disabled, or its tenant is"
        bait = app if app is not None and app.decoy else None
        _refuse(rt, origin, client_id, f"the client is {why}", token, is_known=app is not None, bait=bait)
    verdicts = [judge(rt, one, token, spiffe=spiffe) for one in trusts]
    passed = next((one.trust for one in verdicts if one.passes), None)
    if passed is None:
        _refuse_near(rt, origin, client_id, verdicts, token)
    admit()
    rt.usage.note(ApplicationTrust, passed.id, rt.clock.now(), origin.address)
    end = later(rt.clock.now(), rt.settings.federated_token_seconds)
    return Authenticated(app, passed.id, min(passed.expires_at or end, end), passed.place)


def judge(rt: Runtime, trust: TrustInfo, token: str, *, spiffe: bool | None = None) -> Verdict:
    """What `trust` makes of a workload's token, rule by rule. `spiffe` None: of whichever type the token was sent."""
    now = rt.clock.now()
    said = unverified_claims(token)
    type_fits = spiffe is None or spiffe == trust.is_spiffe
    rules: list[Rule] = [
        (
            "lives",
            trust.expires_at is None or now < trust.expires_at,
            "a trust that has not expired",
            str(trust.expires_at),
        ),
        (
            "type",
            type_fits,
            "jwt-spiffe" if trust.is_spiffe else "jwt-bearer",
            "jwt-spiffe" if spiffe else "jwt-bearer",
        ),
        _issuer_rule(trust, said),
    ]
    if not all(holds for _, holds, _, _ in rules):
        return Verdict(trust, tuple(rules))
    try:
        claims = verify_workload(token, _keys(rt, trust, unverified_header(token).get("kid")))
    except Refused as refused:
        if refused.problem.code != INVALID_TOKEN.code:
            raise
        expected, seen = refused.evidence.get("expected", "a signature of the issuer"), refused.evidence.get("seen")
        return Verdict(trust, (*rules, (f"signature ({refused.detail})", False, expected, seen)))
    rules.append(("signature", True, "a signature of the issuer", "one"))
    rules += _time_rules(claims, now.timestamp())
    rules.append(_audience_rule(rt, trust, claims))
    rules += _content_rules(trust, claims)
    return Verdict(trust, tuple(rules))


def _issuer_rule(trust: TrustInfo, said: Mapping[str, Any]) -> Rule:
    if trust.is_spiffe:
        subject = said.get("sub")
        inside = isinstance(subject, str) and subject.startswith(f"{trust.issuer}/")
        return ("sub in the trust domain", inside, {"sub": f"{trust.issuer}/..."}, {"sub": _shown(subject)})
    return ("iss", said.get("iss") == trust.issuer, {"iss": trust.issuer}, {"iss": _shown(said.get("iss"))})


def _time_rules(claims: Mapping[str, Any], now: float) -> list[Rule]:
    end = claims.get("exp")
    starts = [claims.get(name, now) for name in ("iat", "nbf")]
    begun = all(is_moment(value) for value in starts) and max(starts) <= now + SKEW_SECONDS
    return [
        ("exp", is_moment(end) and now < claims["exp"], {"exp": f"after {int(now)}"}, {"exp": _shown(end)}),
        (
            "exp at most a day ahead",
            is_moment(end) and claims["exp"] <= now + LONGEST_AHEAD_SECONDS,
            {"exp": f"up to {int(now) + LONGEST_AHEAD_SECONDS}"},
            {"exp": _shown(end)},
        ),
        (
            "iat and nbf",
            begun,
            {"iat": f"up to {int(now) + SKEW_SECONDS}"},
            {name: _shown(claims.get(name)) for name in ("iat", "nbf")},
        ),
    ]


def _audience_rule(rt: Runtime, trust: TrustInfo, claims: Mapping[str, Any]) -> Rule:
    wanted, audience = trust.audience or rt.settings.issuer, claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    return ("aud", wanted in named, {"aud": wanted}, {"aud": _shown(audience)})


def _content_rules(trust: TrustInfo, claims: Mapping[str, Any]) -> list[Rule]:
    rules: list[Rule] = []
    subject = claims.get("sub")
    if trust.subject is not None:
        fits = isinstance(subject, str) and _fits(trust.subject, subject)
        rules.append(("sub", fits, {"sub": trust.subject}, {"sub": _shown(subject)}))
    for name, wanted in trust.claims.items():
        seen = claims.get(name)
        rules.append((name, type(seen) is type(wanted) and seen == wanted, {name: wanted}, {name: _shown(seen)}))
    return rules


def _fits(pattern: str, subject: str) -> bool:
    return subject.startswith(pattern[:-1]) if pattern.endswith("*") else subject == pattern


def _keys(rt: Runtime, trust: TrustInfo, kid: Any) -> list[PublicKey]:
    if trust.jwks is not None:
        return load_issuer_keys(trust.jwks)
    now, named = rt.clock.now(), kid if isinstance(kid, str) else None
    if not rt.issuers.is_trusted(trust.issuer):
        raise Refused(
            INVALID_TOKEN,
            detail="the issuer is not listed any more",
            evidence={"expected": "an issuer of IDENTITY_TRUSTED_ISSUERS", "seen": {"iss": trust.issuer}},
        )
    if rt.issuers.must_fetch(trust.issuer, named, now):
        # A fetch waits for another host: like a write it is never done on the event loop.
        rt.database.refuse_writes_here()
    return rt.issuers.keys(trust.issuer, named, now)


def _refuse_near(rt: Runtime, origin: Origin, client_id: str, verdicts: Sequence[Verdict], token: str) -> NoReturn:
    """Refuse, and say of the trust that came nearest which rule did not hold."""
    nearest = max(verdicts, key=lambda one: next(place for place, rule in enumerate(one.rules) if not rule[1]))
    name, _, expected, seen = next(rule for rule in nearest.rules if not rule[1])
    evidence = {"expected": expected, "seen": seen, "trust": nearest.trust.id, "trusts": len(verdicts)}
    _refuse(rt, origin, client_id, f"trust: {name} does not match", token, evidence=evidence)


def _refuse(
    rt: Runtime,
    origin: Origin,
    client_id: str,
    detail: str,
    token: str,
    *,
    is_known: bool = True,
    evidence: Mapping[str, Any] | None = None,
    bait: ApplicationInfo | None = None,
) -> NoReturn:
    said = unverified_claims(token)
    told = {"issuer": _shown(said.get("iss")), "subject": _shown(said.get("sub"))}
    refuse(
        rt,
        origin,
        client_id,
        detail=detail,
        evidence={
            "expected": "a token of a workload that this application trusts",
            "seen": told,
            **told,
            **(evidence or {}),
        },
        is_known=is_known,
        problem=MISMATCH,
        bait=bait,
    )


def _shown(value: Any) -> Any:
    """A claim of a stranger's as an explanation holds it: bounded."""
    return value if isinstance(value, int | float | bool | None) else json.dumps(value)[:200].strip('"')


# Managing trusts.


def add_trust(
    rt: Runtime,
    unit: Unit,
    client_id: str,
    *,
    actor: str,
    name: str,
    issuer: str,
    subject: str | None = None,
    claims: Mapping[str, Any] | None = None,
    audience: str | None = None,
    jwks: Mapping[str, Any] | None = None,
    expires_in: int | None = None,
) -> TrustInfo:
    """Let an application prove itself with tokens of `issuer` that meet what is named here.

    Raises Refused(VALIDATION) for a trust that names neither a subject nor a claim, or an issuer whose keys nobody knows;
    Refused(CONFLICT) for one too many.
    """
    app = get_row(unit.session, client_id, for_update=True)
    if app.decoy:
        raise Refused(DECOY_PROVES_NOTHING, detail="a trust of a decoy")
    checked = dict(claims or {})
    _check_issuer(rt, issuer, jwks)
    _check_subject(issuer, subject)
    _check_claims(checked)
    if subject is None and not checked:
        raise Refused(VALIDATION.saying("A trust names a subject, or at least one claim"), field="subject")
    held = unit.execute(
        select(func.count()).select_from(ApplicationTrust).where(ApplicationTrust.client_id == client_id)
    ).scalar_one()
    if held >= MAX_TRUSTS:
        raise Refused(CONFLICT.saying(f"An application has at most {MAX_TRUSTS} trusts"), detail=f"{held} trusts")
    row = ApplicationTrust(
        id=f"trust-{rt.entropy.bytes(6).hex()}",
        client_id=client_id,
        name=name,
        issuer=issuer,
        subject=subject,
        claims=json.dumps(checked, sort_keys=True),
        audience=audience,
        jwks=json.dumps(jwks, sort_keys=True) if jwks is not None else None,
        created_at=unit.now,
        expires_at=None if expires_in is None else later(unit.now, expires_in),
        place=status.take(rt, unit),
    )
    unit.add(row)
    said: dict[str, Any] = {"trust": row.id, "issuer": issuer, "subject": subject}
    audit.record(rt, unit, Action.TRUST_CREATED, actor=actor, target=client_id, tenant=app.tenant_id, **said)
    return _info([getattr(row, column.key) for column in _COLUMNS])


def remove_trust(rt: Runtime, unit: Unit, client_id: str, trust_id: str, *, actor: str) -> None:
    """End a trust and every token that it earned. Raises Refused(NOT_FOUND)."""
    mine = (ApplicationTrust.id == trust_id, ApplicationTrust.client_id == client_id)
    status.end_grants(rt, unit, select(ApplicationTrust.place).where(*mine))
    if not unit.changed(delete(ApplicationTrust).where(*mine)):
        raise Refused(NOT_FOUND, detail="no such trust of this application")
    tenant = get_row(unit.session, client_id).tenant_id
    audit.record(rt, unit, Action.TRUST_REMOVED, actor=actor, target=client_id, tenant=tenant, trust=trust_id)


def trusts_of(rt: Runtime, client_id: str) -> list[TrustInfo]:
    """The trusts of an application, oldest first, with their last use. Raises Refused(NOT_FOUND) for no such application."""
    query = select(*_COLUMNS, ApplicationTrust.last_used_at, ApplicationTrust.last_used_address)
    with rt.database.reading() as session:
        get_row(session, client_id)
        rows = session.execute(
            query.where(ApplicationTrust.client_id == client_id).order_by(
                ApplicationTrust.created_at, ApplicationTrust.id
            )
        ).all()
        callers = usage.callers_of(session, [row.id for row in rows], rt.clock.now())
    return [
        _info(tuple(row))._replace(
            last_used_at=row.last_used_at, last_used_ip=row.last_used_address, callers=callers.get(row.id, ())
        )
        for row in rows
    ]


def try_token(rt: Runtime, app: ApplicationInfo, token: str) -> list[Verdict]:
    """What each trust of an application makes of a token; nothing is issued or counted."""
    return [judge(rt, one, token) for one in _trusts(rt, app.id)]


def warnings_of(trust: TrustInfo) -> tuple[str, ...]:
    """What to think about: a trust that rests on a name alone goes to whoever registers that name next."""
    for issuer, pins in _PINS.items():
        if trust.issuer.startswith(issuer) and not pins & trust.claims.keys():
            names = " or ".join(sorted(pins))
            return (f"It rests on names that can be registered again: add the claim {names}",)
    if trust.subject is not None and trust.subject.endswith("*") and not trust.claims:
        return ("It trusts every subject with that beginning",)
    return ()


_PINS: Final[Mapping[str, frozenset[str]]] = {
    "https://token.actions.githubusercontent.com": frozenset({"repository_id", "repository_owner_id"}),
    "https://gitlab.com": frozenset({"project_id", "namespace_id"}),
    "https://agent.buildkite.com": frozenset({"organization_id", "pipeline_id"}),
}
"""By issuer: the claims that name a thing itself, where its name can come to name another."""


def _check_issuer(rt: Runtime, issuer: str, jwks: Mapping[str, Any] | None) -> None:
    wrong = ""
    if issuer.startswith(SPIFFE):
        if not _DOMAIN.fullmatch(issuer):
            wrong = "A SPIFFE issuer is a trust domain, like spiffe://acme.example"
        elif jwks is None:
            wrong = "A SPIFFE trust domain publishes no keys that we could find: give its bundle as jwks"
    elif jwks is None and not rt.issuers.is_trusted(issuer):
        wrong = "That issuer is not listed in IDENTITY_TRUSTED_ISSUERS, spelled exactly so: list it, or give its jwks"
    elif not _is_url(issuer):
        wrong = "An issuer is an https URL, or a SPIFFE trust domain"
    if issuer == rt.settings.issuer:
        wrong = "This service does not trust its own tokens as those of a workload"
    if wrong:
        raise Refused(VALIDATION.saying(wrong), field="issuer")
    if jwks is None:
        return
    try:
        fit = bool(load_issuer_keys(jwks)) and not any(
            {"d", "k"} & key.keys() for key in jwks["keys"] if isinstance(key, dict)
        )
    except Refused:
        fit = False
    if not fit:
        raise Refused(VALIDATION.saying("The jwks holds no public key for RS256, PS256, ES256 or EdDSA"), field="jwks")


def _is_url(issuer: str) -> bool:
    try:
        parts = urlsplit(issuer)
        plain = not (parts.query or parts.fragment or parts.username)
    except ValueError:
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname) and plain and len(issuer) <= 500


def _check_subject(issuer: str, subject: str | None) -> None:
    if subject is None:
        return
    if "*" in subject[:-1] or subject == "*" or not subject.isprintable():
        words = "A subject is exact, or ends in one * after at least one other character"
        raise Refused(VALIDATION.saying(words), field="subject")
    if issuer.startswith(SPIFFE) and not subject.startswith(f"{issuer}/"):
        raise Refused(VALIDATION.saying("A SPIFFE subject lies in the trust domain of its issuer"), field="subject")


def _check_claims(claims: Mapping[str, Any]) -> None:
    fits = len(claims) <= MAX_CLAIMS and all(
        _CLAIM.fullmatch(name)
        and name not in _RESERVED
        and isinstance(value, str | int | bool)
        and len(str(value)) <= 500
        for name, value in claims.items()
    )
    if not fits:
        words = "Claims are up to 20 names of the top level with a text, a whole number or a boolean each; sub and aud have fields"
        raise Refused(VALIDATION.saying(words), field="claims")


def _trusts(rt: Runtime, client_id: str) -> list[TrustInfo]:
    return [_info(row) for row in rt.database.rows(_OF_CLIENT, id=client_id)]


def _info(row: Sequence[Any]) -> TrustInfo:
    values = dict(zip(TrustInfo._fields, row, strict=False))
    values |= {"claims": json.loads(values["claims"]), "jwks": json.loads(values["jwks"]) if values["jwks"] else None}
    return TrustInfo(**{name: values[name] for name in TrustInfo._fields[: len(_COLUMNS)]})


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget trusts that expired, once the last token that they can have earned is dead."""
    return delete_batch(
        unit, ApplicationTrust, ApplicationTrust.expires_at < later(unit.now, -LONGEST_TOKEN_SECONDS - SKEW_SECONDS)
    )


KEEPING: Final = Keeping((ApplicationTrust,), purge=purge)
