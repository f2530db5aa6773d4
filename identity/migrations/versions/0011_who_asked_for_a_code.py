"""Who asked for a code."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("code", sa.Column("client_key", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.drop_column("code", "client_key")
