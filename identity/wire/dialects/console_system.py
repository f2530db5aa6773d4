"""The console's view of the service itself: what runs, its signing keys, its mail and its backups. Settings are read, never changed."""

from __future__ import annotations

import math
from typing import Any, Final

from identity import __version__, migrations
from identity.ambient import later
from identity.core.admin import backups, keys, on_behalf
from identity.core.mail import outbox
from identity.core.mail.outbox import State
from identity.paging import Part
from identity.wire.dialects.console_dialect import Deed, Visit, perform, said, visited_by_admins
from identity.wire.endpoint import Reply

_MAILS: Final = 20


@visited_by_admins
def show_system(visit: Visit) -> Reply:
    """Show what runs, keys, mail and backups."""
    return visit.reply(_rendered(visit))


@visited_by_admins
def change_system(visit: Visit) -> Reply:
    """Do what the form asks for."""
    kid = visit.typed("kid", most=64)
    return perform(visit, DEEDS, kid, called=kid, show=lambda **values: _rendered(visit, **values))


def _rendered(visit: Visit, *, fault: dict[str, Any] | None = None) -> str:
    rt, settings, now = visit.rt, visit.rt.settings, visit.rt.clock.now()
    age = backups.seconds_since_last(rt.database, now)
    standing = outbox.standing_of(rt.database, now)
    return visit.rendered(
        "system.html",
        facts={
            "Version": __version__,
            "Issuer": settings.issuer,
            "Database": f"{'SQLite' if rt.database.is_sqlite else 'PostgreSQL'}, schema {migrations.HEAD}",
            "Rate limits": "Redis, shared by all hosts"
            if settings.redis_url
            else "embedded, shared by one host's processes",
            "Console": settings.console,
            "Second factor": settings.second_factor,
            "Registration": "open" if settings.registration else "switched off",
        },
        backup=None if math.isinf(age) else later(now, -int(age)),
        keys=rt.ring.list(),
        standing=standing,
        dead=outbox.listing(rt, Part(limit=_MAILS), state=State.DEAD).items if standing.given_up else [],
        waiting=outbox.listing(rt, Part(limit=_MAILS), state=State.PENDING).items if standing.waiting else [],
        fault=fault,
        done=said(visit, DEEDS) if not fault else "",
    )


def _rotate(visit: Visit, _kid: str) -> None:
    keys.rotate_key(visit.rt, visit.by)


def _withdraw(visit: Visit, kid: str) -> None:
    keys.revoke_key(visit.rt, visit.by, kid)


def _retry(visit: Visit, _kid: str) -> None:
    on_behalf.retry_mails(visit.rt, visit.by, visit.typed("mail", most=64) or None)


DEEDS: Final = {
    "rotate-key": Deed(
        _rotate,
        "The next key signs as soon as verifiers can have seen it.",
        asks="Have the next key sign? Tokens that live stay good.",
        button="Rotate",
        recent=True,
    ),
    "withdraw-key": Deed(
        _withdraw,
        "The key is withdrawn: everything that it signed is refused.",
        asks="Withdraw the key {called}? Every token that it signed is refused at once. This is for a key that may be stolen.",
        button="Withdraw",
        recent=True,
    ),
    "retry-mail": Deed(_retry, "It is tried again now."),
}
