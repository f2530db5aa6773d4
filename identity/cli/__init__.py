"""The command line: provisioning, keys, and looking after a running service.

Commands ask the routes of group H: in this process over the configured database, while the service runs, or with `--server` over the
network. `--json` prints one document with group H's field names. Success is exit 0; a refusal is one line on standard error and exit 1,
a wrong call exit 2.
"""

from __future__ import annotations

from identity.cli import (
    access,
    applications,
    backup,
    console,
    frame,
    importing,
    incidents,
    keys,
    operations,
    plan,
    records,
    roles,
    sessions,
    tenants,
    testkit,
    trusts,
    users,
)
from identity.cli.frame import cli, main

__all__ = [
    "access",
    "applications",
    "backup",
    "cli",
    "console",
    "frame",
    "importing",
    "incidents",
    "keys",
    "main",
    "operations",
    "plan",
    "records",
    "roles",
    "sessions",
    "tenants",
    "testkit",
    "trusts",
    "users",
]
