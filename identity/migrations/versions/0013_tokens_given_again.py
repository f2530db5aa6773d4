"""Tokens that are given again, and how many new ones an application gets in a day."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("application", sa.Column("token_reuse_seconds", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("application", sa.Column("tokens_per_day", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    # The triggers that watch these columns go first; whoever starts next lays them anew.
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        found = bind.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'epoch%'"))
        for (name,) in found.all():
            op.execute(f'DROP TRIGGER "{name}"')
    else:
        found = bind.execute(
            sa.text("SELECT proname FROM pg_proc WHERE proname LIKE 'epoch%' AND prorettype = 'trigger'::regtype")
        )
        for (name,) in found.all():
            op.execute(f'DROP FUNCTION "{name}"() CASCADE')
    op.drop_column("application", "tokens_per_day")
    op.drop_column("application", "token_reuse_seconds")
