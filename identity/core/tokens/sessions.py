"""Sessions: every login of every dialect is one row, and what a dialect hands out is a view of it.

A row says whose it is, how it was proven, from where, and until when. It can be shown as an opaque bearer, as a signed token, or as
a chain of refresh tokens. Those are not rows, so a session stays one row: how they are written is told in `generations`, how they are
used in `refresh`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    case,
    delete,
    literal,
    or_,
    select,
    update,
)

from identity import paging
from identity.ambient import Origin, later
from identity.canonical import canonical_id
from identity.columns import Instant
from identity.core.keeping import Keeping, delete_batch
from identity.core.people import policy, tenancy
from identity.core.people.accounts import AccessWindow, Email, User, UserInfo, recheck
from identity.core.people.policy import Login
from identity.core.people.rights import narrowed
from identity.core.people.tenancy import Membership, Memberships
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import claims, generations, status
from identity.core.tokens.claims import AccessToken, Subject
from identity.core.tokens.session_rows import INFO, SessionInfo, UserSession, from_row
from identity.errors import INVALID_TOKEN, NOT_FOUND, TOKEN_EXPIRED, Refused
from identity.instruments import opaque
from identity.instruments.counts import LOGINS
from identity.instruments.keyring import CURRENT_VERSION
from identity.instruments.opaque import Kind, Secret
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Prepared, Unit


class Live(NamedTuple):
    """A session that is good now, and its user as of now."""

    session: SessionInfo
    user_id: str
    alias: str
    full_name: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    memberships: Memberships
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session and the secrets that it is shown as; they exist only here."""

    session: SessionInfo
    bearer: Secret | None
    refresh: Secret | None


class _LiveRow(NamedTuple):
    """A session and its user, as one read has both."""

    id: str
    user_id: str
    client_id: str
    kind: str
    amr: tuple[str, ...]
    verified: bool
    resource: str
    created_at: datetime
    auth_time: datetime
    idle_expires_at: datetime
    absolute_expires_at: datetime
    revoked_at: datetime | None
    ip: str
    user_agent: str
    place: int | None
    rights: str | None
    keypair_id: str | None
    alias: str
    full_name: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    enabled: bool
    starts_at: datetime | None
    ends_at: datetime | None
    memberships: str | None
    ring_version: int


def _live_select() -> Select[*tuple[Any, ...]]:
    person = (User.alias, User.full_name, User.roles, User.groups, User.enabled, User.starts_at, User.ends_at)
    return select(*INFO, *person, tenancy.memberships(User.id), CURRENT_VERSION).join(
        User, User.id == UserSession.user_id
    )


_LIVE_BY_ID = Prepared(_live_select().where(UserSession.id == bindparam("id")), into=_LiveRow)
_EMAIL = Prepared(select(Email.address).where(Email.user_id == bindparam("user_id"), Email.preferred))
_LIVE_BY_BEARER = Prepared(_live_select().where(UserSession.bearer == bindparam("bearer")), into=_LiveRow)


# Opening.


def open_session(
    rt: Runtime,
    unit: Unit,
    user: UserInfo | None,
    *,
    kind: str,
    amr: Sequence[str],
    client_id: str,
    resource: str,
    idle_seconds: int,
    absolute_seconds: int,
    verified: bool = True,
    with_bearer: bool = False,
    bearer_kind: Kind = Kind.SESSION,
    with_refresh: bool = False,
    keypair_id: str | None = None,
    rights: str | None = None,
) -> Opened:
    """A new session of `user`, verified or waiting for its code. Ids and secrets are always fresh, whatever the client sent.

    `user` None: a session of nobody, which costs the same and never works. `keypair_id`: the key pair that stands for the login;
    the session ends with it, and has no more than its `rights`.
    """
    bearer = opaque.mint(bearer_kind, rt.entropy) if with_bearer else None
    end = later(unit.now, absolute_seconds)
    values: dict[str, Any] = {
        "id": rt.new_id(),
        "user_id": user.id if user else None,
        "keypair_id": keypair_id,
        "client_id": client_id,
        "kind": kind,
        "amr": tuple(sorted(amr)),
        "verified": verified,
        "bearer": bearer and _fingerprint(rt, bearer.reveal()),
        "seed": rt.entropy.bytes(16) if with_refresh else None,
        "generation": 0,
        "turned_at": None,
        "resource": resource,
        "created_at": unit.now,
        "auth_time": unit.now,
        "idle_expires_at": min(later(unit.now, idle_seconds), end),
        "expires_at": end,
        "revoked_at": None,
        "ip": unit.origin.address[:64],
        "user_agent": unit.origin.user_agent[:400],
        # Anybody can have waiting sessions made: those get a place when they are good for something.
        "place": status.take(rt, unit) if user and verified else None,
        "rights": rights,
    }
    unit.insert(UserSession, **values)
    actor = user.id if user else ""
    audit.record(
        rt, unit, Action.SESSION_CREATED, actor=actor, target=values["id"], kind=kind, amr=list(amr), verified=verified
    )
    # A key pair that is traded for a token is no login: nobody signed in.
    if user is not None and verified and keypair_id is None:
        audit.record(rt, unit, Action.LOGIN_SUCCEEDED, actor=user.id, target=values["id"], kind=kind, amr=list(amr))
        _count_login(rt, unit, amr)
    refresh = generations.mint(rt, values["id"], values["seed"], 0) if with_refresh else None
    return Opened(SessionInfo(*(values[column.key] for column in INFO)), bearer, refresh)


def mark_proven(rt: Runtime, unit: Unit, session_id: str, *, amr: Sequence[str], actor: str = "") -> None:
    """Make a waiting session usable: its code was right. The user is checked again. Raises Refused(INVALID_TOKEN) for one that is over."""
    row = unit.session.get(UserSession, session_id)
    if row is None or row.user_id is None or from_row(row).is_over(unit.now):
        raise Refused(INVALID_TOKEN, detail="the session is over")
    recheck(unit, row.user_id)
    proven = {"verified": True, "auth_time": unit.now, "amr": tuple(amr), "place": status.take(rt, unit)}
    if not unit.changed(
        update(UserSession).where(UserSession.id == session_id, ~UserSession.verified).values(**proven)
    ):
        return  # A code and an administrator at the same moment: whoever was first has said how.
    audit.record(rt, unit, Action.SESSION_VERIFIED, actor=actor or row.user_id, target=session_id)
    # Without a method nobody has proven anything: an administrator vouched.
    if amr:
        audit.record(
            rt, unit, Action.LOGIN_SUCCEEDED, actor=row.user_id, target=session_id, kind=row.kind, amr=list(amr)
        )
        _count_login(rt, unit, amr)


# Using.


def find_live(rt: Runtime, session_id: str) -> Live:
    """The session behind a signed token, if it and its user are still good. Raises Refused(INVALID_TOKEN) or Refused(TOKEN_EXPIRED)."""
    return _live(rt, rt.database.row(_LIVE_BY_ID, id=session_id) if canonical_id(session_id) else None)


def find_live_bearer(rt: Runtime, bearer: str, kind: Kind = Kind.SESSION) -> Live:
    """The verified session behind an opaque bearer of this kind. Raises Refused(INVALID_TOKEN) or Refused(TOKEN_EXPIRED)."""
    if not opaque.is_well_formed(kind, bearer):
        raise Refused(INVALID_TOKEN, detail="not a session bearer")
    return _live(rt, rt.database.row(_LIVE_BY_BEARER, bearer=_fingerprint(rt, bearer)))


def token_for(
    rt: Runtime, live: Live, *, seconds: int, resource: str | None = None, at: datetime | None = None
) -> AccessToken:
    """A signed token backed by a live session; it never outlives the session's absolute end, nor the user's access window.

    It names the tenants that are enabled and whose policy this login meets, and lives no longer than those want their tokens and logins to.

    `at`: the moment of issue, where that is the moment at which the session was opened; both then have the same life, to the second.
    """
    rt.ring.reload_if_changed()  # A key that was withdrawn a moment ago must not sign.
    if live.session.place is None:
        live = _placed(rt, live)
    now = at or rt.clock.now()
    session = live.session
    login = Login(live.user_id, session.amr, session.auth_time, session.ip or None)
    named = policy.named(rt, live.memberships, login, now)
    email = ""
    if "email" in rt.settings.user_claims:
        found = rt.database.row(_EMAIL, user_id=live.user_id)
        email = found[0] if found else ""
    subject = Subject(
        user_id=live.user_id,
        client_id=live.session.client_id,
        session_id=live.session.id,
        place=live.session.place,
        auth_time=live.session.auth_time,
        amr=live.session.amr,
        roles=live.roles,
        groups=live.groups,
        tenants=named.roles,
        email=email,
        full_name=live.full_name,
    )
    return claims.issue_user_token(
        rt,
        subject,
        resource=resource or live.session.resource,
        seconds=seconds if named.seconds is None else min(seconds, named.seconds),
        now=now,
        ends=(live.session.expires_at, live.ends_at, *named.ends),
    )


def live_of(rt: Runtime, user: UserInfo, session: SessionInfo) -> Live:
    """A session just opened, as `token_for` takes it."""
    memberships = tenancy.memberships_of(rt, user.id)
    held = narrowed(session.rights, user.roles, user.groups, memberships)
    return Live(session, user.id, user.alias, user.full_name, *held, user.ends_at)


def extend(rt: Runtime, unit: Unit, session_id: str, *, idle_seconds: int, actor: str) -> None:
    """Slide the end of a session: never past its absolute end, and never back."""
    slid = literal(later(unit.now, idle_seconds), Instant)
    end = case(
        (UserSession.idle_expires_at > slid, UserSession.idle_expires_at),
        (UserSession.expires_at < slid, UserSession.expires_at),
        else_=slid,
    )
    living = (UserSession.id == session_id, UserSession.revoked_at.is_(None), UserSession.idle_expires_at > unit.now)
    if not unit.changed(update(UserSession).where(*living).values(idle_expires_at=end)):
        raise Refused(INVALID_TOKEN, detail="the session is over")
    audit.record(rt, unit, Action.SESSION_EXTENDED, actor=actor, target=session_id)


def touch(rt: Runtime, origin: Origin, session: SessionInfo, *, idle_seconds: int, at_most_every: int) -> None:
    """Note that a session is used: its idle end slides, never past its absolute one. No event; one that is over stays over.

    It slides `at_most_every` so many seconds: most reads are no write.
    """
    left = (session.idle_expires_at - rt.clock.now()).total_seconds()
    if left > idle_seconds - at_most_every or session.idle_expires_at >= session.absolute_expires_at:
        return
    with rt.unit(origin, lasting=False) as unit:
        end = min(later(unit.now, idle_seconds), session.absolute_expires_at)
        living = (
            UserSession.id == session.id,
            UserSession.revoked_at.is_(None),
            UserSession.idle_expires_at > unit.now,
        )
        unit.changed(update(UserSession).where(*living).values(idle_expires_at=end))


# Ending.


def revoke(rt: Runtime, unit: Unit, session_id: str, *, actor: str, reason: str) -> bool:
    """End a session; doing it twice is the same. Tells whether this call ended it."""
    if not status.end_sessions(rt, unit, UserSession.id == session_id):
        return False
    audit.record(rt, unit, Action.SESSION_REVOKED, actor=actor, target=session_id, reason=reason)
    return True


def revoke_own(rt: Runtime, unit: Unit, user_id: str, session_id: str) -> None:
    """End a session of this user. Another user's, like an unknown one, is NOT_FOUND."""
    row = unit.session.get(UserSession, canonical_id(session_id)) if canonical_id(session_id) else None
    if row is None or row.user_id != user_id:
        raise Refused(NOT_FOUND, detail="no such session of this user")
    revoke(rt, unit, row.id, actor=user_id, reason="asked by its user")


def revoke_all(rt: Runtime, unit: Unit, user_id: str, *, actor: str, reason: str, keep: str = "") -> int:
    """End every session of a user but `keep`; tell how many. One event says so, however many there were."""
    theirs = (UserSession.user_id == user_id, UserSession.id != keep, UserSession.expires_at > unit.now)
    ended = status.end_sessions(rt, unit, *theirs)
    if ended:
        audit.record(rt, unit, Action.SESSION_REVOKED, actor=actor, target=user_id, reason=reason, count=ended)
    return ended


def revoke_many(rt: Runtime, unit: Unit, *, actor: str, reason: str, **owners: str | None) -> int:
    """End every session of a `user`, of a `tenant`'s members, that an `application` asked for, or of everybody; tell how many.

    One statement and one event, however many they are.
    """
    ended = status.end_sessions(rt, unit, UserSession.expires_at > unit.now, *_of(**owners))
    named = {name: value for name, value in owners.items() if value is not None}
    target = next(iter(named.values()), "everybody")
    tenant = named.get("tenant", "")
    audit.record(
        rt, unit, Action.SESSION_REVOKED, actor=actor, target=target, reason=reason, count=ended, tenant=tenant
    )
    return ended


def revoke_of_keypair(rt: Runtime, unit: Unit, keypair_id: str, *, actor: str) -> None:
    """End what a key pair has opened: it is gone itself."""
    its = (UserSession.keypair_id == keypair_id, UserSession.expires_at > unit.now)
    ended = status.end_sessions(rt, unit, *its)
    if ended:
        reason = "key pair revoked"
        audit.record(rt, unit, Action.SESSION_REVOKED, actor=actor, target=keypair_id, reason=reason, count=ended)


def forget(unit: Unit, user_id: str) -> None:
    """Delete the sessions of a user who is erased."""
    unit.execute(delete(UserSession).where(UserSession.user_id == user_id))


def purge(_rt: Runtime, unit: Unit) -> int:
    """Delete sessions that ended, or have waited for their code, for more than a day."""
    horizon = later(unit.now, -86_400)
    waiting = ~UserSession.verified & (UserSession.created_at < horizon)
    return delete_batch(unit, UserSession, or_(UserSession.expires_at < horizon, waiting))


def end(rt: Runtime, unit: Unit) -> int:
    """End every living session of everybody, without an event of its own; tell how many."""
    return status.end_sessions(rt, unit, UserSession.expires_at > unit.now)


# Listing.


def listing_of(rt: Runtime, user_id: str) -> list[SessionInfo]:
    """The living sessions of a user, newest first. One that waits for its code is none: anybody can ask for those."""
    now = rt.clock.now()
    living = (
        UserSession.user_id == user_id,
        UserSession.verified,
        UserSession.revoked_at.is_(None),
        UserSession.expires_at > now,
        UserSession.idle_expires_at > now,
    )
    with rt.database.reading() as session:
        rows = session.execute(select(*INFO).where(*living).order_by(UserSession.created_at.desc()).limit(500))
        return [SessionInfo(*tuple(row)) for row in rows]


def listing(
    rt: Runtime,
    part: Part,
    *,
    user: str | None = None,
    tenant: str | None = None,
    application: str | None = None,
) -> Listed[SessionInfo]:
    """Living sessions, newest first: all, or those of a user, of a tenant's members, or that an application asked for."""
    now = rt.clock.now()
    wanted = [
        UserSession.user_id.is_not(None),
        UserSession.revoked_at.is_(None),
        UserSession.expires_at > now,
        UserSession.idle_expires_at > now,
        *_of(user, tenant, application),
    ]
    with rt.database.reading() as session:
        # Ids are ordered by time.
        return paging.read(
            session,
            select(*INFO).where(*wanted),
            UserSession.id,
            part=part,
            make=SessionInfo,
            newest_first=True,
        )


def _of(
    user: str | None = None, tenant: str | None = None, application: str | None = None
) -> list[ColumnElement[bool]]:
    """The conditions of the sessions that belong to each of those that are given."""
    wanted: list[ColumnElement[bool]] = []
    if user is not None:
        wanted.append(UserSession.user_id == user)
    if tenant is not None:
        members = select(Membership.user_id).where(Membership.tenant_id == tenant)
        wanted.append(UserSession.user_id.in_(members))
    if application is not None:
        wanted.append(UserSession.client_id == application)
    return wanted


def find(rt: Runtime, session_id: str) -> SessionInfo | None:
    """A session, living or over; or None."""
    with rt.database.reading() as session:
        row = session.get(UserSession, session_id) if canonical_id(session_id) else None
        if row is not None and row.user_id is None:
            return None
        return from_row(row) if row else None


def _live(rt: Runtime, row: _LiveRow | None) -> Live:
    if row is None:
        raise Refused(INVALID_TOKEN, detail="no such session")
    info = SessionInfo._make(row[: len(SessionInfo._fields)])
    rt.ring.ensure_version(row.ring_version)
    now = rt.clock.now()
    if info.revoked_at is not None or not info.verified or not row.enabled:
        reason = "revoked" if info.revoked_at else "user disabled" if info.verified else "not verified yet"
        raise Refused(INVALID_TOKEN, detail=f"session: {reason}", evidence={"session": info.id})
    if not AccessWindow(row.starts_at, row.ends_at).is_open(now):
        raise Refused(INVALID_TOKEN, detail="session: outside the user's access window", evidence={"session": info.id})
    if info.expires_at <= now:
        late = int((now - info.expires_at).total_seconds())
        evidence = {"expected": "a session that has not ended", "seen": {"ended": info.expires_at.isoformat()}}
        raise Refused(TOKEN_EXPIRED, detail="session expired", evidence=evidence | {"skew_seconds": late})
    held = narrowed(row.rights, row.roles, row.groups, Memberships(row.memberships or ""))
    return Live(info, info.user_id, row.alias, row.full_name, *held, row.ends_at)


def _placed(rt: Runtime, live: Live) -> Live:
    """A live session, given a place in the status lists and then read again: no change of its user's rights in between is missed."""
    with rt.unit(Origin.background()) as unit:
        recheck(unit, live.user_id, instead=INVALID_TOKEN)
        waiting = (UserSession.id == live.session.id, UserSession.place.is_(None))
        unit.execute(update(UserSession).where(*waiting).values(place=status.take(rt, unit)))
    return find_live(rt, live.session.id)


def _count_login(rt: Runtime, unit: Unit, amr: Sequence[str]) -> None:
    way = "+".join(sorted(amr)) or "vouched"
    unit.after_commit(lambda: rt.counts.add(LOGINS, way, "success"))


def _fingerprint(rt: Runtime, bearer: str) -> bytes:
    return opaque.fingerprint(rt.ring.vault.derive("session bearers"), bearer)


KEEPING: Final = Keeping((UserSession,), purge=purge, forget=forget, end=end)
