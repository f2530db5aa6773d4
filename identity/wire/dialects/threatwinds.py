"""Group C: sessions, emails, key pairs and users, as ThreatWinds documents them (docs/interfaces.md).

Whoever imports `threatwinds` from here has all of its endpoints. The imports below declare them, so their order is that of the documents.
"""

from identity.wire.dialects.threatwinds_dialect import threatwinds

# isort: off
from identity.wire.dialects import threatwinds_sessions
from identity.wire.dialects import threatwinds_emails
from identity.wire.dialects import threatwinds_keypairs
from identity.wire.dialects import threatwinds_users
# isort: on

__all__ = ["threatwinds", "threatwinds_emails", "threatwinds_keypairs", "threatwinds_sessions", "threatwinds_users"]
