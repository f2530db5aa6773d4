"""Let the newest events of an actor, a target or an action be read without sorting all of theirs, and the few users of a kind be found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_COLUMNS = ("actor", "target", "action")
_FEW = (
    ("ix_user_account_with_roles", "id", "roles <> ''", "roles <> ''"),
    ("ix_user_account_ends_at", "ends_at", "ends_at IS NOT NULL", "ends_at IS NOT NULL"),
    ("ix_user_account_disabled", "id", "enabled = 0", "NOT enabled"),
)


def upgrade() -> None:
    for column in _COLUMNS:
        op.create_index(f"ix_audit_event_{column}_at", "audit_event", [column, "at"])
        # What the new one serves too; each index costs every event that is written.
        op.drop_index(f"ix_audit_event_{column}", table_name="audit_event")
    for name, column, on_sqlite, on_postgresql in _FEW:
        op.create_index(
            name, "user_account", [column], sqlite_where=sa.text(on_sqlite), postgresql_where=sa.text(on_postgresql)
        )


def downgrade() -> None:
    for name, _, _, _ in _FEW:
        op.drop_index(name, table_name="user_account")
    for column in _COLUMNS:
        op.create_index(f"ix_audit_event_{column}", "audit_event", [column])
        op.drop_index(f"ix_audit_event_{column}_at", table_name="audit_event")
