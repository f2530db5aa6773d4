"""Group H: administration (docs/interfaces.md), over the same use cases as the command line.

Whoever imports `admin` from here has all of its endpoints. The imports below declare them, so their order is that of the documents.
"""

from identity.wire.dialects.admin_dialect import admin

# isort: off
from identity.wire.dialects import admin_users
from identity.wire.dialects import admin_credentials
from identity.wire.dialects import admin_applications
from identity.wire.dialects import admin_tenants
from identity.wire.dialects import admin_operations
from identity.wire.dialects import admin_incidents
# isort: on

__all__ = [
    "admin",
    "admin_applications",
    "admin_credentials",
    "admin_incidents",
    "admin_operations",
    "admin_tenants",
    "admin_users",
]
