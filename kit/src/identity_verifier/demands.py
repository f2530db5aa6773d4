"""What a guard demands of a caller, in the terms that all frameworks share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from identity_verifier.refusals import NO_TENANT, Refused
from identity_verifier.verifier import Verifier

Words = str | Iterable[str] | None
TenantFrom = Literal["header", "optional"] | None


@dataclass(frozen=True, slots=True)
class Demand:
    """A role, a scope (each one or several, all of them needed), a tenant, an answer of this moment.

    `tenant`: `header` demands an `X-Tenant-Id` and a caller who is a member there; `optional` does so where the header was sent.
    """

    role: Words = None
    scope: Words = None
    tenant: TenantFrom = None
    fresh: bool = False

    def options(self, tenant_header: str | None) -> dict[str, Any]:
        """The keywords for `Verifier.verify`. Raises Refused where a tenant is needed and none is named."""
        tenant = (tenant_header or None) if self.tenant is not None else None
        if self.tenant == "header" and tenant is None:
            raise Refused(NO_TENANT, "no X-Tenant-Id")
        return {"tenant": tenant, "role": self.role, "scope": self.scope, "fresh": self.fresh}


def demand(verifier: Verifier, *, role: Words, scope: Words, tenant: TenantFrom, fresh: bool) -> Demand:
    """The demand of one route. Raises ValueError, at the start of the service, for one that could never be met."""
    if tenant not in (None, "header", "optional"):
        raise ValueError(f"tenant is 'header', 'optional' or None, not {tenant!r}")
    if fresh and not verifier.can_ask:
        raise ValueError("fresh=True needs a verifier with a client to ask as: Verifier(..., client=(id, secret))")
    # An iterator would be empty from the second request on.
    kept = [each if each is None or isinstance(each, str) else tuple(each) for each in (role, scope)]
    return Demand(kept[0], kept[1], tenant, fresh)


def joined(values: Sequence[str]) -> str | None:
    """A header that may have been sent more than once, as WSGI spells it."""
    return ",".join(values) if values else None
