"""Applications: what a machine client is, and finding one.

It has a client id (UUID), and a small number (`appId`) for GraphQL. How it proves itself stands in `secrets` and `assertions`, what it
earns in `machine_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    String,
    Text,
    bindparam,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, column_property, mapped_column

from identity import paging
from identity.ambient import Origin
from identity.canonical import canonical_id
from identity.columns import Instant, Names, Ordered
from identity.core.keeping import Keeping
from identity.core.people.tenancy import Tenant
from identity.errors import CONFLICT, NOT_FOUND, Problem, Refused
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

STANDARD_APP_ID: Final = 10
ADMIN_SCOPE: Final = "admin"
INTROSPECT_SCOPE: Final = "introspect"
DECOY_PROVES_NOTHING: Final = CONFLICT.saying("A decoy proves nothing, so it has no keys, no trusts and adds no claims")
#: The limiter keeps a moment for each token of the last 24 hours: 8 MB for as many.
MOST_TOKENS_PER_DAY: Final = 1_000_000


class Application(Base):
    """A machine client."""

    __tablename__ = "application"
    __table_args__ = (
        Index("ix_application_tenant_id", "tenant_id"),
        Index("ix_application_name", "name", postgresql_ops={"name": "text_pattern_ops"}),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    app_id: Mapped[int] = mapped_column(BigInteger, unique=True)
    name: Mapped[str] = mapped_column(String(200))
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"))
    scopes: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    roles: Mapped[tuple[str, ...]] = mapped_column(Names, default=())
    audiences: Mapped[tuple[str, ...]] = mapped_column(Ordered, default=())
    token_seconds: Mapped[int | None] = mapped_column(BigInteger)
    jwks: Mapped[str | None] = mapped_column(Text)
    # Which set of keys this is, and its place in the status lists: another set is another grant.
    key_set_id: Mapped[str | None] = mapped_column(String(16))
    key_place: Mapped[int | None] = mapped_column(BigInteger)
    attributes: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    token_claims: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    # For how long who asks again gets the same token again, and how many others in 24 hours.
    token_reuse_seconds: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    # Looks like any other and proves nothing; see `decoys`.
    decoy: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    decoy_told_at: Mapped[datetime | None] = mapped_column(Instant)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    disabled_at: Mapped[datetime | None] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant)
    version: Mapped[int] = mapped_column(BigInteger, default=1)
    # Read along wherever an application is: one of a disabled tenant proves nothing.
    tenant_enabled: Mapped[bool] = column_property(
        func.coalesce(
            select(Tenant.enabled).where(Tenant.id == tenant_id).correlate_except(Tenant).scalar_subquery(), true()
        )
    )


class ApplicationInfo(NamedTuple):
    """An application as callers outside the core see one."""

    id: str
    app_id: int
    name: str
    tenant: str | None
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    audiences: tuple[str, ...]
    token_seconds: int | None
    jwks: Mapping[str, Any] | None
    enabled: bool
    created_at: datetime
    version: int
    tenant_enabled: bool
    key_set_id: str | None
    key_place: int | None
    #: JSON, as they are stored: most who read an application need neither.
    attributes: str
    token_claims: str
    token_reuse_seconds: int
    tokens_per_day: int | None
    decoy: bool

    @property
    def is_usable(self) -> bool:
        """Whether it may prove itself and act: it is no decoy, it is enabled, and so is the tenant that it belongs to, if any."""
        return self.enabled and self.tenant_enabled and not self.decoy


COLUMNS = (
    Application.id,
    Application.app_id,
    Application.name,
    Application.tenant_id,
    Application.scopes,
    Application.roles,
    Application.audiences,
    Application.token_seconds,
    Application.jwks,
    Application.enabled,
    Application.created_at,
    Application.version,
    Application.tenant_enabled,
    Application.key_set_id,
    Application.key_place,
    Application.attributes,
    Application.token_claims,
    Application.token_reuse_seconds,
    Application.tokens_per_day,
    Application.decoy,
)
# A row has the fields of `ApplicationInfo`, its key set still as text: `info_of` reads that.
_BY_ID = Prepared(select(*COLUMNS).where(Application.id == bindparam("id")), into=ApplicationInfo)
_BY_APP_ID = Prepared(select(*COLUMNS).where(Application.app_id == bindparam("app_id")), into=ApplicationInfo)


def ensure_standard(rt: Runtime) -> None:
    """Make the application number 10 of a new database: the issuer's own, whose id stands in every user token without another."""
    if find_by_app_id(rt, STANDARD_APP_ID) is not None:
        return
    try:
        with rt.unit(Origin.background()) as unit:
            unit.add(
                Application(
                    id=rt.new_id(),
                    app_id=STANDARD_APP_ID,
                    name="standard",
                    enabled=True,
                    created_at=unit.now,
                    version=1,
                )
            )
    except IntegrityError:
        return  # Another process was first.


def standard_client(rt: Runtime) -> str:
    """The client id that stands in a user's token when no application asked for it.

    Read once: it never changes, and units ask for it, which must not wait for a second connection while they hold the first.
    """
    if not rt.standard_client:
        app = find_by_app_id(rt, STANDARD_APP_ID)
        assert app is not None, "made at first start, never deleted"
        rt.standard_client = app.id
    return rt.standard_client


def find_by_app_id(rt: Runtime, app_id: int) -> ApplicationInfo | None:
    """The application with this number, or None."""
    row = rt.database.row(_BY_APP_ID, app_id=app_id) if 0 < app_id < 2**63 else None
    return info_of(row._asdict()) if row else None


def find(rt: Runtime, client_id: str) -> ApplicationInfo | None:
    """The application with this client id, or None."""
    canonical = canonical_id(client_id)
    row = rt.database.row(_BY_ID, id=canonical) if canonical else None
    return info_of(row._asdict()) if row else None


def get(rt: Runtime, client_id: str) -> ApplicationInfo:
    """The application with this client id. Raises Refused(NOT_FOUND)."""
    found = find(rt, client_id)
    if found is None:
        raise Refused(NOT_FOUND, detail="no such application")
    return found


def public_scopes(rt: Runtime) -> tuple[str, ...]:
    """The scopes that applications of this service may ask for, and those of its own; what is a tenant's is nobody else's business."""
    with rt.database.reading() as session:
        ours = (
            select(Application.scopes)
            .where(Application.enabled, ~Application.decoy, Application.tenant_id.is_(None))
            .distinct()
            .limit(1000)
        )
        found = {scope for scopes in session.scalars(ours) for scope in scopes}
    return tuple(sorted(found | {ADMIN_SCOPE, INTROSPECT_SCOPE}))


def get_row(session: Session, client_id: str, *, for_update: bool = False) -> Application:
    """The row of an application. Raises Refused(NOT_FOUND)."""
    row = session.get(Application, client_id, with_for_update=for_update or None) if canonical_id(client_id) else None
    if row is None:
        raise Refused(NOT_FOUND, detail="no such application")
    return row


def require_usable(unit: Unit, client_id: str, *, instead: Problem) -> None:
    """Refuse with `instead` what began with an application that may not act any more: gone, disabled, or of a disabled tenant."""
    row = unit.session.get(Application, client_id)
    if row is None or not from_row(row).is_usable:
        raise Refused(instead, detail="the application, or its tenant, was disabled meanwhile")


def listing(
    rt: Runtime,
    part: Part,
    *,
    tenant: str | None = None,
    name: str | None = None,
    app_id: int | None = None,
    q: str | None = None,
) -> Listed[ApplicationInfo]:
    """Applications by their number: all, or those of a tenant, of this very name, or whose name or client id begins with `q`."""
    query = select(Application)
    if tenant is not None:
        query = query.where(Application.tenant_id == tenant)
    if name is not None:
        query = query.where(Application.name == name)
    if app_id is not None:
        query = query.where(Application.app_id == app_id)
    if q is not None:
        is_sqlite = rt.database.is_sqlite
        by_id = paging.begins(Application.id, q.lower(), is_sqlite=is_sqlite)
        query = query.where(or_(by_id, paging.begins_in_any_case(Application.name, q, is_sqlite=is_sqlite)))
    with rt.database.reading() as session:
        return paging.read(session, query, Application.app_id, part=part, make=from_row)


def info_of(stored: Mapping[str, Any]) -> ApplicationInfo:
    """The application in a row, by the names of its fields; the row may have others beside them."""
    values = {name: stored[name] for name in ApplicationInfo._fields}
    return ApplicationInfo(**values | {"jwks": json.loads(values["jwks"]) if values["jwks"] else None})


def from_row(row: Application) -> ApplicationInfo:
    """The application in an ORM row."""
    fields = zip(ApplicationInfo._fields, COLUMNS, strict=True)
    return info_of({name: getattr(row, column.key) for name, column in fields})


KEEPING: Final = Keeping((Application,))
