"""What administrators do with the sessions, key pairs and addresses of others: make them, vouch for them, withdraw them.

What an administrator makes waits for its code as it would for its owner; vouching takes the place of the code, and kills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from identity.ambient import later
from identity.canonical import canonical_id
from identity.core.admin.by import By
from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyPairInfo, Requested
from identity.core.mail import outbox
from identity.core.people import accounts, addresses
from identity.core.people.accounts import Email
from identity.core.people.addresses import EmailInfo
from identity.core.people.ownership import ANYONE
from identity.core.people.rights import Rights
from identity.core.proofs import attempts, codes, guesses
from identity.core.proofs.attempts import Charge
from identity.core.proofs.codes import Purpose
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import by_code, factors, new_password
from identity.core.signin.by_code import Waiting
from identity.core.tokens import sessions
from identity.core.tokens.session_rows import SessionInfo
from identity.errors import CONFLICT, NOT_FOUND, Refused
from identity.instruments.limits import address_key
from identity.instruments.opaque import Secret
from identity.paging import Part
from identity.runtime import Runtime
from identity.storage import Unit

_SESSION_OVER: Final = CONFLICT.saying("That session is over, or its user may not sign in")


# Sessions.


def open_session(rt: Runtime, by: By, user_id: str, *, kind: str = by_code.KIND) -> Waiting:
    """A session of the user that waits for the code which is mailed to them. Raises Refused(CONFLICT) for one who may not sign in."""
    user = accounts.get(rt, user_id)
    if not user.enabled or not user.window.is_open(rt.clock.now()):
        raise Refused(CONFLICT.saying("This user may not sign in now"), detail="disabled, or outside the access window")
    with by.unit(rt) as unit:
        address = _proven_address(unit, user.id)
        return by_code.open_waiting(rt, unit, user, address, kind=kind, resource=rt.settings.default_audience)


def verify_session(rt: Runtime, by: By, session_id: str) -> None:
    """Make a waiting session usable without its code. It tells no method of proof: nobody proved anything.

    Raises Refused(NOT_FOUND), Refused(CONFLICT) for one that is over or whose user may not sign in.
    """
    found = _get_session(rt, session_id)
    by.require_other(found.user_id)
    if found.verified:
        return
    with by.unit(rt) as unit:
        codes.cancel(unit, Purpose.SESSION, found.id)
        try:
            sessions.mark_proven(rt, unit, found.id, amr=(), actor=by.actor)
        except Refused as refused:
            raise Refused(_SESSION_OVER, detail=refused.detail, cause=refused) from refused


def revoke_session(rt: Runtime, by: By, session_id: str) -> None:
    """End a session; doing it twice is the same. Raises Refused(NOT_FOUND)."""
    found = _get_session(rt, session_id)
    by.require_other(found.user_id)
    with by.unit(rt) as unit:
        codes.cancel(unit, Purpose.SESSION, found.id)
        sessions.revoke(rt, unit, found.id, actor=by.actor, reason="ended by an administrator")


def revoke_sessions(rt: Runtime, by: By, **owners: str | None) -> int:
    """End every session of a user, a tenant's members, an application, or everybody; tell how many. See `sessions.revoke_many`."""
    by.require_other(owners.get("user"))
    with by.unit(rt) as unit:
        return sessions.revoke_many(rt, unit, actor=by.actor, reason="ended by an administrator", **owners)


# Key pairs.


def create_keypair(
    rt: Runtime,
    by: By,
    user_id: str,
    *,
    name: str,
    days: int,
    cidrs: Sequence[str] = (),
    roles: Sequence[str] | None = None,
    tenants: Sequence[str] | None = None,
    decoy: bool = False,
) -> Requested:
    """A key pair of the user, which waits for the code that is mailed to them (see `keypairs.request`); a decoy waits for none."""
    user = accounts.get(rt, user_id)
    with by.unit(rt) as unit:
        rights = Rights(None if roles is None else tuple(roles), None if tenants is None else tuple(tenants))
        if decoy:
            keypairs.check_room(unit, user.id)
            info, secret = keypairs.create(
                rt,
                unit,
                user.id,
                name=name,
                days=days,
                actor=by.actor,
                cidrs=cidrs,
                verified=True,
                rights=rights,
                decoy=True,
            )
            return Requested(info, secret, None)
        return keypairs.request(rt, unit, user, name=name, days=days, actor=by.actor, cidrs=cidrs, rights=rights)


def verify_keypair(rt: Runtime, by: By, key_id: str) -> None:
    """Make a waiting pair usable without its code. Raises Refused(NOT_FOUND)."""
    with by.unit(rt) as unit:
        codes.cancel(unit, Purpose.KEYPAIR, key_id)
        by.require_other(keypairs.mark_proven(rt, unit, key_id, actor=by.actor).user_id)


def rotate_keypair(rt: Runtime, by: By, key_id: str, *, grace_seconds: int) -> tuple[KeyPairInfo, Secret, datetime]:
    """A new secret of a pair, while the one before works for `grace_seconds` more; see `keypairs.rotate`."""
    with by.unit(rt) as unit:
        rotated = keypairs.rotate(rt, unit, key_id, actor=by.actor, grace_seconds=grace_seconds, of=ANYONE)
        by.require_other(rotated[0].user_id)
        return rotated


def revoke_keypair(rt: Runtime, by: By, key_id: str) -> None:
    """Delete a pair, and end what it has opened. Raises Refused(NOT_FOUND)."""
    with by.unit(rt) as unit:
        by.require_other(keypairs.revoke(rt, unit, key_id, actor=by.actor, of=ANYONE))


# Addresses.


def add_email(rt: Runtime, by: By, user_id: str, address: str) -> tuple[EmailInfo, str]:
    """An address for the user, which waits for the code that is mailed to it, and the verification id."""
    accounts.get(rt, user_id)
    with by.unit(rt) as unit:
        return addresses.add(rt, unit, user_id, address, actor=by.actor)


def verify_email(rt: Runtime, by: By, email_id: str) -> None:
    """Vouch that an address is its user's. Raises Refused(NOT_FOUND), Refused(CONFLICT) where another user has verified it."""
    with by.unit(rt) as unit:
        row = unit.session.get(Email, email_id) if canonical_id(email_id) else None
        if row is None:
            raise Refused(NOT_FOUND, detail="no such address")
        by.require_other(row.user_id)
        addresses.mark_proven(rt, unit, row.user_id, row.address, actor=by.actor)


def prefer_email(rt: Runtime, by: By, email_id: str) -> None:
    """Have notices and codes sent to this address of its user. Raises Refused(NOT_FOUND), Refused(CONFLICT) for an unverified one."""
    with by.unit(rt) as unit:
        _require_another_persons(by, unit, email_id)
        addresses.prefer(rt, unit, email_id, actor=by.actor, of=ANYONE)


def remove_email(rt: Runtime, by: By, email_id: str) -> None:
    """Delete an address, but not the last verified one of its user (CONFLICT)."""
    with by.unit(rt) as unit:
        _require_another_persons(by, unit, email_id)
        addresses.remove(rt, unit, email_id, actor=by.actor, of=ANYONE)


# Passwords and factors.


def send_password_reset(rt: Runtime, by: By, user_id: str) -> str:
    """Mail the user a code to choose a new password with, and return its verification id; the password stays theirs to choose."""
    user = accounts.get(rt, user_id)
    with by.unit(rt) as unit:
        address = _proven_address(unit, user.id)
        return new_password.send_reset(rt, unit, user, address=address, actor=by.actor)


def unlock(rt: Runtime, by: By, user_id: str) -> int:
    """Forget the failures at an account, from whatever address, so that its owner can sign in at once; tell how many counters went."""
    user = accounts.get(rt, user_id)
    since = later(rt.clock.now(), -attempts.ACCOUNT_AND_ADDRESS.seconds)
    failed = audit.listing(rt, Part(limit=1_000), actor=user.id, action=Action.LOGIN_FAILED, since=since).items
    refused = audit.listing(rt, Part(limit=1_000), actor=user.id, action=Action.CODE_REFUSED, since=since).items
    addresses = {event.address for event in (*failed, *refused)}
    account = f"user:{user.id}"
    charges = [Charge(attempts.ACCOUNT, account), *guesses.second_factor_charges(user.id)]
    charges += [Charge(attempts.ACCOUNT_AND_ADDRESS, f"{account} {address_key(address)}") for address in addresses]
    with by.unit(rt) as unit:
        forgotten = attempts.forgive(unit, charges)
        audit.record(rt, unit, Action.USER_UNLOCKED, actor=by.actor, target=user.id, counters=forgotten)
    return forgotten


def retry_mails(rt: Runtime, by: By, mail_id: str | None) -> int:
    """Send again now what waits or was given up: one mail, or all; tell how many. Raises Refused(NOT_FOUND)."""
    with by.unit(rt) as unit:
        return outbox.retry(unit, mail_id)


def fix_otp(rt: Runtime, by: By, user_id: str, otp: str) -> None:
    """Fix a one-time code for a user; see `factors.set_fixed_otp`."""
    user = accounts.get(rt, user_id)
    with by.unit(rt) as unit:
        factors.set_fixed_otp(rt, unit, user, otp, actor=by.actor)


def clear_otp(rt: Runtime, by: By, user_id: str) -> None:
    """Forget the fixed one-time code of a user. Raises Refused(NOT_FOUND) where there is none."""
    user = accounts.get(rt, user_id)
    with by.unit(rt) as unit:
        factors.clear_fixed_otp(rt, unit, user, actor=by.actor)


def remove_factors(rt: Runtime, by: By, user_id: str) -> None:
    """Take the authenticator of a user who has lost it. Raises Refused(NOT_FOUND) where there is none."""
    user = accounts.get(rt, user_id)
    with by.unit(rt) as unit:
        factors.remove(rt, unit, user, actor=by.actor)


def _require_another_persons(by: By, unit: Unit, email_id: str) -> None:
    row = unit.session.get(Email, email_id) if canonical_id(email_id) else None
    by.require_other(None if row is None else row.user_id)


def _proven_address(unit: Unit, user_id: str) -> str:
    address = addresses.preferred_of(unit, user_id)
    if address is None:
        raise Refused(keypairs.NO_ADDRESS, detail="no verified address")
    return address


def _get_session(rt: Runtime, session_id: str) -> SessionInfo:
    found = sessions.find(rt, session_id)
    if found is None:
        raise Refused(NOT_FOUND, detail="no such session")
    return found
