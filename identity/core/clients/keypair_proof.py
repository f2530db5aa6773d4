"""Proving a user by a key pair, and trading a proven pair for a token. The pairs themselves are made and ended in `keypairs`."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select

from identity.ambient import Origin
from identity.core.clients import applications, decoys, imported_pairs, keypairs
from identity.core.clients.keypairs import KeyPair
from identity.core.people import tenancy
from identity.core.people.accounts import AccessWindow, User, recheck
from identity.core.people.rights import narrowed
from identity.core.people.tenancy import Memberships
from identity.core.proofs import machines
from identity.core.proofs.attempts import FAILURES
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import sessions
from identity.core.tokens.claims import AccessToken
from identity.errors import KEY_MISMATCH, Refused
from identity.instruments import opaque
from identity.instruments.opaque import Kind
from identity.runtime import Runtime
from identity.storage import Prepared


class KeyInfo(NamedTuple):
    """A key pair that was just proven, with its owner as of now."""

    id: str
    api_key: str
    name: str
    expires_at: datetime
    verified: bool
    user_id: str
    alias: str
    full_name: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    memberships: Memberships
    until: datetime
    """When it ends by itself: its own end, that of its owner's access window, or that of the secret which another has replaced."""
    rights: str | None = None


class _PairRow(NamedTuple):
    """A key pair with its owner."""

    id: str
    api_key: str
    name: str
    expires_at: datetime
    verified: bool
    user_id: str
    alias: str
    full_name: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprint: bytes
    cidrs: str
    enabled: bool
    starts_at: datetime | None
    ends_at: datetime | None
    failures: str | None
    memberships: str | None
    rights: str | None
    previous_fingerprint: bytes | None
    previous_until: datetime | None
    decoy: bool
    imported_digest: str | None

    def secret_until(self, rt: Runtime, api_secret: str, now: datetime) -> datetime | None:
        """Until when the presented secret is this pair's, or None if it is not."""
        presented = [keypairs.fingerprint_of(rt, api_secret)]
        if self.imported_digest is not None:  # Rotated, it has a secret of ours.
            presented.append(imported_pairs.fingerprint_of(rt, self.imported_digest, api_secret))
        # All are always compared: how long a refusal takes must not tell which was nearly right.
        is_present = sum(opaque.matches(self.fingerprint, one) for one in presented) > 0
        is_previous = sum(opaque.matches(self.previous_fingerprint or bytes(32), one) for one in presented) > 0
        if is_present:
            return self.expires_at
        known = is_previous and self.previous_until is not None and now < self.previous_until
        return self.previous_until if known else None


_PROVEN = Prepared(
    select(
        KeyPair.id,
        KeyPair.api_key,
        KeyPair.name,
        KeyPair.expires_at,
        KeyPair.verified,
        KeyPair.user_id,
        User.alias,
        User.full_name,
        User.roles,
        User.groups,
        KeyPair.fingerprint,
        KeyPair.cidrs,
        User.enabled,
        User.starts_at,
        User.ends_at,
        FAILURES,
        tenancy.memberships(User.id),
        KeyPair.rights,
        KeyPair.previous_fingerprint,
        KeyPair.previous_until,
        KeyPair.decoy,
        KeyPair.imported_digest,
    )
    .join(User, User.id == KeyPair.user_id)
    .where(KeyPair.api_key == bindparam("api_key")),
    into=_PairRow,
)


def authenticate(rt: Runtime, origin: Origin, api_key: str, api_secret: str) -> KeyInfo:
    """The proven pair. Unverified, expired, wrong, of a disabled user, from a foreign network: all KEY_MISMATCH.

    Raises Refused(LOCKED_OUT) after 20 failures in 5 minutes for one key from one address, and for every failure after 100 of that
    address.
    """
    name = api_key[:64]
    may_exist = _is_ours(api_key, api_secret) or imported_pairs.may_be(rt, api_key, api_secret)
    row = rt.database.row(_PROVEN, api_key=api_key, meter=machines.meter_key(origin)) if may_exist else None
    if row is None:
        machines.check(rt, origin, name)
    else:
        machines.judge(rt, name, row.failures)
    flaw, evidence = _flaw(rt, origin, row, api_secret)
    if row is None or flaw:
        with rt.unit(origin, lasting=row is not None) as unit:
            machines.record(rt, unit, name)
            if row is not None and row.decoy:
                own = opaque.matches(row.fingerprint, keypairs.fingerprint_of(rt, api_secret, decoy=True))
                decoys.record_try(rt, unit, "keypair", row.id, is_right=own, user=row.user_id)
            elif row is not None:
                audit.record(
                    rt,
                    unit,
                    Action.LOGIN_FAILED,
                    actor=row.user_id,
                    target=row.id,
                    credential=f"key:{row.id}",
                    reason=flaw,
                )
        if row is not None and row.decoy:
            decoys.note_try(rt, "keypair", row.id)
        if row is None:
            rt.strangers.note(Action.LOGIN_FAILED, flaw, origin.address)
        raise Refused(KEY_MISMATCH, detail=flaw, evidence=evidence)
    roles, groups, memberships = narrowed(row.rights, row.roles, row.groups, Memberships(row.memberships or ""))
    secret_until = row.secret_until(rt, api_secret, rt.clock.now()) or row.expires_at
    info = KeyInfo(
        id=row.id,
        api_key=row.api_key,
        name=row.name,
        expires_at=row.expires_at,
        verified=row.verified,
        user_id=row.user_id,
        alias=row.alias,
        full_name=row.full_name,
        roles=roles,
        groups=groups,
        memberships=memberships,
        until=min(row.expires_at, row.ends_at or row.expires_at, secret_until),
        rights=row.rights,
    )
    note_use(rt, origin, info)
    return info


def note_use(rt: Runtime, origin: Origin, key: KeyInfo) -> None:
    """Remember that the pair was used now, from here; written down a moment later."""
    rt.usage.note(KeyPair, key.id, rt.clock.now(), origin.address)


def trade(rt: Runtime, origin: Origin, key: KeyInfo, *, resource: str) -> AccessToken:
    """An hour's token for a proven pair, backed by a session that ends with the pair."""
    seconds = min(rt.settings.access_token_seconds, int((key.expires_at - rt.clock.now()).total_seconds()))
    with rt.unit(origin) as unit:
        user = recheck(unit, key.user_id, instead=KEY_MISMATCH)
        if unit.execute(select(KeyPair.id).where(KeyPair.id == key.id).with_for_update()).first() is None:
            raise Refused(KEY_MISMATCH, detail="the key pair was revoked meanwhile")
        opened = sessions.open_session(
            rt,
            unit,
            user,
            kind="keypair",
            amr=("key",),
            client_id=applications.standard_client(rt),
            resource=resource,
            idle_seconds=max(1, seconds),
            absolute_seconds=max(1, seconds),
            keypair_id=key.id,
            rights=key.rights,
        )
    live = sessions.live_of(rt, user, opened.session)
    return sessions.token_for(rt, live, seconds=max(1, seconds), at=opened.session.created_at)


def _flaw(  # noqa: PLR0911 -- one return for each reason
    rt: Runtime, origin: Origin, row: _PairRow | None, api_secret: str
) -> tuple[str, dict[str, Any]]:
    """Why this pair does not pass, and what would have, for operators only; empty when it passes.

    The secret is compared before anything else is looked at.
    """
    if row is None:
        keypairs.fingerprint_of(rt, api_secret)  # In the time of a wrong secret.
        return "unknown key, or not the shape of a pair", {}
    now = rt.clock.now()
    if row.secret_until(rt, api_secret, now) is None:
        detail = "a decoy, which proves nothing" if row.decoy else "wrong secret"
        return detail, {"key": row.id}
    right = {"key": row.id, "near_miss": "the secret was right"}
    if not row.verified:
        return "the pair waits for its code", right
    if row.expires_at <= now:
        return "the pair has expired", right | {"skew_seconds": int((now - row.expires_at).total_seconds())}
    if not row.enabled:
        return "its user is disabled", right
    if not AccessWindow(row.starts_at, row.ends_at).is_open(now):
        return "outside the user's access window", right
    if not _is_allowed(row.cidrs, origin.address):
        return "foreign network", right | {"expected": row.cidrs.split(), "seen": origin.address}
    return "", {}


def _is_ours(api_key: str, api_secret: str) -> bool:
    """Whether both halves have the shape and the checksum of ours; what has not was never made here."""
    return opaque.is_well_formed(Kind.API_KEY, api_key) and opaque.is_well_formed(Kind.API_SECRET, api_secret)


@lru_cache(maxsize=1024)
def _is_allowed(cidrs: str, address: str) -> bool:
    if not cidrs:
        return True
    try:
        peer = ip_address(address)
    except ValueError:
        return False
    return any(peer in ip_network(network) for network in cidrs.split())
