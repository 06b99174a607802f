"""What is spent of budgets, what of them processes have leased, and the budgets of clients."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "budget_windows",
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("start", INSTANT, nullable=False),
        sa.Column("spent_nano", INT, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("account", "start", name="pk_budget_windows"),
    )
    op.create_table(
        "budget_leases",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("start", INSTANT, nullable=False),
        sa.Column("amount_nano", INT, nullable=False, server_default="0"),
        sa.Column("spent_nano", INT, nullable=False, server_default="0"),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budget_leases"),
    )
    op.create_index("ix_budget_leases_account_start", "budget_leases", ["account", "start"])
    op.add_column("client_keys", sa.Column("budgets", sa.Text, nullable=False, server_default="[]"))
