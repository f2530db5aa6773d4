"""The command line: provisioning, keys, and looking after a running service (contract section 11).

Every command works on the configured database while the service runs, through the same use cases as group H. `--json` prints one
document with group H's field names. Success is exit 0; a refusal is one line on standard error and exit 1, a wrong call exit 2.
"""

from __future__ import annotations

from identity.cli import applications, keys, operations, roles, tenants, testkit, users
from identity.cli.frame import cli, main

__all__ = ["applications", "cli", "keys", "main", "operations", "roles", "tenants", "testkit", "users"]
