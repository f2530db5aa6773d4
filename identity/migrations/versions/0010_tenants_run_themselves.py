"""Tenants run themselves: scopes that owners may give, attributes, a policy, invitations."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# With defaults: versions that do not know the columns go on writing.
_COLUMNS = (
    ("tenant", "scopes", ""),
    ("tenant", "attributes", "{}"),
    ("tenant", "policy", "{}"),
    ("user_account", "attributes", "{}"),
    ("application", "attributes", "{}"),
    ("application", "token_claims", "{}"),
)


def upgrade() -> None:
    for table, column, default in _COLUMNS:
        op.add_column(table, sa.Column(column, sa.Text(), server_default=default, nullable=False))
    op.create_table(
        "invitation",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=True),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("address", sa.String(length=254), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("portal_url", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("invited_by", sa.String(length=64), nullable=False),
        sa.Column("seconds", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenant.id"], name=op.f("fk_invitation_tenant_id_tenant"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_invitation_user_id_user_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitation")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_invitation_fingerprint")),
    )
    for column in ("tenant_id", "user_id", "address", "expires_at"):
        op.create_index(f"ix_invitation_{column}", "invitation", [column], unique=False)


def downgrade() -> None:
    op.drop_table("invitation")
    for table, column, _ in _COLUMNS:
        op.drop_column(table, column)
