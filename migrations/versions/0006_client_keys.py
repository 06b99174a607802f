"""Whom the gateway knows by keys of their own, and the hashes of these."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "client_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("owner", sa.Text),
        *[
            sa.Column(name, sa.Text, nullable=False, server_default="[]")
            for name in ("models", "providers", "tags")
        ],
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_client_keys"),
    )
    op.create_table(
        "client_secrets",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.PrimaryKeyConstraint("digest", name="pk_client_secrets"),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client_keys.id"], name="fk_client_secrets_client_id"
        ),
    )
