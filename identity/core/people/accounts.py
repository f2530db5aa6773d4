"""Users, the addresses that are theirs, and their passwords.

A user is found by a verified address or by the alias. Signing in is written once here, for every dialect: the guess is reserved,
the password checked with constant work whoever is asked for, and what was read is checked again in the unit that lets the user in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    ForeignKey,
    Index,
    Select,
    String,
    Text,
    and_,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from identity.canonical import canonical_address, canonical_alias, canonical_id, get_address, get_alias, get_names
from identity.columns import Instant, Names, holds
from identity.core.keeping import Keeping
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import (
    ACCESS_WINDOW_EXPIRED,
    CONFLICT,
    INVALID_CREDENTIALS,
    NOT_FOUND,
    VALIDATION,
    Problem,
    Refused,
)
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit, is_violation

ADMIN_ROLE: Final = "users_admin"


class User(Base):
    """A person."""

    __tablename__ = "user_account"
    # For searching by the beginning: by byte on PostgreSQL, where the collation of the usual index would not serve.
    __table_args__ = (
        *(
            Index(f"ix_user_account_{column}_prefix", column, postgresql_ops={column: "text_pattern_ops"})
            for column in ("id", "alias", "full_name")
        ),
        Index("uq_user_account_external_id", "external_id", unique=True),
        # The few among the many.
        Index(
            "ix_user_account_ends_at",
            "ends_at",
            sqlite_where=text("ends_at IS NOT NULL"),
            postgresql_where=text("ends_at IS NOT NULL"),
        ),
        Index(
            "ix_user_account_with_roles",
            "id",
            sqlite_where=text("roles <> ''"),
            postgresql_where=text("roles <> ''"),
        ),
        Index("ix_user_account_disabled", "id", sqlite_where=text("enabled = 0"), postgresql_where=text("NOT enabled")),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), unique=True)
    full_name: Mapped[str] = mapped_column(String(200))
    password_hash: Mapped[str | None] = mapped_column(Text)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    verified: Mapped[bool] = mapped_column(Boolean, default=False)
    roles: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    groups: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    attributes: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    starts_at: Mapped[datetime | None] = mapped_column(Instant)
    ends_at: Mapped[datetime | None] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant)
    # Set for whoever registered without being asked, until they prove their address; then the row is forgotten, and with it the alias.
    unconfirmed_until: Mapped[datetime | None] = mapped_column(Instant, index=True)
    # What another system calls this person; imports find them by it.
    external_id: Mapped[str | None] = mapped_column(String(200))
    version: Mapped[int] = mapped_column(BigInteger, default=1)


class Email(Base):
    """An address of a user. Anybody may claim an address; only one user can have it verified."""

    __tablename__ = "email"
    __table_args__ = (
        Index(
            "uq_email_verified",
            "address",
            unique=True,
            sqlite_where=text("verified = 1"),
            postgresql_where=text("verified"),
        ),
        Index("uq_email_user_id_address", "user_id", "address", unique=True),
        Index("ix_email_address_prefix", "address", postgresql_ops={"address": "text_pattern_ops"}),
        Index(
            "uq_email_preferred",
            "user_id",
            unique=True,
            sqlite_where=text("preferred = 1"),
            postgresql_where=text("preferred"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    address: Mapped[str] = mapped_column(String(254), index=True)
    verified: Mapped[bool] = mapped_column(Boolean, default=False)
    preferred: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(Instant)


class AccessWindow(NamedTuple):
    """When a user may come in: from `starts_at` on, until just before `ends_at`; None is no bound."""

    starts_at: datetime | None
    ends_at: datetime | None

    def is_open(self, now: datetime) -> bool:
        """Whether a user with this window may come in now; `window_is_open` says the same of rows."""
        return (self.starts_at is None or self.starts_at <= now) and (self.ends_at is None or now < self.ends_at)


@dataclass(frozen=True, slots=True)
class UserInfo:
    """A user as callers outside the core see one."""

    id: str
    alias: str
    full_name: str
    email: str
    enabled: bool
    verified: bool
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    starts_at: datetime | None
    ends_at: datetime | None
    created_at: datetime
    has_password: bool
    version: int

    @property
    def window(self) -> AccessWindow:
        return AccessWindow(self.starts_at, self.ends_at)


class _UserRow(NamedTuple):
    """What `_user_columns` reads."""

    id: str
    alias: str
    full_name: str
    email: str
    enabled: bool
    verified: bool
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    starts_at: datetime | None
    ends_at: datetime | None
    created_at: datetime
    password_hash: str | None
    version: int

    def info(self) -> UserInfo:
        return UserInfo(
            id=self.id,
            alias=self.alias,
            full_name=self.full_name,
            email=self.email,
            enabled=self.enabled,
            verified=self.verified,
            roles=self.roles,
            groups=self.groups,
            starts_at=self.starts_at,
            ends_at=self.ends_at,
            created_at=self.created_at,
            has_password=self.password_hash is not None,
            version=self.version,
        )


def _user_columns() -> Select[*tuple[Any, ...]]:
    shown = aliased(Email)
    preferred = select(shown.address).where(shown.user_id == User.id, shown.preferred).correlate(User).scalar_subquery()
    return select(
        User.id,
        User.alias,
        User.full_name,
        func.coalesce(preferred, ""),
        User.enabled,
        User.verified,
        User.roles,
        User.groups,
        User.starts_at,
        User.ends_at,
        User.created_at,
        User.password_hash,
        User.version,
    )


_BY_ID = Prepared(_user_columns().where(User.id == bindparam("id")), into=_UserRow)
# Locked against change until the unit ends: whoever disables the user meanwhile waits, and then ends this login's session too.
_BY_ID_SHARED = Prepared(
    _user_columns().where(User.id == bindparam("id")).with_for_update(read=True, of=User), into=_UserRow
)
_BY_ALIAS = Prepared(_user_columns().where(User.alias == bindparam("alias")), into=_UserRow)
_BY_ADDRESS = Prepared(
    _user_columns()
    .join(Email, Email.user_id == User.id)
    .where(Email.address == bindparam("address"), Email.verified)
    .limit(1),
    into=_UserRow,
)
_BY_CLAIMED_ADDRESS = Prepared(
    _user_columns()
    .join(Email, Email.user_id == User.id)
    .where(Email.address == bindparam("address"), User.verified.is_(False))
    .order_by(Email.created_at.desc(), Email.id.desc())
    .limit(1),
    into=_UserRow,
)


# Finding users.


def find(rt: Runtime, user_id: str) -> UserInfo | None:
    """The user with this id, or None."""
    row = rt.database.row(_BY_ID, id=user_id)
    return row.info() if row else None


def find_all(rt: Runtime, user_ids: Sequence[str]) -> list[UserInfo]:
    """Those of these users who are there, in the same order, in one read."""
    with rt.database.reading() as session:
        rows = [_UserRow(*row) for row in session.execute(_user_columns().where(User.id.in_(user_ids)))]
    found = {row.id: row.info() for row in rows}
    return [found[user_id] for user_id in user_ids if user_id in found]


def get(rt: Runtime, user_id: str) -> UserInfo:
    """The user with this id. Raises Refused(NOT_FOUND)."""
    found = find(rt, user_id) if canonical_id(user_id) else None
    if found is None:
        raise Refused(NOT_FOUND, detail="no such user")
    return found


def find_by_identifier(rt: Runtime, identifier: str) -> UserInfo | None:
    """The user with this verified address or this alias, or None."""
    found = find_with_hash(rt, identifier)
    return found[0] if found else None


def find_by_address(rt: Runtime, address: str) -> UserInfo | None:
    """The user who may be mailed at a canonical address: who has it verified, else who registered with it last."""
    # Both are always asked, so that an address costs the same whoever has it.
    verified, claimed = (rt.database.row(each, address=address) for each in (_BY_ADDRESS, _BY_CLAIMED_ADDRESS))
    row = verified or claimed
    return row.info() if row else None


def get_row(session: Session, user_id: str, *, for_update: bool = False) -> User:
    """The row of a user; `for_update`: nobody else changes it until the unit ends. Raises Refused(NOT_FOUND)."""
    row = session.get(User, user_id, with_for_update=for_update or None) if canonical_id(user_id) else None
    if row is None:
        raise Refused(NOT_FOUND, detail="no such user")
    return row


# Looking again.


def recheck(unit: Unit, user_id: str, *, password_hash: str | None = None, instead: Problem | None = None) -> UserInfo:
    """The user as the unit sees them, if they may still sign in; for the last step of every login.

    Raises Refused(INVALID_CREDENTIALS) for a user who is gone or disabled, or whose hash is not `password_hash` (when given) any more,
    and Refused(ACCESS_WINDOW_EXPIRED); or `instead`, where the last step was no password.
    """
    row = next(iter(unit.run(_BY_ID_SHARED, id=user_id)), None)
    user = row.info() if row else None
    if (
        row is None
        or user is None
        or not user.enabled
        or (password_hash is not None and row.password_hash != password_hash)
    ):
        raise Refused(instead or INVALID_CREDENTIALS, detail="the account changed while it signed in")
    if not user.window.is_open(unit.now):
        raise Refused(instead or ACCESS_WINDOW_EXPIRED, detail="outside the access window")
    return user


# Making and changing users. Each takes the unit of its caller; `admin` and `signin` compose them.


def create(
    rt: Runtime,
    unit: Unit,
    *,
    email: str,
    full_name: str,
    alias: str,
    roles: Sequence[str] = (),
    groups: Sequence[str] = (),
    password_hash: str | None = None,
    external_id: str | None = None,
    verified: bool,
    unconfirmed_until: datetime | None = None,
    actor: str = "",
) -> str:
    """Make a user with one address, preferred and verified as told; return its id.

    Raises Refused(CONFLICT) with the field whose value is in use, Refused(VALIDATION) for a value without a safe form.
    """
    address, canonical = get_address(email), get_alias(alias)
    user_id = rt.new_id()
    row = User(
        id=user_id,
        alias=canonical,
        full_name=clean_name(full_name),
        password_hash=password_hash,
        external_id=external_id,
        verified=verified,
        roles=get_names(tuple(roles), field="roles"),
        groups=get_names(tuple(groups), field="groups"),
        created_at=unit.now,
        unconfirmed_until=unconfirmed_until,
    )
    try:
        unit.add(row)
        unit.add(
            Email(
                id=rt.new_id(), user_id=user_id, address=address, verified=verified, preferred=True, created_at=unit.now
            )
        )
    except IntegrityError as exc:
        if is_violation(exc, "uq_user_account_alias", "user_account.alias"):
            raise Refused(CONFLICT.saying("That alias is in use"), field="alias", cause=exc) from exc
        raise Refused(CONFLICT.saying("That email is in use"), field="email", cause=exc) from exc
    audit.record(
        rt,
        unit,
        Action.USER_CREATED,
        actor=actor or user_id,
        target=user_id,
        roles=list(row.roles),
        groups=list(row.groups),
    )
    return user_id


def set_password_hash(unit: Unit, user_id: str, password_hash: str | None) -> None:
    """Store a new password hash; sessions are the caller's to end."""
    unit.execute(update(User).where(User.id == user_id).values(password_hash=password_hash, version=User.version + 1))


def password_hashes(rt: Runtime) -> dict[str, str]:
    """The password hash of everybody who has one, by user id; for moving to another system, on the host only."""
    with rt.database.reading() as session:
        rows = session.execute(select(User.id, User.password_hash).where(User.password_hash.is_not(None)))
        return {row.id: str(row.password_hash) for row in rows}


def clean_name(text_: str, *, field: str = "fullName") -> str:
    """A display name: 1 to 200 printable characters on one line. Raises Refused(VALIDATION)."""
    name = " ".join(text_.split())
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise Refused(VALIDATION.saying("A name has 1 to 200 printable characters"), field=field)
    return name


def window_is_open(now: datetime) -> ColumnElement[bool]:
    """`AccessWindow.is_open` for the rows of a select."""
    started = or_(User.starts_at.is_(None), User.starts_at <= now)
    return and_(started, or_(User.ends_at.is_(None), User.ends_at > now))


def holds_role(role: str) -> ColumnElement[bool]:
    """The condition that a user holds a global role. Few hold any, and those have an index."""
    return and_(type_coerce(User.roles, Text) != literal_column("''"), holds(User.roles, role))


def guard_last_admin(unit: Unit, user_id: str) -> None:
    """Refuse (CONFLICT) to take away the last administrator who can come in; call it, for one who was, after the change, in its unit."""
    usable = (
        User.enabled,
        holds_role(ADMIN_ROLE),
        window_is_open(unit.now),
    )
    # The rows are locked, so that two administrators who remove each other cannot both succeed.
    if unit.execute(select(User.id).where(*usable).order_by(User.id).with_for_update()).first() is None:
        detail = f"{user_id} is the last administrator"
        raise Refused(
            CONFLICT.saying("The last administrator can be neither deleted, disabled nor demoted"), detail=detail
        )


def erase_row(unit: Unit, user_id: str) -> None:
    """Delete a user's own row; what hangs on it is the caller's to end first. Raises Refused(NOT_FOUND)."""
    if not unit.changed(delete(User).where(User.id == user_id)):
        raise Refused(NOT_FOUND, detail="no such user")


def find_with_hash(rt: Runtime, identifier: str) -> tuple[UserInfo, str | None] | None:
    """The user with this verified address or alias, and their password hash; one read whether or not there is one."""
    address, alias = canonical_address(identifier), canonical_alias(identifier)
    # An unknown name costs a read too.
    by_address = address is not None
    row = rt.database.row(_BY_ADDRESS, address=address) if by_address else rt.database.row(_BY_ALIAS, alias=alias or "")
    return (row.info(), row.password_hash) if row else None


def forget(unit: Unit, user_id: str) -> None:
    """Delete the addresses of a user who is erased."""
    unit.execute(delete(Email).where(Email.user_id == user_id))


KEEPING: Final = Keeping((User, Email), forget=forget)
