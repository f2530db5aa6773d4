"""Tenants whose members' tokens have still to be told of in the status lists."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenant", sa.Column("members_untold_since", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("tenant", "members_untold_since")
