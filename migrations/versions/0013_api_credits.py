"""Allowances of APIs that are counted by hand: searches and the like."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLOAT = sa.Double().with_variant(sa.REAL(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")
PERIODS = "reset_period IS NULL OR reset_period = 'monthly' OR reset_period IN ('daily', 'never')"


def upgrade() -> None:
    op.create_table(
        "api_credits",
        sa.Column("id", INT, nullable=False),
        *[
            sa.Column(name, sa.Text, nullable=False, server_default="")
            for name in ("kind", "provider", "key_id")
        ],
        sa.Column("allowance", FLOAT),
        sa.Column("credits_remaining", FLOAT),
        sa.Column("credits_used_total", FLOAT, nullable=False),
        sa.Column("reset_period", sa.Text, nullable=False),
        sa.Column("reset_at", INSTANT),
        sa.Column("is_exhausted", sa.Boolean, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.CheckConstraint(PERIODS, name=op.f("ck_api_credits_reset_period")),
        sa.PrimaryKeyConstraint("id", name="pk_api_credits"),
        sa.UniqueConstraint(
            "kind", "provider", "key_id", name="uq_api_credits_kind_provider_key_id"
        ),
    )
