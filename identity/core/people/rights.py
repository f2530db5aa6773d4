"""What of its owner's rights a credential may use: some roles, some tenants, or all that the owner has, now and later.

A pair of rights is fixed when the credential is made; what it comes to is decided anew at every use, against what the owner has then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from identity.core.people.tenancy import Memberships
from identity.errors import VALIDATION, Refused


class Rights(NamedTuple):
    """The roles (global ones and those in tenants) and the tenants that a credential may use; None: all."""

    roles: tuple[str, ...] | None = None
    tenants: tuple[str, ...] | None = None

    def encoded(self) -> str | None:
        """How a column holds them: nothing where nothing is named."""
        named = {name: sorted(set(value)) for name, value in self._asdict().items() if value is not None}
        return json.dumps(named, separators=(",", ":")) if named else None

    def check_within(self, roles: Sequence[str], memberships: Memberships) -> None:
        """Raise Refused(VALIDATION) unless each is one of an owner with these roles and memberships."""
        inside = memberships.roles()
        if self.tenants is not None and not (self.tenants and set(self.tenants) <= inside.keys()):
            raise Refused(VALIDATION.saying("Name tenants that the owner belongs to, or none for all"), field="tenants")
        held = set(roles).union(*(inside[tenant] for tenant in self.tenants or inside))
        if self.roles is not None and not (self.roles and set(self.roles) <= held):
            raise Refused(VALIDATION.saying("Name roles that the owner has, or none for all"), field="roles")


ALL = Rights()


@lru_cache(maxsize=1024)
def decoded(text: str | None) -> Rights:
    """The rights that a column holds."""
    named = json.loads(text) if text else {}
    return Rights(*(tuple(named[name]) if name in named else None for name in Rights._fields))


def narrowed(
    text: str | None, roles: tuple[str, ...], groups: tuple[str, ...], memberships: Memberships
) -> tuple[tuple[str, ...], tuple[str, ...], Memberships]:
    """What is left of an owner's roles, groups and memberships for a credential with these rights.

    Groups cannot be named, so that a credential with rights of its own has none.
    """
    if text is None:
        return roles, groups, memberships
    rights = decoded(text)
    kept = roles if rights.roles is None else tuple(role for role in roles if role in rights.roles)
    return kept, (), memberships.narrowed(rights.roles, rights.tenants)
