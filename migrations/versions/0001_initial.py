"""The first tables: calls, limits, health, speeds, costs, host, errors and models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLOAT = sa.Double().with_variant(sa.REAL(), "sqlite")
INSTANT = sa.Integer().with_variant(sa.DateTime(timezone=True), "postgresql")

_REASONS = (
    "rate_limit quota_exceeded credit authentication forbidden not_found invalid_request "
    "context_length content_filter too_large server_error overloaded connect timeout "
    "stream_error truncated empty_response bad_response client_closed no_keys interrupted "
    "internal"
)


def _one_of(table: str, column: str, values: str) -> sa.CheckConstraint:
    # The frequent cases come first: SQLite builds a list for IN anew with every row.
    first, *others = (f"'{value}'" for value in values.split())
    listed = f"{column} IS NULL OR {column} = {first} OR {column} IN ({', '.join(others)})"
    return sa.CheckConstraint(listed, name=op.f(f"ck_{table}_{column}"))


def upgrade() -> None:
    _create_api_calls()
    _create_daily_costs()
    _create_errors()
    _create_models()
    _create_provider_health()
    _create_rate_limits()
    _create_system_metrics()
    _create_tps_metrics()
    _create_gpu_metrics()


def _create_api_calls() -> None:
    op.create_table(
        "api_calls",
        sa.Column("id", INT, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("attempt", INT, nullable=False),
        sa.Column("is_final", sa.Boolean, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("requested_model", sa.Text),
        sa.Column("model_version", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("account", sa.Text),
        sa.Column("client_id", sa.Text),
        sa.Column("client_request_id", sa.Text),
        sa.Column("upstream_request_id", sa.Text),
        sa.Column("agent_name", sa.Text),
        sa.Column("tool_name", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("trace_id", sa.Text),
        sa.Column("is_stream", sa.Boolean, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("http_status", INT),
        sa.Column("client_status", INT),
        sa.Column("error_reason", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("finish_reason", sa.Text),
        sa.Column("response_time_ms", FLOAT),
        sa.Column("total_duration_ms", FLOAT),
        sa.Column("queue_time_ms", FLOAT),
        sa.Column("processing_time_ms", FLOAT),
        sa.Column("overhead_ms", FLOAT),
        sa.Column("ttfb_ms", FLOAT),
        sa.Column("time_to_first_token_ms", FLOAT),
        sa.Column("tokens_per_second", FLOAT),
        sa.Column("inter_token_avg_ms", FLOAT),
        sa.Column("inter_token_p50_ms", FLOAT),
        sa.Column("inter_token_p95_ms", FLOAT),
        sa.Column("max_stall_ms", FLOAT),
        sa.Column("chunk_count", INT),
        sa.Column("input_tokens", INT),
        sa.Column("output_tokens", INT),
        sa.Column("total_tokens", INT),
        sa.Column("cached_tokens", INT),
        sa.Column("cache_write_tokens", INT),
        sa.Column("reasoning_tokens", INT),
        sa.Column("usage_source", sa.Text, nullable=False),
        sa.Column("cost_estimate_usd", FLOAT),
        sa.Column("cost_source", sa.Text, nullable=False),
        sa.Column("price_version", sa.Text),
        sa.Column("message_count", INT),
        sa.Column("prompt_length", INT),
        sa.Column("response_length", INT),
        sa.Column("temperature", FLOAT),
        sa.Column("top_p", FLOAT),
        sa.Column("frequency_penalty", FLOAT),
        sa.Column("presence_penalty", FLOAT),
        sa.Column("top_k", INT),
        sa.Column("max_tokens", INT),
        sa.Column("stop_count", INT),
        sa.Column("tool_count", INT),
        sa.Column("n", INT),
        sa.Column("seed", INT),
        sa.Column("reasoning_effort", sa.Text),
        sa.Column("privacy_level", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text),
        sa.Column("success", sa.Boolean, sa.Computed("status = 'success'", persisted=True)),
        sa.PrimaryKeyConstraint("id", name="pk_api_calls"),
        sa.UniqueConstraint("request_id", "attempt", name="uq_api_calls_request_id_attempt"),
        _one_of("api_calls", "cost_source", "provider config catalog none"),
        _one_of("api_calls", "error_reason", _REASONS),
        _one_of("api_calls", "status", "success error timeout cancelled rejected"),
        _one_of("api_calls", "usage_source", "provider drained estimated none"),
    )
    op.create_index(
        "ix_api_calls_agent",
        "api_calls",
        ["agent_name", "timestamp"],
        sqlite_where=sa.text("agent_name IS NOT NULL"),
        postgresql_where=sa.text("agent_name IS NOT NULL"),
    )
    op.create_index(
        "ix_api_calls_provider_model_timestamp", "api_calls", ["provider", "model", "timestamp"]
    )
    op.create_index(
        "ix_api_calls_session",
        "api_calls",
        ["session_id"],
        sqlite_where=sa.text("session_id IS NOT NULL"),
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index("ix_api_calls_timestamp", "api_calls", ["timestamp"])
    op.create_index(
        "ix_api_calls_unsuccessful",
        "api_calls",
        ["timestamp"],
        sqlite_where=sa.text("status != 'success'"),
        postgresql_where=sa.text("status != 'success'"),
    )


def _create_daily_costs() -> None:
    op.create_table(
        "daily_costs",
        sa.Column("date", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False, server_default=""),
        sa.Column("model_name", sa.Text, nullable=False, server_default=""),
        sa.Column("agent_name", sa.Text, nullable=False, server_default=""),
        sa.Column("tool_name", sa.Text, nullable=False, server_default=""),
        sa.Column("client_id", sa.Text, nullable=False, server_default=""),
        sa.Column("invocations", INT, nullable=False, server_default="0"),
        sa.Column("successes", INT, nullable=False, server_default="0"),
        sa.Column("failures", INT, nullable=False, server_default="0"),
        sa.Column("input_tokens", INT, nullable=False, server_default="0"),
        sa.Column("output_tokens", INT, nullable=False, server_default="0"),
        sa.Column("total_tokens", INT, nullable=False, server_default="0"),
        sa.Column("total_cost_usd", FLOAT, nullable=False, server_default="0"),
        sa.Column("unpriced_calls", INT, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint(
            "date",
            "provider",
            "model_name",
            "agent_name",
            "tool_name",
            "client_id",
            name="pk_daily_costs",
        ),
        sqlite_with_rowid=False,
    )


def _create_errors() -> None:
    op.create_table(
        "errors",
        sa.Column("id", INT, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("attempt", INT),
        sa.Column("error_type", sa.Text, nullable=False),
        sa.Column("error_message", sa.Text, nullable=False),
        sa.Column("stack_trace", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("model_name", sa.Text),
        sa.Column("endpoint", sa.Text),
        sa.Column("client_id", sa.Text),
        sa.Column("severity", sa.Text, nullable=False, server_default="error"),
        sa.Column("http_status", INT),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_errors"),
        _one_of("errors", "severity", "info warning error critical"),
    )
    op.create_index("ix_errors_request_id", "errors", ["request_id"])
    op.create_index("ix_errors_severity_timestamp", "errors", ["severity", "timestamp"])
    op.create_index("ix_errors_timestamp", "errors", ["timestamp"])


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("parameters", INT),
        sa.Column("context_length", INT),
        sa.Column("max_output_tokens", INT),
        sa.Column("memory_usage_gb", FLOAT),
        sa.Column("loaded_at", INSTANT),
        sa.Column("input_price_per_mtok", FLOAT),
        sa.Column("output_price_per_mtok", FLOAT),
        sa.Column("cached_price_per_mtok", FLOAT),
        sa.Column("price_source", sa.Text),
        sa.Column("price_version", sa.Text),
        sa.Column("is_free", sa.Boolean),
        sa.Column("first_seen", INSTANT, nullable=False),
        sa.Column("last_seen", INSTANT, nullable=False),
        sa.Column("metadata", sa.Text),
        sa.PrimaryKeyConstraint("provider", "name", name="pk_models"),
    )


def _create_provider_health() -> None:
    op.create_table(
        "provider_health",
        sa.Column("id", INT, nullable=False),
        sa.Column("provider", sa.Text, nullable=False, server_default=""),
        sa.Column("model", sa.Text, nullable=False, server_default=""),
        sa.Column("key_id", sa.Text, nullable=False, server_default=""),
        sa.Column("is_healthy", sa.Boolean, nullable=False),
        sa.Column("failure_rate", FLOAT, nullable=False),
        sa.Column("window_seconds", INT, nullable=False),
        sa.Column("sample_count", INT, nullable=False),
        sa.Column("consecutive_failures", INT, nullable=False),
        sa.Column("last_success_time", INSTANT),
        sa.Column("last_failure_time", INSTANT),
        sa.Column("last_check_time", INSTANT),
        sa.Column("last_error_reason", sa.Text),
        sa.Column("last_http_status", INT),
        sa.Column("avg_latency_ms", FLOAT),
        sa.Column("avg_ttft_ms", FLOAT),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_provider_health"),
        sa.UniqueConstraint(
            "provider", "model", "key_id", name="uq_provider_health_provider_model_key_id"
        ),
    )


def _create_rate_limits() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("id", INT, nullable=False),
        sa.Column("provider", sa.Text, nullable=False, server_default=""),
        sa.Column("model", sa.Text, nullable=False, server_default=""),
        sa.Column("key_id", sa.Text, nullable=False, server_default=""),
        sa.Column("account", sa.Text, nullable=False, server_default=""),
        sa.Column("limit_type", sa.Text, nullable=False, server_default=""),
        sa.Column("current_count", INT),
        sa.Column("limit_limit", INT),
        sa.Column("remaining", INT),
        sa.Column("window_seconds", INT),
        sa.Column("reset_time", INSTANT),
        sa.Column("cooldown_until", INSTANT),
        sa.Column("cooldown_reason", sa.Text),
        sa.Column("backoff_count", INT, nullable=False, server_default="0"),
        sa.Column("hit_count", INT, nullable=False, server_default="0"),
        sa.Column("last_hit_at", INSTANT),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("last_updated", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rate_limits"),
        sa.UniqueConstraint(
            "provider",
            "model",
            "key_id",
            "account",
            "limit_type",
            name="uq_rate_limits_provider_model_key_id_account_limit_type",
        ),
        _one_of("rate_limits", "source", "header body local config"),
    )


def _create_system_metrics() -> None:
    op.create_table(
        "system_metrics",
        sa.Column("id", INT, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("gpu_count", INT, nullable=False, server_default="0"),
        sa.Column("cpu_percent", FLOAT),
        sa.Column("memory_percent", FLOAT),
        sa.Column("memory_used_gb", FLOAT),
        sa.Column("memory_total_gb", FLOAT),
        sa.Column("swap_percent", FLOAT),
        sa.Column("disk_percent", FLOAT),
        sa.Column("disk_read_bytes", INT),
        sa.Column("disk_write_bytes", INT),
        sa.Column("network_bytes_sent", INT),
        sa.Column("network_bytes_recv", INT),
        sa.Column("load_1m", FLOAT),
        sa.Column("load_5m", FLOAT),
        sa.Column("load_15m", FLOAT),
        sa.Column("process_rss_mb", FLOAT),
        sa.Column("process_cpu_percent", FLOAT),
        sa.Column("process_threads", INT),
        sa.Column("open_fds", INT),
        sa.Column("loop_lag_ms", FLOAT),
        sa.Column("in_flight_requests", INT),
        sa.Column("writer_queue_depth", INT),
        sa.PrimaryKeyConstraint("id", name="pk_system_metrics"),
    )
    op.create_index("ix_system_metrics_timestamp", "system_metrics", ["timestamp"])


def _create_tps_metrics() -> None:
    op.create_table(
        "tps_metrics",
        sa.Column("id", INT, nullable=False),
        sa.Column("provider", sa.Text, nullable=False, server_default=""),
        sa.Column("model", sa.Text, nullable=False, server_default=""),
        sa.Column("window_minutes", INT, nullable=False),
        sa.Column("window_start", INSTANT, nullable=False),
        sa.Column("tps", FLOAT, nullable=False),
        sa.Column("tps_p50", FLOAT),
        sa.Column("tps_p95", FLOAT),
        sa.Column("tps_min", FLOAT),
        sa.Column("tps_max", FLOAT),
        sa.Column("sample_count", INT, nullable=False),
        sa.Column("output_tokens", INT, nullable=False),
        sa.Column("aggregate_tps", FLOAT),
        sa.Column("avg_ttft_ms", FLOAT),
        sa.Column("p95_ttft_ms", FLOAT),
        sa.PrimaryKeyConstraint("id", name="pk_tps_metrics"),
        sa.UniqueConstraint(
            "provider",
            "model",
            "window_minutes",
            "window_start",
            name="uq_tps_metrics_provider_model_window_minutes_window_start",
        ),
    )
    op.create_index("ix_tps_metrics_window_start", "tps_metrics", ["window_start"])


def _create_gpu_metrics() -> None:
    op.create_table(
        "gpu_metrics",
        sa.Column("id", INT, nullable=False),
        sa.Column("sample_id", INT, nullable=False),
        sa.Column("timestamp", INSTANT, nullable=False),
        sa.Column("gpu_id", INT, nullable=False),
        sa.Column("uuid", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("temperature_c", FLOAT),
        sa.Column("utilization_percent", FLOAT),
        sa.Column("memory_used_mb", FLOAT),
        sa.Column("memory_total_mb", FLOAT),
        sa.Column("memory_percent", FLOAT),
        sa.Column("power_draw_watts", FLOAT),
        sa.Column("power_limit_watts", FLOAT),
        sa.Column("sm_clock_mhz", FLOAT),
        sa.Column("throttle_reasons", INT),
        sa.ForeignKeyConstraint(
            ["sample_id"],
            ["system_metrics.id"],
            name="fk_gpu_metrics_sample_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_gpu_metrics"),
        sa.UniqueConstraint("sample_id", "gpu_id", name="uq_gpu_metrics_sample_id_gpu_id"),
    )
    op.create_index("ix_gpu_metrics_timestamp", "gpu_metrics", ["timestamp"])
