"""Views of ``api_calls`` under the names that older programs' queries use; custom events.

``invocations`` has a row for each request (the final attempt), ``inference_metrics`` one for each
attempt. Those programs kept instants as ISO 8601 text, for ``DATE(timestamp)`` and the like: so
the views show them as such on SQLite, and on PostgreSQL as they are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")
FLOAT = sa.Double().with_variant(sa.REAL(), "sqlite")

_ISO = "strftime('%Y-%m-%dT%H:%M:%fZ', timestamp / 1000.0, 'unixepoch')"

INVOCATIONS = """
CREATE VIEW invocations AS
SELECT id, request_id AS invocation_id, {timestamp} AS timestamp, agent_name, tool_name,
       model AS model_name, input_tokens AS prompt_tokens, output_tokens AS completion_tokens,
       total_tokens, cost_estimate_usd AS cost_usd, response_time_ms AS latency_ms, status,
       error_message, privacy_level
FROM api_calls
WHERE is_final
"""

INFERENCE_METRICS = """
CREATE VIEW inference_metrics AS
SELECT id, request_id, {timestamp} AS timestamp, model AS model_name, model_version,
       input_tokens AS prompt_tokens, output_tokens AS completion_tokens, total_tokens,
       prompt_length, response_length, response_time_ms, queue_time_ms, processing_time_ms,
       tokens_per_second, temperature, max_tokens, success, error_message, metadata
FROM api_calls
"""


def upgrade() -> None:
    timestamp = _ISO if op.get_bind().dialect.name == "sqlite" else "timestamp"
    for view in (INVOCATIONS, INFERENCE_METRICS):
        op.execute(view.format(timestamp=timestamp))
    op.create_table(
        "custom_events",
        sa.Column("id", INT, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", FLOAT),
        *[
            sa.Column(name, sa.Text)
            for name in ("request_id", "agent_name", "tool_name", "client_id", "metadata")
        ],
        sa.PrimaryKeyConstraint("id", name="pk_custom_events"),
        sa.UniqueConstraint("event_id", name="uq_custom_events_event_id"),
    )
    op.create_index("ix_custom_events_timestamp", "custom_events", ["timestamp"])
    op.create_index("ix_custom_events_name_timestamp", "custom_events", ["name", "timestamp"])
