"""What was used of an allowance in its period, which cannot be told by what is left of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

FLOAT = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.add_column(
        "api_credits", sa.Column("credits_used", FLOAT, nullable=False, server_default="0")
    )
    op.execute("UPDATE api_credits SET credits_used = coalesce(allowance - credits_remaining, 0)")
