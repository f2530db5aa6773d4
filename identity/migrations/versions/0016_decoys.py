"""Decoys: credentials that prove nothing, and when somebody was last told of one that was tried."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TABLES = ("application", "keypair")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("decoy", sa.Boolean(), nullable=False, server_default=sa.false()))
        op.add_column(table, sa.Column("decoy_told_at", sa.BigInteger(), nullable=True))


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
    for table in _TABLES:
        op.drop_column(table, "decoy_told_at")
        op.drop_column(table, "decoy")
