"""Breakers and their turns; rests that may be looked at before they end.

Cool-downs of before named the key that was refused even where its whole quota group rested: they
cannot be told apart, and are let go.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.add_column(
        "provider_health",
        sa.Column("state", sa.Text, nullable=False, server_default="closed"),
    )
    op.add_column("provider_health", sa.Column("open_until", INSTANT))
    op.add_column("provider_health", sa.Column("openings", INT, nullable=False, server_default="0"))
    op.add_column("rate_limits", sa.Column("probe_at", INSTANT))
    op.execute("DELETE FROM rate_limits WHERE limit_type = 'cooldown'")
    op.create_table(
        "provider_health_events",
        sa.Column("id", INT, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("provider", sa.Text, nullable=False, server_default=""),
        sa.Column("model", sa.Text, nullable=False, server_default=""),
        sa.Column("from_state", sa.Text, nullable=False),
        sa.Column("to_state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("open_until", INSTANT),
        sa.Column("openings", INT, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_provider_health_events"),
        sa.UniqueConstraint(
            "provider",
            "model",
            "timestamp",
            "to_state",
            name="uq_provider_health_events_provider_model_timestamp_to_state",
        ),
    )
    op.create_index("ix_provider_health_events_timestamp", "provider_health_events", ["timestamp"])
