"""Key pairs with rights of their own, and a grace for the secret that was replaced."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keypair", sa.Column("rights", sa.Text(), nullable=True))
    op.add_column("keypair", sa.Column("previous_fingerprint", sa.LargeBinary(length=32), nullable=True))
    op.add_column("keypair", sa.Column("previous_until", sa.BigInteger(), nullable=True))
    op.add_column("user_session", sa.Column("rights", sa.Text(), nullable=True))


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
    op.drop_column("user_session", "rights")
    op.drop_column("keypair", "previous_until")
    op.drop_column("keypair", "previous_fingerprint")
    op.drop_column("keypair", "rights")
