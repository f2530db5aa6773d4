"""What proved the actor of an event, and whose affair it was."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXES = ("credential", "tenant", "address")


def upgrade() -> None:
    # With a default: versions that do not know the columns go on writing.
    op.add_column("audit_event", sa.Column("credential", sa.String(length=64), server_default="", nullable=False))
    op.add_column("audit_event", sa.Column("tenant", sa.String(length=64), server_default="", nullable=False))
    for column in _INDEXES:
        op.create_index(f"ix_audit_event_{column}", "audit_event", [column, "at"], unique=False)


def downgrade() -> None:
    for column in _INDEXES:
        op.drop_index(f"ix_audit_event_{column}", table_name="audit_event")
    for column in ("tenant", "credential"):
        op.drop_column("audit_event", column)
