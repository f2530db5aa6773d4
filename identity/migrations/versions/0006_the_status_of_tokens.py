"""The status of tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "status_list",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("named_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_status_list")),
    )
    op.create_table(
        "status_entry",
        sa.Column("place", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("token_id", sa.String(length=64), nullable=False),
        sa.Column("entered_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("place", "value", "token_id", name=op.f("pk_status_entry")),
    )
    with op.batch_alter_table("status_entry", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_status_entry_entered_at"), ["entered_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_status_entry_expires_at"), ["expires_at"], unique=False)
    op.add_column("user_session", sa.Column("place", sa.BigInteger(), nullable=True))
    op.add_column("client_secret", sa.Column("place", sa.BigInteger(), nullable=True))
    op.add_column("application", sa.Column("key_place", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for table, column in (
        ("application", "key_place"),
        ("client_secret", "place"),
        ("user_session", "place"),
    ):
        op.drop_column(table, column)
    op.drop_table("status_entry")
    op.drop_table("status_list")
