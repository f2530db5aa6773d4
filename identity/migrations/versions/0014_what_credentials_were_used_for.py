"""What each credential was used for, and the reports of leaks that were contained."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "credential_use",
        sa.Column("credential", sa.String(length=64), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("route", sa.String(length=100), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("credential", "hour", "route", "status", "address", name=op.f("pk_credential_use")),
    )
    with op.batch_alter_table("credential_use", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_credential_use_hour"), ["hour"], unique=False)
    op.create_table(
        "incident_report",
        sa.Column("credential", sa.String(length=80), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("told", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("client_id", sa.String(length=36), nullable=True),
        sa.Column("tenant", sa.String(length=64), nullable=True),
        sa.Column("report", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("credential", name=op.f("pk_incident_report")),
    )
    with op.batch_alter_table("incident_report", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_incident_report_at"), ["at"], unique=False)
        batch_op.create_index(batch_op.f("ix_incident_report_user_id"), ["user_id"], unique=False)


def downgrade() -> None:
    op.drop_table("incident_report")
    op.drop_table("credential_use")
