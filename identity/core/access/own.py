"""What users do with what is theirs: sessions, addresses, key pairs. Each is a whole deed with a unit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from identity.ambient import Origin
from identity.core.access.callers import BY_KEY
from identity.core.clients import keypairs
from identity.core.clients.keypair_proof import KeyInfo
from identity.core.clients.keypairs import KeyPairInfo, Requested
from identity.core.people import accounts, addresses
from identity.core.people.ownership import Owner
from identity.core.people.rights import Rights
from identity.core.tokens import sessions
from identity.core.tokens.sessions import Live
from identity.errors import Refused
from identity.instruments.opaque import Secret
from identity.runtime import Runtime


def extend_session(rt: Runtime, origin: Origin, live: Live) -> None:
    """Slide the end of this session; see `sessions.extend`."""
    seconds = rt.settings.session_idle_seconds
    with rt.unit(origin) as unit:
        sessions.extend(rt, unit, live.session.id, idle_seconds=seconds, actor=live.user_id)


def end_session(rt: Runtime, origin: Origin, live: Live, session_id: str) -> None:
    """End a session of the same user; doing it twice is the same. Raises Refused(NOT_FOUND) for one that is not theirs."""
    _require_person(live)
    with rt.unit(origin) as unit:
        sessions.revoke_own(rt, unit, live.user_id, session_id)


def log_out(rt: Runtime, origin: Origin, live: Live) -> None:
    """End this session."""
    with rt.unit(origin) as unit:
        sessions.revoke(rt, unit, live.session.id, actor=live.user_id, reason="logout")


def add_address(rt: Runtime, origin: Origin, live: Live, address: str) -> str:
    """Add an address and mail it a code; gives the verification id. See `addresses.add`."""
    _require_person(live)
    with rt.unit(origin) as unit:
        return addresses.add(rt, unit, live.user_id, address, actor=live.user_id)[1]


def resend_address_code(rt: Runtime, origin: Origin, live: Live, address: str) -> str:
    """Mail a new code to an unverified address; gives the verification id. See `addresses.resend`."""
    _require_person(live)
    with rt.unit(origin) as unit:
        return addresses.resend(rt, unit, live.user_id, address)


def prefer_address(rt: Runtime, origin: Origin, live: Live, email_id: str) -> None:
    """Have codes and notices sent to this address from now on; see `addresses.prefer`."""
    _require_person(live)
    with rt.unit(origin) as unit:
        addresses.prefer(rt, unit, email_id, actor=live.user_id, of=Owner(live.user_id))


def remove_address(rt: Runtime, origin: Origin, live: Live, email_id: str) -> None:
    """Delete an address, but not the last verified one; see `addresses.remove`."""
    _require_person(live)
    with rt.unit(origin) as unit:
        addresses.remove(rt, unit, email_id, actor=live.user_id, of=Owner(live.user_id))


def request_keypair(
    rt: Runtime,
    origin: Origin,
    live: Live,
    *,
    name: str,
    days: int,
    cidrs: Sequence[str] = (),
    roles: Sequence[str] | None = None,
    tenants: Sequence[str] | None = None,
) -> Requested:
    """A key pair that waits for the code mailed to its owner; see `keypairs.request`."""
    _require_person(live)
    user = accounts.get(rt, live.user_id)
    with rt.unit(origin) as unit:
        return keypairs.request(
            rt, unit, user, name=name, days=days, cidrs=cidrs, actor=user.id, rights=rights_of(roles, tenants)
        )


def rotate_keypair(
    rt: Runtime, origin: Origin, live: Live, key_id: str, *, grace_seconds: int
) -> tuple[KeyPairInfo, Secret, datetime]:
    """A new secret of a key pair of theirs; see `keypairs.rotate`."""
    _require_person(live)
    with rt.unit(origin) as unit:
        return keypairs.rotate(
            rt, unit, key_id, actor=live.user_id, grace_seconds=grace_seconds, of=Owner(live.user_id)
        )


def revoke_keypair(rt: Runtime, origin: Origin, live: Live, key_id: str) -> None:
    """Delete a key pair and end what it has opened. Raises Refused(NOT_FOUND) for one that is not theirs."""
    _require_person(live)
    with rt.unit(origin) as unit:
        keypairs.revoke(rt, unit, key_id, actor=live.user_id, of=Owner(live.user_id))


def end_keypair(rt: Runtime, origin: Origin, key: KeyInfo) -> None:
    """End the pair that asks for it, and what it has opened."""
    with rt.unit(origin) as unit:
        keypairs.revoke(rt, unit, key.id, actor=key.user_id, of=Owner(key.user_id))


def rights_of(roles: Sequence[str] | None, tenants: Sequence[str] | None) -> Rights:
    """The rights that a request names; None: all."""
    return Rights(None if roles is None else tuple(roles), None if tenants is None else tuple(tenants))


def _require_person(live: Live) -> None:
    """A key pair, and what it was traded for, must not make other credentials nor change its owner: it would outlive its own end."""
    if live.session.is_of_keypair:
        raise Refused(
            BY_KEY, detail="by a key pair", evidence={"expected": "a login of a person", "seen": "a key pair"}
        )
