"""Tenants and who belongs to them with which roles.

A tenant that a caller does not belong to and one that does not exist are the same to that caller.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    ForeignKey,
    Index,
    ScalarSelect,
    String,
    Text,
    bindparam,
    case,
    delete,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, mapped_column

from identity import paging
from identity.canonical import get_names, is_name
from identity.columns import Instant, Lines, Names, holds
from identity.core.keeping import Keeping
from identity.core.people import attributes as noted
from identity.core.people.accounts import User, window_is_open
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.versions import check as check_version
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Refused
from identity.instruments.limits import Policy, parse_budget
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

LIMITED_TIERS = (Policy.STANDARD, Policy.AI_ASSISTED, Policy.BULK_UPLOAD)
OWNER_ROLE: Final = "owner"
_ENABLED: Final = "enabled"
_LAST_OWNER: Final = CONFLICT.saying("The last owner of a tenant stays; make somebody else its owner first")


class Tenant(Base):
    """An organisation; its id is the slug that callers send as `X-Tenant-Id`."""

    __tablename__ = "tenant"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    limits: Mapped[str] = mapped_column(Text, default="{}")
    # What its owners may give to its applications; the rest is an administrator's to give.
    scopes: Mapped[tuple[str, ...]] = mapped_column(Names, default=(), server_default="")
    attributes: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    policy: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    enabled: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    disabled_at: Mapped[datetime | None] = mapped_column(Instant)
    # Something changed for all its members, whom the status lists do not tell of yet: see `belonging`.
    members_untold_since: Mapped[datetime | None] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant)
    version: Mapped[int] = mapped_column(BigInteger, default=1)


class Membership(Base):
    """A user's belonging to a tenant."""

    __tablename__ = "membership"
    __table_args__ = (
        Index("ix_membership_tenant_id", "tenant_id"),
        Index("ix_membership_tenant_id_user_id", "tenant_id", "user_id"),
    )

    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), primary_key=True)
    roles: Mapped[tuple[str, ...]] = mapped_column(Names, default=())


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """A tenant as administrators see it."""

    id: str
    name: str
    enabled: bool
    limits: Mapping[str, str]
    scopes: tuple[str, ...]
    attributes: Mapping[str, Any]
    policy: Mapping[str, Any]
    created_at: datetime
    version: int


class Belonging(NamedTuple):
    """What a subject is in one tenant, and what that tenant says of itself."""

    tenant: str
    roles: tuple[str, ...]
    limits: Mapping[str, str]
    is_enabled: bool
    #: The tenant's own policy, as it is stored; `policy.read` takes it apart.
    policy: str


@dataclass(frozen=True, slots=True)
class Memberships:
    """Where a subject belongs, as a read of its row has brought it along: a line for each tenant, taken apart only when asked."""

    _lines: str = ""

    @classmethod
    def alone(cls, tenant_id: str, roles: Sequence[str], limits: str, policy: str) -> Memberships:
        """Those of a subject that belongs to one tenant, which is enabled."""
        return cls("\t".join((tenant_id, " ".join(roles), _ENABLED, limits, policy)))

    def find(self, tenant_id: str) -> Belonging | None:
        """What the subject is in a tenant, also in one that is disabled; None where it does not belong."""
        for line in self._lines.split("\n"):
            tenant, _, rest = line.partition("\t")
            if tenant and tenant == tenant_id:
                return _belonging(tenant, rest)
        return None

    def all(self) -> list[Belonging]:
        """What the subject is in each of its tenants, by id, also in disabled ones."""
        return [_belonging(*line.split("\t", 1)) for line in sorted(self._lines.split("\n")) if line]

    def narrowed(self, roles: Sequence[str] | None, tenants: Sequence[str] | None) -> Memberships:
        """Only these tenants, and in them only these roles; None: all."""
        kept = []
        for line in filter(None, self._lines.split("\n")):
            tenant, held, *rest = line.split("\t")
            if tenants is None or tenant in tenants:
                left = held if roles is None else " ".join(role for role in held.split() if role in roles)
                kept.append("\t".join((tenant, left, *rest)))
        return Memberships("\n".join(kept))

    def roles(self) -> dict[str, tuple[str, ...]]:
        """The roles in each tenant that is enabled, whatever its policy says; `policy.named` asks that too."""
        return {held.tenant: held.roles for held in self.all() if held.is_enabled}


def memberships(user_id: ColumnElement[str] | InstrumentedAttribute[str]) -> ScalarSelect[str]:
    """What a select of users reads to bring their `Memberships` along: names and JSON hold no tab and no line break."""
    tab = literal_column("'\t'", Text)
    state = case((Tenant.enabled, literal_column(f"'{_ENABLED}'", Text)), else_=literal_column("''", Text))
    line = Membership.tenant_id.concat(tab).concat(type_coerce(Membership.roles, Text)).concat(tab)
    line = line.concat(state).concat(tab).concat(Tenant.limits).concat(tab).concat(Tenant.policy)
    joined = select(Lines(line)).join(Tenant, Tenant.id == Membership.tenant_id)
    return joined.where(Membership.user_id == user_id).scalar_subquery()


class _OfUserRow(NamedTuple):
    memberships: str | None


_OF_USER = Prepared(select(memberships(bindparam("user_id", type_=String))), into=_OfUserRow)


def memberships_of(rt: Runtime, user_id: str) -> Memberships:
    """Where a user belongs now."""
    row = rt.database.row(_OF_USER, user_id=user_id)
    return Memberships((row and row.memberships) or "")


def create(rt: Runtime, unit: Unit, *, tenant_id: str, name: str, actor: str) -> TenantInfo:
    """Make a tenant. Raises Refused(VALIDATION) for an id that is no slug, Refused(CONFLICT) for one in use."""
    if not is_name(tenant_id):
        raise Refused(VALIDATION.saying("A tenant id has 1 to 64 of a-z, 0-9 and ._:-"), field="id")
    row = Tenant(id=tenant_id, name=name, created_at=unit.now, limits="{}", version=1)
    try:
        unit.add(row)
    except IntegrityError as exc:
        raise Refused(CONFLICT.saying("That tenant id is in use"), field="id", cause=exc) from exc
    audit.record(rt, unit, Action.TENANT_CREATED, actor=actor, target=tenant_id)
    return info_of(row)


def get(session: Session, tenant_id: str, *, for_update: bool = False) -> Tenant:
    """The row of a tenant; `for_update`: nobody else changes it until the unit ends. Raises Refused(NOT_FOUND)."""
    row = session.get(Tenant, tenant_id, with_for_update=for_update or None)
    if row is None:
        raise Refused(NOT_FOUND, detail="no such tenant")
    return row


def describe(rt: Runtime, tenant_id: str) -> TenantInfo:
    """A tenant. Raises Refused(NOT_FOUND)."""
    with rt.database.reading() as session:
        return info_of(get(session, tenant_id))


def listing(rt: Runtime, part: Part, *, q: str | None = None) -> Listed[TenantInfo]:
    """Tenants by id: all, or those whose id or name begins with `q`."""
    query = select(Tenant)
    if q is not None:
        is_sqlite = rt.database.is_sqlite
        by_id = paging.begins(Tenant.id, q.lower(), is_sqlite=is_sqlite)
        query = query.where(or_(by_id, paging.begins_in_any_case(Tenant.name, q, is_sqlite=is_sqlite)))
    with rt.database.reading() as session:
        return paging.read(session, query, Tenant.id, part=part, make=info_of)


def change(
    rt: Runtime,
    unit: Unit,
    tenant_id: str,
    *,
    actor: str,
    name: str | None = None,
    limits: Mapping[str, str] | None = None,
    scopes: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    policy: str | None = None,
    versions: Collection[int] | None = None,
) -> TenantInfo:
    """Rename a tenant, set its own budgets (`{"standard": "500/minute"}`) or the scopes that its owners may give to its applications.

    `policy` comes from `policy.checked`. `versions` are those that the caller has seen.
    """
    row = get(unit.session, tenant_id, for_update=True)
    check_version(row.version, versions)
    before = _told(row)
    values: dict[str, Any] = {"version": Tenant.version + 1}
    if name is not None:
        values["name"] = name
    if limits is not None:
        values["limits"] = json.dumps(_checked_limits(limits), sort_keys=True)
    if attributes is not None:
        values["attributes"] = noted.checked(attributes)
    if policy is not None:
        values["policy"] = policy
    if scopes is not None:
        values["scopes"] = get_names(tuple(scopes), field="scopes")
    unit.changed(update(Tenant).where(Tenant.id == tenant_id).values(**values))
    unit.session.refresh(row)
    audit.record(rt, unit, Action.TENANT_CHANGED, actor=actor, target=tenant_id, before=before, after=_told(row))
    return info_of(row)


def set_enabled(rt: Runtime, unit: Unit, tenant_id: str, *, enabled: bool, actor: str) -> bool:
    """Stop a tenant at once for everything that asks us, or let it go on; tells whether this call changed anything.

    Its memberships and applications stay, and work again once it is enabled. What its applications had earned before stays ended.
    """
    row = get(unit.session, tenant_id)
    stopped = {} if enabled else {"disabled_at": unit.now}
    changing = update(Tenant).where(Tenant.id == tenant_id, Tenant.enabled.is_not(enabled))
    if not unit.changed(changing.values(enabled=enabled, version=Tenant.version + 1, **stopped)):
        return False
    unit.session.refresh(row)
    audit.record(rt, unit, Action.TENANT_ENABLED if enabled else Action.TENANT_DISABLED, actor=actor, target=tenant_id)
    return True


def owners_of(unit: Unit, tenant_id: str) -> list[tuple[str, str]]:
    """Id and alias of the enabled users who own a tenant."""
    owns = Membership.tenant_id == tenant_id, holds(Membership.roles, OWNER_ROLE), User.enabled
    owners = select(User.id, User.alias).join(Membership, Membership.user_id == User.id).where(*owns)
    return [(user_id, alias) for user_id, alias in unit.execute(owners.order_by(User.id))]


def lock_owned(unit: Unit, user_id: str) -> list[str]:
    """The tenants that the user owns. Nobody else changes until the unit ends who owns them: see `guard_last_owner`."""
    owned = select(Membership.tenant_id).where(Membership.user_id == user_id, holds(Membership.roles, OWNER_ROLE))
    locked = select(Tenant.id).where(Tenant.id.in_(owned)).order_by(Tenant.id).with_for_update()
    return list(unit.execute(locked).scalars())


def guard_last_owner(unit: Unit, tenant_id: str, *, leaving: str = "") -> None:
    """Refuse (CONFLICT) what leaves no owner who can come in; call it in the unit of the change, under the tenant's lock.

    After the change, or before it with the user who is `leaving`.
    """
    usable = (
        Membership.tenant_id == tenant_id,
        holds(Membership.roles, OWNER_ROLE),
        User.id != leaving,
        User.enabled,
        window_is_open(unit.now),
    )
    owner = select(User.id).join(Membership, Membership.user_id == User.id).where(*usable).limit(1)
    if unit.execute(owner).first() is None:
        evidence = {"seen": {"tenant": tenant_id}}
        raise Refused(_LAST_OWNER, detail="nobody would own the tenant", evidence=evidence)


def is_owned(rt: Runtime, tenant_id: str) -> bool:
    """Whether an enabled user owns the tenant."""
    owns = Membership.tenant_id == tenant_id, holds(Membership.roles, OWNER_ROLE), User.enabled
    owner = select(User.id).join(Membership, Membership.user_id == User.id).where(*owns).limit(1)
    with rt.database.reading() as session:
        return session.execute(owner).first() is not None


def remove(rt: Runtime, unit: Unit, tenant_id: str, *, actor: str) -> None:
    """Delete a tenant and every membership in it. A tenant of that name made later is another one."""
    get(unit.session, tenant_id)
    unit.execute(delete(Membership).where(Membership.tenant_id == tenant_id))
    unit.execute(delete(Tenant).where(Tenant.id == tenant_id))
    audit.record(rt, unit, Action.TENANT_DELETED, actor=actor, target=tenant_id)


def set_member(
    rt: Runtime, unit: Unit, tenant_id: str, user_id: str, *, roles: Sequence[str], actor: str
) -> tuple[str, ...]:
    """Make a user a member with exactly these roles; the user must exist."""
    get(unit.session, tenant_id)
    names = get_names(tuple(roles), field="roles")
    row = unit.session.get(Membership, (user_id, tenant_id))
    before = list(row.roles) if row else None
    if row is None:
        unit.add(Membership(user_id=user_id, tenant_id=tenant_id, roles=names))
    else:
        row.roles = names
        unit.session.flush()
    audit.record(
        rt, unit, Action.MEMBER_SET, actor=actor, target=user_id, tenant=tenant_id, before=before, after=list(names)
    )
    return names


def remove_member(rt: Runtime, unit: Unit, tenant_id: str, user_id: str, *, actor: str) -> None:
    """End a membership. Raises Refused(NOT_FOUND) where there is none."""
    gone = unit.changed(delete(Membership).where(Membership.tenant_id == tenant_id, Membership.user_id == user_id))
    if not gone:
        raise Refused(NOT_FOUND, detail="no such membership")
    audit.record(rt, unit, Action.MEMBER_REMOVED, actor=actor, target=user_id, tenant=tenant_id)


def forget(unit: Unit, user_id: str) -> None:
    """End every membership of a user who is erased."""
    unit.execute(delete(Membership).where(Membership.user_id == user_id))


def _checked_limits(limits: Mapping[str, str]) -> dict[str, str]:
    unfit = VALIDATION.saying('Limits are like {"standard": "500/minute"}, or "off"')
    if not limits.keys() <= {str(tier) for tier in LIMITED_TIERS}:
        raise Refused(unfit, field="limits", detail="no such tier")
    try:
        return {tier: parse_budget(budget) for tier, budget in limits.items()}
    except ValueError as exc:
        raise Refused(unfit, field="limits", cause=exc) from exc


def _told(row: Tenant) -> dict[str, Any]:
    """What the audit keeps of a tenant's settings."""
    return {
        "name": row.name,
        "limits": json.loads(row.limits),
        "scopes": list(row.scopes),
        "attributes": json.loads(row.attributes),
        "policy": json.loads(row.policy),
    }


def _belonging(tenant: str, rest: str) -> Belonging:
    roles, state, limits, policy = rest.split("\t")
    return Belonging(tenant, tuple(roles.split()), _limits(limits), state == _ENABLED, policy)


def _limits(text: str) -> Mapping[str, str]:
    limits: dict[str, str] = {} if text == "{}" else json.loads(text)
    return limits


def info_of(row: Tenant) -> TenantInfo:
    """The tenant in a row."""
    return TenantInfo(
        row.id,
        row.name,
        row.enabled,
        _limits(row.limits),
        row.scopes,
        noted.read(row.attributes),
        json.loads(row.policy),
        row.created_at,
        row.version,
    )


KEEPING: Final = Keeping((Tenant, Membership), forget=forget)
