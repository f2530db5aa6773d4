"""Key pairs that another system made: by which hash their secrets are known, and what such keys look like."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keypair", sa.Column("imported_digest", sa.String(16), nullable=True))
    op.create_table(
        "key_shape",
        sa.Column("prefix", sa.String(32), primary_key=True),
        sa.Column("length", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("key_shape")
    # The triggers that watch this column go first; whoever starts next lays them anew.
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
    op.drop_column("keypair", "imported_digest")
