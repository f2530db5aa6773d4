"""After a leak: what a credential has touched, and ending it with all that it earned, in one deed.

What it touched is told from the counts of its uses, the sessions that it opened and the audit; so also of a credential that is gone. Ending
it, telling who answers for it and keeping the report are one transaction, and happen once: whoever asks again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, String, Text, delete, func, literal, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from identity.ambient import later
from identity.columns import Instant, from_micros, to_micros
from identity.core.admin import made
from identity.core.admin.by import By
from identity.core.admin.made import Made
from identity.core.admin.traces import Deed, Earned, Opened, Seen, Touched, Used
from identity.core.clients import issuers, keypairs, registration, secrets
from identity.core.clients.applications import Application
from identity.core.clients.issuers import ApplicationTrust
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people.answering import who_answers
from identity.core.people.ownership import ANYONE
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.core.tokens.session_rows import UserSession
from identity.errors import NOT_FOUND, VALIDATION, Refused
from identity.instruments.tallies import KEPT_DAYS, CredentialUse, horizon
from identity.runtime import Runtime
from identity.storage import Base, Unit

#: Of each kind of fact; the newest are told, and how many there are in all.
MOST_TOLD: Final = 500
_EARLIER: Final = VALIDATION.saying(f"The uses of the last {KEPT_DAYS} days are known; `since` is a time before now")


class Kind(StrEnum):
    """What can leak: a client secret, a key pair, a trust, or a key that signs tokens."""

    SECRET = "secret"
    KEY = "key"
    TRUST = "trust"
    KID = "kid"


class Suspect(NamedTuple):
    """A credential that may have leaked, living or gone; and whose it is or was, as far as anything still tells."""

    kind: Kind
    id: str
    name: str
    lives: bool
    user: str | None = None
    application: str | None = None
    tenant: str | None = None

    @property
    def credential(self) -> str:
        """How counts and audit name it. What an application proved itself by has one spelling, whatever it was."""
        return f"{Kind.SECRET if self.kind is Kind.TRUST else self.kind}:{self.id}"


class Containment(NamedTuple):
    """That it was ended after a leak: when, by whom, and what was known of it then."""

    at: datetime
    actor: str
    told: int
    touched: Touched


class Incident(NamedTuple):
    """A credential, what it has touched until now, what it has made that proves somebody in turn, and whether it was contained."""

    suspect: Suspect
    touched: Touched
    made: Sequence[Made]
    containment: Containment | None


class IncidentReport(Base):
    """That a leak was contained, and the report of that moment."""

    __tablename__ = "incident_report"

    credential: Mapped[str] = mapped_column(String(80), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant, index=True)
    actor: Mapped[str] = mapped_column(String(64))
    told: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(500))
    user_id: Mapped[str | None] = mapped_column(String(36), index=True)
    client_id: Mapped[str | None] = mapped_column(String(36))
    tenant: Mapped[str | None] = mapped_column(String(64))
    report: Mapped[str] = mapped_column(Text)


def describe(rt: Runtime, kind: Kind, name: str, *, since: datetime | None = None) -> Incident:
    """What a credential has touched since `since`; at most, and by default, in the last 90 days.

    `name` is its id; of a key pair the `api-key` serves too. Raises Refused(NOT_FOUND) where nothing was ever heard of it.
    """
    begin = _begin(rt, since)
    with rt.database.reading() as session:
        suspect = _find(rt, session, kind, name)
        report = session.get(IncidentReport, _key(suspect))
        touched = _touched(session, suspect, begin, rt.clock.now())
        made_by_it = made.find(rt, session, suspect.credential, begin)
        return Incident(suspect, touched, made_by_it, None if report is None else _containment(report))


def contain(
    rt: Runtime, by: By, kind: Kind, name: str, *, since: datetime | None = None, ends_made: bool = False
) -> Incident:
    """End a credential and every token that it earned, tell who answers for it by mail, and keep the report; what was contained stays so.

    `ends_made`: in the same transaction also the credentials that it has made since then, and those that they have made; also of one that
    was contained before.

    Raises what `describe` raises.
    """
    found = describe(rt, kind, name, since=since)
    to_end = ends_made and any(one.lives for one in found.made)
    if found.containment is not None and not to_end:
        return found
    suspect, touched = found.suspect, found.touched
    with by.unit(rt) as unit:
        # Ended first: of two who contain it at once, the second waits here, and then sees the report of the first.
        _end(rt, unit, by, suspect)
        # Asked again: what it made until this moment, when it could make no more.
        made_by_it = made.find(rt, unit.session, suspect.credential, touched.since) if ends_made else []
        ended = made.end(rt, unit, by, made_by_it)
        is_first = unit.session.get(IncidentReport, _key(suspect)) is None
        told = _keep(rt, unit, by, suspect, touched) if is_first else 0
        if is_first or ended:
            audit.record(
                rt,
                unit,
                Action.INCIDENT_CONTAINED,
                actor=by.actor,
                target=suspect.id,
                tenant=suspect.tenant,
                kind=suspect.kind,
                application=suspect.application,
                user=suspect.user,
                since=int(touched.since.timestamp()),
                told=told,
                touched=touched.counts,
                ended=[f"{one.sort}:{one.id}" for one in ended],
            )
    return describe(rt, kind, suspect.id, since=since)


def _keep(rt: Runtime, unit: Unit, by: By, suspect: Suspect, touched: Touched) -> int:
    """Tell who answers for it, and keep the report; tell how many were told."""
    told = _tell(rt, unit, suspect, touched)
    row = IncidentReport(
        credential=_key(suspect),
        at=unit.now,
        actor=by.actor,
        told=told,
        name=suspect.name,
        user_id=suspect.user,
        client_id=suspect.application,
        tenant=suspect.tenant,
        report=_encoded(touched),
    )
    unit.add(row)
    return told


def _begin(rt: Runtime, since: datetime | None) -> datetime:
    now = rt.clock.now()
    if since is not None and since >= now:
        raise Refused(_EARLIER, field="since", detail="since lies ahead")
    return max(since or horizon(now), horizon(now))


# Whom it is about.


def _find(rt: Runtime, session: Session, kind: Kind, name: str) -> Suspect:
    """The credential, living or gone."""
    if kind is Kind.SECRET and name.startswith(_TRUST):
        kind = (
            Kind.TRUST
        )  # As the audit spells it: what an application proved itself by is a secret there, whatever it was.
    living = _FINDERS[kind](rt, session, name[:200])
    if living is not None:
        return living
    gone = Suspect(kind, name[:64], f"{_WORDS[kind]} {name[:64]}", lives=False)
    report = session.get(IncidentReport, _key(gone))
    if report is not None:
        return gone._replace(name=report.name, user=report.user_id, application=report.client_id, tenant=report.tenant)
    ended = session.scalars(_last_word(gone)).first()
    if ended is not None:
        data = json.loads(ended.data)
        of_user = kind is Kind.KEY
        return gone._replace(
            user=data.get("user") if of_user else None,
            application=None if of_user or kind is Kind.KID else ended.target,
            tenant=ended.tenant or None,
        )
    if session.scalar(select(CredentialUse.credential).where(CredentialUse.credential == gone.credential).limit(1)):
        return gone
    raise Refused(NOT_FOUND, detail=f"no {_WORDS[kind]} of that id, and no trace of one")


def _last_word(gone: Suspect) -> Any:
    """The event that tells of its end, or else of its beginning."""
    named = {
        Kind.SECRET: (Action.SECRET_REVOKED, Action.SECRET_RETIRED, Action.SECRET_CREATED),
        Kind.TRUST: (Action.TRUST_REMOVED, Action.TRUST_CREATED),
        Kind.KEY: (Action.KEYPAIR_REVOKED, Action.KEYPAIR_CREATED),
        Kind.KID: (Action.KEY_REVOKED, Action.KEY_ROTATED, Action.KEY_IMPORTED),
    }[gone.kind]
    query = select(AuditEvent).where(AuditEvent.action.in_(named)).order_by(AuditEvent.at.desc()).limit(1)
    if gone.kind in (Kind.KEY, Kind.KID):
        return query.where(AuditEvent.target == gone.id)
    return query.where(AuditEvent.data.contains(f'"{gone.kind}": {json.dumps(gone.id)}', autoescape=True))


def _secret(rt: Runtime, session: Session, name: str) -> Suspect | None:
    if name.startswith(_KEY_SET):
        # A set of keys is a credential as a secret is one, and stands for it in the audit and in every `jti`.
        app = session.scalars(
            select(Application).where(
                Application.key_set_id == name.removeprefix(_KEY_SET), Application.jwks.is_not(None)
            )
        ).first()
        if app is None:
            return None
        words = f"key set {name} of the application {app.name}"
        return Suspect(Kind.SECRET, name, words, lives=True, application=app.id, tenant=app.tenant_id)
    query = select(ClientSecret, Application).join(Application, Application.id == ClientSecret.client_id)
    return _of_application(rt, Kind.SECRET, session.execute(query.where(ClientSecret.id == name)).first())


def _trust(rt: Runtime, session: Session, name: str) -> Suspect | None:
    query = select(ApplicationTrust, Application).join(Application, Application.id == ApplicationTrust.client_id)
    return _of_application(rt, Kind.TRUST, session.execute(query.where(ApplicationTrust.id == name)).first())


def _of_application(rt: Runtime, kind: Kind, row: Any) -> Suspect | None:
    if row is None:
        return None
    held, app = row
    words = f"{_WORDS[kind]} {held.id} of the application {app.name}"
    lives = held.expires_at is None or rt.clock.now() < held.expires_at
    return Suspect(kind, held.id, words, lives=lives, application=app.id, tenant=app.tenant_id)


def _pair(rt: Runtime, session: Session, name: str) -> Suspect | None:
    row = session.scalars(select(KeyPair).where(or_(KeyPair.id == name.lower(), KeyPair.api_key == name))).first()
    if row is None:
        return None
    return Suspect(Kind.KEY, row.id, f"key pair {row.name}", lives=rt.clock.now() < row.expires_at, user=row.user_id)


def _signer(rt: Runtime, _session: Session, name: str) -> Suspect | None:
    known = next((key for key in rt.ring.list() if key.kid == name), None)
    return None if known is None else Suspect(Kind.KID, known.kid, f"signing key {known.kid}", lives=True)


_TRUST: Final = "trust-"
_KEY_SET: Final = "key-"
_WORDS: Final = {
    Kind.SECRET: "client secret",
    Kind.KEY: "key pair",
    Kind.TRUST: "trust",
    Kind.KID: "signing key",
}
_FINDERS: Final = {Kind.SECRET: _secret, Kind.KEY: _pair, Kind.TRUST: _trust, Kind.KID: _signer}


def _key(suspect: Suspect) -> str:
    return f"{suspect.kind}:{suspect.id}"


# What it touched.


def _touched(session: Session, suspect: Suspect, since: datetime, until: datetime) -> Touched:
    opened, sessions_in_all = _opened(session, suspect, since)
    deeds, deeds_in_all = _deeds(session, suspect, since)
    its = (
        CredentialUse.credential == suspect.credential,
        CredentialUse.hour >= since.replace(minute=0, second=0, microsecond=0),
    )
    uses, last = func.sum(CredentialUse.uses), func.max(CredentialUse.hour)
    tokens = func.sum(CredentialUse.tokens)
    by_hour = (
        select(CredentialUse.hour, CredentialUse.address, tokens)
        .where(*its, CredentialUse.tokens > 0)
        .group_by(CredentialUse.hour, CredentialUse.address)
        .order_by(CredentialUse.hour.desc(), tokens.desc(), CredentialUse.address)
        .limit(MOST_TOLD)
    )
    by_route = (
        select(CredentialUse.route, CredentialUse.status, uses, last)
        .where(*its)
        .group_by(CredentialUse.route, CredentialUse.status)
        .order_by(uses.desc(), CredentialUse.route, CredentialUse.status)
        .limit(MOST_TOLD)
    )
    by_address = (
        select(CredentialUse.address, uses, func.min(CredentialUse.hour), last)
        .where(*its)
        .group_by(CredentialUse.address)
        .order_by(uses.desc(), CredentialUse.address)
        .limit(MOST_TOLD)
    )
    sums = session.execute(
        select(
            func.coalesce(uses, 0),
            func.coalesce(tokens, 0),
            func.count(func.nullif(CredentialUse.address, "").distinct()),
        ).where(*its)
    ).one()
    return Touched(
        since,
        until,
        [Earned(hour, address, int(count)) for hour, address, count in session.execute(by_hour)],
        [Used(route, status, int(count), hour) for route, status, count, hour in session.execute(by_route)],
        [Seen(address, int(count), first, end) for address, count, first, end in session.execute(by_address)],
        opened,
        deeds,
        {
            "uses": int(sums[0]),
            "tokens": int(sums[1]),
            "addresses": int(sums[2]),
            "sessions": sessions_in_all,
            "deeds": deeds_in_all,
        },
    )


def _opened(session: Session, suspect: Suspect, since: datetime) -> tuple[list[Opened], int]:
    if suspect.kind is not Kind.KEY:
        return [], 0
    its = (UserSession.keypair_id == suspect.id, UserSession.created_at >= since)
    query = select(
        UserSession.id, UserSession.user_id, UserSession.created_at, UserSession.ip, UserSession.user_agent
    ).where(*its)
    rows = session.execute(query.order_by(UserSession.created_at.desc()).limit(MOST_TOLD))
    return [Opened._make(row) for row in rows], _count(session, UserSession.id, its)


def _deeds(session: Session, suspect: Suspect, since: datetime) -> tuple[list[Deed], int]:
    """The events that it proved the actor of, itself or by a session that it opened; of a signing key nobody can say."""
    proofs: list[ColumnElement[bool]] = [AuditEvent.credential == suspect.credential]
    if suspect.kind is Kind.KEY:
        opened = select(literal("session:") + UserSession.id).where(UserSession.keypair_id == suspect.id)
        proofs.append(AuditEvent.credential.in_(opened))
    if suspect.kind is Kind.KID:
        return [], 0
    its = (or_(*proofs), AuditEvent.at >= since)
    query = select(
        AuditEvent.id, AuditEvent.at, AuditEvent.action, AuditEvent.actor, AuditEvent.target, AuditEvent.address
    ).where(*its)
    rows = session.execute(query.order_by(AuditEvent.at.desc(), AuditEvent.id.desc()).limit(MOST_TOLD))
    return [Deed._make(row) for row in rows], _count(session, AuditEvent.id, its)


def _count(session: Session, column: Any, its: Sequence[ColumnElement[bool]]) -> int:
    return session.scalar(select(func.count(column)).where(*its)) or 0


# Ending it.


def _end(rt: Runtime, unit: Unit, by: By, suspect: Suspect) -> None:
    """End it and what it earned; of one that is gone nothing is left to end."""
    try:
        match suspect.kind:
            case Kind.SECRET if suspect.id.startswith(_KEY_SET):
                if suspect.lives:
                    registration.change(rt, unit, suspect.application or "", actor=by.actor, jwks=None)
            case Kind.SECRET:
                secrets.remove_secret(rt, unit, suspect.application or "", suspect.id, actor=by.actor, force=True)
            case Kind.TRUST:
                issuers.remove_trust(rt, unit, suspect.application or "", suspect.id, actor=by.actor)
            case Kind.KEY:
                keypairs.revoke(rt, unit, suspect.id, actor=by.actor, of=ANYONE)
            case Kind.KID:
                rt.ring.revoke(unit, suspect.id)
                audit.record(rt, unit, Action.KEY_REVOKED, actor=by.actor, target=suspect.id)
    except Refused as refused:
        if refused.problem.code != NOT_FOUND.code:
            raise


def _tell(rt: Runtime, unit: Unit, suspect: Suspect, touched: Touched) -> int:
    """Write to who answers for it; tell to how many."""
    people = who_answers(unit, user=suspect.user, tenant=suspect.tenant)
    for alias, address in people:
        values: dict[str, str | datetime] = {
            "account": alias,
            "key_name": suspect.name,
            "found": f"{touched.counts['tokens']} tokens, {touched.counts['sessions']} sessions and "
            f"{touched.counts['deeds']} deeds from {touched.counts['addresses']} addresses",
        }
        outbox.queue(rt, unit, Template.CREDENTIAL_CONTAINED, to=address, values=values)
    return len(people)


# Keeping the report.

_ROWS: Final[dict[str, Any]] = {"earned": Earned, "used": Used, "seen": Seen, "opened": Opened, "deeds": Deed}
_MOMENTS: Final = frozenset({"hour", "last_hour", "first_hour", "opened_at", "at"})


def _encoded(touched: Touched) -> str:
    kept: dict[str, Any] = {name: [list(row) for row in getattr(touched, name)] for name in _ROWS}
    kept |= {"since": touched.since, "until": touched.until, "counts": touched.counts}
    return json.dumps(kept, default=to_micros)


def _decoded(text: str) -> Touched:
    kept = json.loads(text)
    for name, row in _ROWS.items():
        kept[name] = [
            row(*(from_micros(v) if field in _MOMENTS else v for field, v in zip(row._fields, one, strict=True)))
            for one in kept[name]
        ]
    return Touched(**kept | {"since": from_micros(kept["since"]), "until": from_micros(kept["until"])})


def _containment(row: IncidentReport) -> Containment:
    return Containment(row.at, row.actor, row.told, _decoded(row.report))


def purge(rt: Runtime, unit: Unit) -> int:
    """Forget uses of more than 90 days ago, and reports as old as the audit is kept."""
    gone = delete_batch(unit, CredentialUse, CredentialUse.hour < horizon(unit.now))
    return gone + delete_batch(
        unit, IncidentReport, IncidentReport.at < later(unit.now, -86_400 * rt.settings.audit_days)
    )


def forget(unit: Unit, user_id: str) -> None:
    """Delete the reports about the key pairs of a user who is erased; that there was a leak stays in the audit."""
    unit.execute(delete(IncidentReport).where(IncidentReport.user_id == user_id))


KEEPING: Final = Keeping((IncidentReport, CredentialUse), purge=purge, forget=forget)
