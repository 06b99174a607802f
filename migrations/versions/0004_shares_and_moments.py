"""Columns for shares of tokens, list prices, a stream's moments and a model server's figures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLOAT = sa.Double().with_variant(sa.REAL(), "sqlite")

_FLOATS = (
    *("overhead_before_ms", "overhead_after_ms"),
    *("first_reasoning_ms", "first_content_ms", "first_tool_ms", "last_token_ms"),
    *("model_load_ms", "prompt_eval_ms", "generation_ms"),
    *("model_memory_mb", "model_vram_mb", "gpu_memory_used_mb", "list_cost_usd"),
)
_INTS = (
    *("stall_count", "input_audio_tokens", "output_audio_tokens"),
    *("input_image_tokens", "output_image_tokens"),
)


def upgrade() -> None:
    for name in _FLOATS:
        op.add_column("api_calls", sa.Column(name, FLOAT))
    for name in _INTS:
        op.add_column("api_calls", sa.Column(name, INT))
    op.add_column("api_calls", sa.Column("is_cold_start", sa.Boolean))
