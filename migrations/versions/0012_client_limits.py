"""What each client may use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    limits = sa.Column("limits", sa.Text, nullable=False, server_default="{}")
    op.add_column("client_keys", limits)
