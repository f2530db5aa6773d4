"""The row of a session, and a session as its owner and administrators see it. What becomes of one is told in `sessions` and `status`."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from identity.columns import Instant, Names
from identity.storage import Base


class UserSession(Base):
    """A login of a user; or of nobody, where an unknown address asked for one: such a row can never be used."""

    __tablename__ = "user_session"
    __table_args__ = (
        Index("ix_user_session_user_id_expires_at", "user_id", "expires_at"),
        Index("ix_user_session_keypair_id", "keypair_id"),
        Index(
            "ix_user_session_waiting",
            "created_at",
            sqlite_where=text("verified = 0"),
            postgresql_where=text("NOT verified"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    keypair_id: Mapped[str | None] = mapped_column(String(36))
    client_id: Mapped[str] = mapped_column(String(36))
    kind: Mapped[str] = mapped_column(String(64))
    amr: Mapped[tuple[str, ...]] = mapped_column(Names)
    verified: Mapped[bool] = mapped_column(Boolean)
    bearer: Mapped[bytes | None] = mapped_column(LargeBinary(32), unique=True)
    seed: Mapped[bytes | None] = mapped_column(LargeBinary(16))
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    turned_at: Mapped[datetime | None] = mapped_column(Instant)
    resource: Mapped[str] = mapped_column(String(300))
    created_at: Mapped[datetime] = mapped_column(Instant)
    auth_time: Mapped[datetime] = mapped_column(Instant)
    idle_expires_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)
    ip: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(400))
    # Its place in the status lists; none while it waits, and after its user's rights have changed, until its next token.
    place: Mapped[int | None] = mapped_column(BigInteger)
    # Those of the key pair behind it, which never change.
    rights: Mapped[str | None] = mapped_column(Text)


class SessionInfo(NamedTuple):
    """A session as its owner and administrators see it."""

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

    @property
    def expires_at(self) -> datetime:
        """When it ends if it is not used."""
        return min(self.idle_expires_at, self.absolute_expires_at)

    @property
    def is_of_keypair(self) -> bool:
        """Whether a key pair stands for the login."""
        return "key" in self.amr

    def is_over(self, now: datetime) -> bool:
        """Whether it was revoked or has expired."""
        return self.revoked_at is not None or self.expires_at <= now


INFO = (
    UserSession.id,
    UserSession.user_id,
    UserSession.client_id,
    UserSession.kind,
    UserSession.amr,
    UserSession.verified,
    UserSession.resource,
    UserSession.created_at,
    UserSession.auth_time,
    UserSession.idle_expires_at,
    UserSession.expires_at,
    UserSession.revoked_at,
    UserSession.ip,
    UserSession.user_agent,
    UserSession.place,
    UserSession.rights,
    UserSession.keypair_id,
)


def from_row(row: UserSession) -> SessionInfo:
    """The session in a row."""
    return SessionInfo(*(getattr(row, column.key) for column in INFO))
