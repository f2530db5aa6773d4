"""Searching lists by their beginnings, paging by cursor, the last login, and the names that other systems have for people."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# (name, table, columns, whether it serves prefixes: by byte, whatever the collation)
_INDEXES = (
    ("ix_user_account_id_prefix", "user_account", ["id"], True),
    ("ix_user_account_alias_prefix", "user_account", ["alias"], True),
    ("ix_user_account_full_name_prefix", "user_account", ["full_name"], True),
    ("ix_email_address_prefix", "email", ["address"], True),
    ("ix_application_name", "application", ["name"], True),
    ("ix_application_tenant_id", "application", ["tenant_id"], False),
    ("ix_membership_tenant_id_user_id", "membership", ["tenant_id", "user_id"], False),
    ("ix_refusal_caller", "refusal", ["caller", "at"], False),
    ("ix_refusal_address", "refusal", ["address", "at"], False),
)


def upgrade() -> None:
    for name, table, columns, is_prefix in _INDEXES:
        ops = {columns[0]: "text_pattern_ops"} if is_prefix else {}
        op.create_index(name, table, columns, postgresql_ops=ops)
    login = sa.text("action = 'login.succeeded'")
    op.create_index("ix_audit_event_login", "audit_event", ["actor", "at"], sqlite_where=login, postgresql_where=login)
    op.add_column("user_account", sa.Column("external_id", sa.String(length=200), nullable=True))
    op.create_index("uq_user_account_external_id", "user_account", ["external_id"], unique=True)


def downgrade() -> None:
    op.drop_index("uq_user_account_external_id", table_name="user_account")
    op.drop_column("user_account", "external_id")
    op.drop_index("ix_audit_event_login", table_name="audit_event")
    for name, table, _, _ in reversed(_INDEXES):
        op.drop_index(name, table_name=table)
