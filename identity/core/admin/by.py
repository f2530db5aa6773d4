"""Who administers what, and from where.

A `By` carries what its actor may, so that no dialect decides it: every use case of this wing opens its transaction through one. An
administrator of the whole service has `unit`; `within` narrows to one tenant, whose use cases (`owners`, `invitations`) open `unit_within`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from identity.ambient import Origin
from identity.core.access.callers import BY_KEY
from identity.errors import FORBIDDEN, Refused
from identity.runtime import Runtime
from identity.storage import Unit


@dataclass(frozen=True, slots=True)
class By:
    """Who administers, and from where; `tenant`: nothing but this one; `by_key`: by a key pair of theirs, or its token."""

    actor: str
    origin: Origin
    tenant: str | None = None
    by_key: bool = False

    @classmethod
    def command_line(cls) -> By:
        return cls("command line", Origin.command_line())

    def within(self, tenant: str) -> By:
        """The same actor, who may administer this tenant and nothing else. Never another one: Refused(FORBIDDEN)."""
        if self.tenant not in (None, tenant):
            raise Refused(FORBIDDEN, detail="administers another tenant")
        return replace(self, tenant=tenant)

    def require_other(self, user_id: str | None) -> None:
        """Raise Refused(BY_KEY) for a key pair that would change its owner, or make them a credential: that would outlive its own end."""
        if self.by_key and user_id == self.actor:
            raise Refused(BY_KEY, detail="by a key pair, to its owner")

    def unit(self, rt: Runtime) -> Unit:
        """A transaction of whoever administers the whole service. Raises Refused(FORBIDDEN) for who administers one tenant."""
        self.require_everything()
        return rt.unit(self.origin)

    def require_everything(self) -> None:
        """Raise Refused(FORBIDDEN) for who administers one tenant: for what is read of the whole service."""
        if self.tenant is not None:
            raise Refused(FORBIDDEN, detail="administers one tenant only")

    def unit_within(self, rt: Runtime) -> Unit:
        """A transaction of whoever administers one tenant. Raises Refused(FORBIDDEN) where nobody said which."""
        if self.tenant is None:
            raise Refused(FORBIDDEN, detail="no tenant was named")
        return rt.unit(self.origin)

    @property
    def where(self) -> str:
        """The tenant that everything is about. Raises Refused(FORBIDDEN) where nobody said which."""
        if self.tenant is None:
            raise Refused(FORBIDDEN, detail="no tenant was named")
        return self.tenant
