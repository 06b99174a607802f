"""Prompts and answers, where they are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "call_contents",
        sa.Column("id", INT, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("attempt", INT, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("request", sa.LargeBinary),
        sa.Column("request_length", INT),
        sa.Column("request_cut", sa.Boolean, nullable=False),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("answer_length", INT),
        sa.Column("answer_cut", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_call_contents"),
        sa.UniqueConstraint("request_id", "attempt", name="uq_call_contents_request_id_attempt"),
    )
    op.create_index("ix_call_contents_timestamp", "call_contents", ["timestamp"])
