"""Whom a call was made for: the user behind a program, and the tags that it has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("user_id", "tags"):
        op.add_column("api_calls", sa.Column(name, sa.Text))
    told = sa.text("user_id IS NOT NULL")
    op.create_index(
        "ix_api_calls_user",
        "api_calls",
        ["user_id", "timestamp"],
        sqlite_where=told,
        postgresql_where=told,
    )
