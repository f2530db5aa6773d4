"""Secrets that retire by themselves, who uses them, and an id for each key set."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "credential_caller",
        sa.Column("credential_id", sa.String(length=36), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("credential_id", "address", name=op.f("pk_credential_caller")),
    )
    with op.batch_alter_table("credential_caller", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_credential_caller_last_used_at"), ["last_used_at"], unique=False)
    op.add_column("client_secret", sa.Column("retire_after_quiet", sa.BigInteger(), nullable=True))
    op.add_column("client_secret", sa.Column("quiet_from", sa.BigInteger(), nullable=True))
    op.add_column("application", sa.Column("key_set_id", sa.String(length=16), nullable=True))


def downgrade() -> None:
    op.drop_column("application", "key_set_id")
    op.drop_column("client_secret", "quiet_from")
    op.drop_column("client_secret", "retire_after_quiet")
    op.drop_table("credential_caller")
