"""Epochs: what tells a process that an answer which it remembers may no longer hold."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "epoch",
        sa.Column("shard", sa.String(length=8), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("shard", name=op.f("pk_epoch")),
    )


def downgrade() -> None:
    # The triggers that write it go first: without the table they would refuse every change that they watch.
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
    op.drop_table("epoch")
