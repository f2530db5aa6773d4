"""Making, changing and removing applications, and what their settings may be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from identity.ambient import Origin
from identity.canonical import canonical_audience, get_names
from identity.core.clients.applications import (
    DECOY_PROVES_NOTHING,
    MOST_TOKENS_PER_DAY,
    STANDARD_APP_ID,
    Application,
    ApplicationInfo,
    from_row,
    get_row,
)
from identity.core.clients.issuers import ApplicationTrust
from identity.core.clients.secrets import ClientSecret, MadeSecret, add_secret
from identity.core.keeping import Keeping
from identity.core.people import attributes, tenancy
from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import belonging, custom_claims, status
from identity.core.versions import check as check_version
from identity.errors import CONFLICT, VALIDATION, Refused
from identity.instruments.jws import load_jwks
from identity.instruments.statuslists import StatusList
from identity.runtime import Runtime
from identity.storage import Contention, Unit

#: What of an application its tokens tell.
_RIGHTS: Final = ("roles", "scopes", "attributes", "token_claims")


def register(
    rt: Runtime,
    unit: Unit,
    *,
    name: str,
    actor: str,
    tenant: str | None = None,
    scopes: Sequence[str] = (),
    roles: Sequence[str] = (),
    audiences: Sequence[str] = (),
    token_seconds: int | None = None,
    token_reuse_seconds: int = 0,
    tokens_per_day: int | None = None,
    jwks: Mapping[str, Any] | None = None,
    decoy: bool = False,
) -> tuple[ApplicationInfo, MadeSecret]:
    """Make an application and its first secret, which is shown once; or a decoy, which looks the same (see `decoys`).

    Raises Refused(VALIDATION), Refused(NOT_FOUND) for a tenant that does not exist, Refused(CONFLICT) for a decoy with keys.
    """
    if decoy and jwks is not None:
        raise Refused(DECOY_PROVES_NOTHING, field="jwks")
    if tenant is not None:
        tenancy.get(unit.session, tenant)
    # One after the other: of two that read one number as the highest, one could only fail.
    unit.execute(select(Application.id).where(Application.app_id == STANDARD_APP_ID).with_for_update(key_share=True))
    highest = unit.execute(select(func.coalesce(func.max(Application.app_id), STANDARD_APP_ID))).scalar_one()
    row = Application(
        id=rt.new_id(),
        app_id=highest + 1,
        name=name,
        tenant_id=tenant,
        scopes=get_names(tuple(scopes), field="scopes"),
        roles=get_names(tuple(roles), field="roles"),
        audiences=_checked_audiences(audiences),
        token_seconds=_checked_seconds(token_seconds),
        token_reuse_seconds=_checked_reuse(rt, token_reuse_seconds, token_seconds),
        tokens_per_day=_checked_count(tokens_per_day),
        jwks=_checked_jwks(jwks),
        key_set_id=_key_set_id(rt) if jwks else None,
        key_place=status.take(rt, unit) if jwks else None,
        decoy=decoy,
        enabled=True,
        created_at=unit.now,
        version=1,
    )
    try:
        unit.add(row)
    except IntegrityError as exc:
        raise Contention("two applications at once took one number") from exc
    said: dict[str, Any] = {"name": name, "scopes": list(row.scopes), "decoy": decoy}
    if row.key_set_id is not None:
        said["keySet"] = row.key_set_id
    audit.record(rt, unit, Action.APPLICATION_CREATED, actor=actor, target=row.id, tenant=tenant, **said)
    return from_row(row), add_secret(rt, unit, row.id, actor=actor)


def change(
    rt: Runtime, unit: Unit, client_id: str, *, actor: str, versions: Collection[int] | None = None, **changes: Any
) -> ApplicationInfo:
    """Change `name`, `scopes`, `roles`, `audiences`, `token_seconds`, `token_reuse_seconds`, `tokens_per_day`, `jwks`, `attributes`,
    `token_claims` or `enabled`.

    `versions` are those that the caller has seen.

    Raises Refused(NOT_FOUND), Refused(VALIDATION), Refused(STALE) for another version.
    """
    row = get_row(unit.session, client_id, for_update=True)
    check_version(row.version, versions)
    if row.decoy and (changes.get("jwks") or changes.get("token_claims")):
        raise Refused(DECOY_PROVES_NOTHING, detail="keys or claims of a decoy")
    checks: dict[str, Callable[[Any], Any]] = {
        "scopes": lambda value: get_names(tuple(value), field="scopes"),
        "roles": lambda value: get_names(tuple(value), field="roles"),
        "audiences": _checked_audiences,
        "token_seconds": _checked_seconds,
        "tokens_per_day": _checked_count,
        "jwks": _checked_jwks,
        "attributes": attributes.checked,
        "token_claims": custom_claims.checked,
    }
    values = {name: checks[name](value) if name in checks else value for name, value in changes.items()}
    if not {"token_seconds", "token_reuse_seconds"}.isdisjoint(values):
        then = {name: values.get(name, getattr(row, name)) for name in ("token_reuse_seconds", "token_seconds")}
        _checked_reuse(rt, then["token_reuse_seconds"], then["token_seconds"])
    before = {name: getattr(row, name) for name in values}
    ended: dict[str, Any] = {"disabled_at": unit.now} if values.get("enabled") is False else {}
    if "jwks" in values and values["jwks"] != row.jwks:
        # Another key set is another credential: what the one before it earned has ended.
        status.end_grants(rt, unit, select(Application.key_place).where(Application.id == client_id))
        ended["key_set_id"] = _key_set_id(rt) if values["jwks"] else None
        ended["key_place"] = status.take(rt, unit) if values["jwks"] else None
    changing = update(Application).where(Application.id == client_id)
    unit.changed(changing.values(**values, **ended, version=Application.version + 1))
    unit.session.refresh(row)
    if before.get("enabled") and not row.enabled:
        end_earned(rt, unit, Application.id == client_id)
    elif any(before[name] != values[name] for name in _RIGHTS if name in values):
        end_earned(rt, unit, Application.id == client_id, for_good=False)
    told: dict[str, Any] = {"before": before, "after": values}
    if ended.get("key_set_id"):
        told["keySet"] = row.key_set_id
    audit.record(rt, unit, Action.APPLICATION_CHANGED, actor=actor, target=client_id, tenant=row.tenant_id, **told)
    return from_row(row)


def remove(rt: Runtime, unit: Unit, client_id: str, *, actor: str) -> None:
    """Delete an application; its secrets and tokens end with it. The standard one stays (CONFLICT)."""
    row = get_row(unit.session, client_id)
    if row.app_id == STANDARD_APP_ID:
        raise Refused(CONFLICT.saying("The standard application always exists"))
    end_earned(rt, unit, Application.id == client_id)
    unit.execute(delete(ClientSecret).where(ClientSecret.client_id == client_id))
    unit.execute(delete(Application).where(Application.id == client_id))
    audit.record(rt, unit, Action.APPLICATION_DELETED, actor=actor, target=client_id, tenant=row.tenant_id)


def change_rights_of_tenant(rt: Runtime, unit: Unit, tenant_id: str) -> None:
    """Tell offline verifiers that tokens of a tenant's applications say what is no longer so, and its members' right after this unit."""
    belonging.change_all(rt, unit, tenant_id)
    end_earned(rt, unit, Application.tenant_id == tenant_id, for_good=False)


def end_earned(rt: Runtime, unit: Unit, *which: ColumnElement[bool], for_good: bool = True) -> None:
    """Tell offline verifiers that what the applications that fit have earned has ended, or, not `for_good`, that its rights have changed.

    What they earn from now on has fresh places, so that an application which is enabled again, or goes on with other scopes, earns
    tokens that are good.
    """
    tell = status.end_grants if for_good else status.change_grants
    apps = select(Application.id).where(*which)
    # Locked first: a secret that is being made meanwhile is either seen here, or made after this.
    keyed = unit.execute(select(Application).where(*which).order_by(Application.id).with_for_update()).scalars().all()
    secrets = unit.execute(select(ClientSecret).where(ClientSecret.client_id.in_(apps))).scalars().all()
    trusts = unit.execute(select(ApplicationTrust).where(ApplicationTrust.client_id.in_(apps))).scalars().all()
    tell(rt, unit, select(ClientSecret.place).where(ClientSecret.client_id.in_(apps)))
    tell(rt, unit, select(ApplicationTrust.place).where(ApplicationTrust.client_id.in_(apps)))
    tell(rt, unit, select(Application.key_place).where(*which, Application.jwks.is_not(None)))
    _place(
        rt, unit, [*((one, "key_place") for one in keyed if one.jwks), *((one, "place") for one in (*secrets, *trusts))]
    )


def stop_tenant(rt: Runtime, unit: Unit, tenant_id: str) -> None:
    """Tell offline verifiers that a tenant is disabled; call it in the unit that does it.

    The tokens of its applications have ended; those of its members say too much, which is told right after this unit. Everything asked
    of us reads the rows, and needs no word of this.
    """
    belonging.change_all(rt, unit, tenant_id)
    end_earned(rt, unit, Application.tenant_id == tenant_id)


def forget_tenant(rt: Runtime, unit: Unit, tenant_id: str) -> None:
    """`stop_tenant` for one that is deleted: all in this unit, before its rows go: nothing is left afterwards."""
    members = select(Membership.user_id).where(Membership.tenant_id == tenant_id)
    status.change_subjects(rt, unit, User.id.in_(members))
    end_earned(rt, unit, Application.tenant_id == tenant_id)


def place_all(rt: Runtime) -> None:
    """Give a place to secrets and key sets from before there were status lists. A background job."""
    secrets = select(ClientSecret).where(ClientSecret.place.is_(None))
    keyed = select(Application).where(Application.jwks.is_not(None), Application.key_place.is_(None))
    with rt.database.reading() as session:
        if not any(session.execute(query.limit(1)).first() for query in (secrets, keyed)):
            return
    with rt.unit(Origin.background()) as unit:
        found = [(one, "key_place") for one in unit.execute(keyed.with_for_update()).scalars()]
        _place(rt, unit, [*found, *((one, "place") for one in unit.execute(secrets.with_for_update()).scalars())])


def purge_lists(_rt: Runtime, unit: Unit) -> int:
    """Forget status lists that nothing can name any more."""
    return status.purge_lists(unit, ClientSecret.place, Application.key_place, ApplicationTrust.place)


def end(rt: Runtime, unit: Unit) -> int:
    """End what every application has earned. What is granted from now on has places that nothing had, also not after a backup was taken."""
    rt.status_lists.skip(unit)
    end_earned(rt, unit)
    return 0


def _place(
    rt: Runtime, unit: Unit, holders: Sequence[tuple[Application | ClientSecret | ApplicationTrust, str]]
) -> None:
    """Give fresh places to grants, each named by its row and column."""
    if not holders:
        return
    for (one, name), place in zip(holders, status.take_several(rt, unit, len(holders)), strict=True):
        setattr(one, name, place)
    unit.session.flush()


def _checked_audiences(audiences: Sequence[str]) -> tuple[str, ...]:
    """In the order given: the first is the default."""
    checked = [canonical_audience(one) for one in audiences]
    known = tuple(dict.fromkeys(one for one in checked if one is not None))
    if None in checked:
        raise Refused(
            VALIDATION.saying("An audience has 1 to 200 printable ASCII characters without spaces"), field="audiences"
        )
    return known


def _key_set_id(rt: Runtime) -> str:
    """A key set has an id as a secret has one: it travels in the `jti` of what it earns."""
    return rt.entropy.bytes(6).hex()


def _checked_seconds(seconds: int | None) -> int | None:
    if seconds is not None and not 60 <= seconds <= 86_400:
        raise Refused(VALIDATION.saying("A token lives from 60 to 86400 seconds"), field="tokenSeconds")
    return seconds


def _checked_reuse(rt: Runtime, reuse: int, token_seconds: int | None) -> int:
    """In the second half of its life a token is nobody's to get again: who asks means to have one for a while."""
    if not 0 <= reuse <= (token_seconds or rt.settings.application_token_seconds) // 2:
        raise Refused(
            VALIDATION.saying("A token is given again for at most half its life; 0: never"), field="tokenReuseSeconds"
        )
    return reuse


def _checked_count(count: int | None) -> int | None:
    if count is not None and not 1 <= count <= MOST_TOKENS_PER_DAY:
        raise Refused(VALIDATION.saying(f"1 to {MOST_TOKENS_PER_DAY} tokens a day"), field="tokensPerDay")
    return count


def _checked_jwks(jwks: Mapping[str, Any] | None) -> str | None:
    if jwks is None:
        return None
    load_jwks(jwks)
    return json.dumps(jwks, sort_keys=True)


KEEPING: Final = Keeping((StatusList,), purge=purge_lists, end=end)
