"""Roles can be declared."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "role",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=True),
        sa.Column("description", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.id"], name=op.f("fk_role_tenant_id_tenant"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role")),
    )
    with op.batch_alter_table("role", schema=None) as batch_op:
        for name, columns, condition in (
            ("uq_role_everywhere", ["name"], "tenant_id IS NULL"),
            ("uq_role_in_tenant", ["tenant_id", "name"], "tenant_id IS NOT NULL"),
        ):
            batch_op.create_index(
                name, columns, unique=True, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition)
            )


def downgrade() -> None:
    op.drop_table("role")
