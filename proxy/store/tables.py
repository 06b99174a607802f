"""The tables. A change here is a migration too; a test compares the two.

Instants are integer UTC milliseconds in Python on every database (``Instant``), durations REAL
milliseconds, money REAL US dollars. NULL is unknown. The columns of ``api_calls`` are the fields
of ``CallRecord`` in order, between ``id`` and the computed ``success``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Computed,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from proxy.errors import ErrorReason
from proxy.store.columns import (
    FLOAT,
    INT,
    Instant,
    Packed,
    counts,
    floats,
    identity,
    instants,
    ints,
    key,
    one_of,
    required,
    texts,
)
from proxy.store.sets import (
    CLIENT_LISTS,
    COST_SOURCES,
    LIMIT_SOURCES,
    RESET_PERIODS,
    SEVERITIES,
    STATUSES,
    USAGE_SOURCES,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


api_calls = Table(
    "api_calls",
    metadata,
    identity(),
    Column("request_id", Text, nullable=False),
    Column("attempt", INT, nullable=False),
    Column("is_final", Boolean, nullable=False),
    *required(Instant, "timestamp", "finished_at"),
    *required(Text, "endpoint", "provider", "model"),
    *texts("requested_model", "model_version", "key_id", "account", "client_id"),
    *texts("client_request_id", "upstream_request_id"),
    *texts("agent_name", "tool_name", "session_id", "trace_id", "user_id", "tags"),
    Column("is_stream", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    *ints("http_status", "client_status"),
    *texts("error_reason", "error_message", "finish_reason"),
    *floats("response_time_ms", "total_duration_ms", "queue_time_ms", "processing_time_ms"),
    *floats("overhead_ms", "overhead_before_ms", "overhead_after_ms", "ttfb_ms"),
    *floats("time_to_first_token_ms", "first_reasoning_ms", "first_content_ms", "first_tool_ms"),
    *floats("last_token_ms", "tokens_per_second"),
    *floats("inter_token_avg_ms", "inter_token_p50_ms", "inter_token_p95_ms", "max_stall_ms"),
    *ints("stall_count", "chunk_count"),
    *floats("model_load_ms", "prompt_eval_ms", "generation_ms"),
    Column("is_cold_start", Boolean),
    *floats("model_memory_mb", "model_vram_mb", "gpu_memory_used_mb"),
    *ints("input_tokens", "output_tokens", "total_tokens"),
    *ints("cached_tokens", "cache_write_tokens", "reasoning_tokens"),
    *ints("input_audio_tokens", "output_audio_tokens"),
    *ints("input_image_tokens", "output_image_tokens"),
    Column("usage_source", Text, nullable=False),
    Column("cost_estimate_usd", FLOAT),
    Column("list_cost_usd", FLOAT),
    Column("cost_source", Text, nullable=False),
    *texts("price_version"),
    *ints("message_count", "prompt_length", "response_length"),
    *floats("temperature", "top_p", "frequency_penalty", "presence_penalty"),
    *ints("top_k", "max_tokens", "stop_count", "tool_count", "n", "seed"),
    *texts("reasoning_effort"),
    Column("privacy_level", Text, nullable=False),
    *texts("metadata"),
    Column("success", Boolean, Computed("status = 'success'", persisted=True)),
    one_of("status", STATUSES),
    one_of("error_reason", ErrorReason),
    one_of("usage_source", USAGE_SOURCES),
    one_of("cost_source", COST_SOURCES),
    UniqueConstraint("request_id", "attempt"),
)
Index(None, api_calls.c.timestamp)


def _partial(name: str, where: ColumnElement[bool], *columns: Column[Any]) -> None:
    """An index of the few rows that the condition picks: it costs the others nothing."""
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


_AGENT, _USER = api_calls.c.agent_name, api_calls.c.user_id
_partial("ix_api_calls_unsuccessful", api_calls.c.status != "success", api_calls.c.timestamp)
_partial("ix_api_calls_agent", _AGENT.is_not(None), _AGENT, api_calls.c.timestamp)
_partial("ix_api_calls_user", _USER.is_not(None), _USER, api_calls.c.timestamp)

rate_limits = Table(
    "rate_limits",
    metadata,
    identity(),
    *key("provider", "model", "key_id", "account", "limit_type"),
    *ints("current_count", "limit_limit", "remaining", "window_seconds"),
    *instants("reset_time", "cooldown_until"),
    *texts("cooldown_reason"),
    *counts("backoff_count", "hit_count"),
    *instants("last_hit_at"),
    Column("source", Text, nullable=False),
    Column("last_updated", Instant, nullable=False),
    *instants("probe_at"),
    one_of("source", LIMIT_SOURCES),
    UniqueConstraint("provider", "model", "key_id", "account", "limit_type"),
)

provider_health = Table(
    "provider_health",
    metadata,
    identity(),
    *key("provider", "model", "key_id"),
    Column("is_healthy", Boolean, nullable=False),
    Column("failure_rate", FLOAT, nullable=False),
    *required(INT, "window_seconds", "sample_count", "consecutive_failures"),
    *instants("last_success_time", "last_failure_time", "last_check_time"),
    *texts("last_error_reason"),
    *ints("last_http_status"),
    *floats("avg_latency_ms", "avg_ttft_ms"),
    Column("updated_at", Instant, nullable=False),
    Column("state", Text, nullable=False, server_default="closed"),
    *instants("open_until"),
    *counts("openings"),
    UniqueConstraint("provider", "model", "key_id"),
)

provider_health_events = Table(
    "provider_health_events",
    metadata,
    identity(),
    Column("timestamp", Instant, nullable=False),
    *key("provider", "model"),
    *required(Text, "from_state", "to_state", "reason"),
    *instants("open_until"),
    *counts("openings"),
    UniqueConstraint("provider", "model", "timestamp", "to_state"),
)
Index(None, provider_health_events.c.timestamp)

tps_metrics = Table(
    "tps_metrics",
    metadata,
    identity(),
    *key("provider", "model"),
    Column("window_minutes", INT, nullable=False),
    Column("window_start", Instant, nullable=False),
    Column("tps", FLOAT, nullable=False),
    *floats("tps_p50", "tps_p95", "tps_min", "tps_max"),
    *required(INT, "sample_count", "output_tokens"),
    *floats("aggregate_tps", "avg_ttft_ms", "p95_ttft_ms"),
    UniqueConstraint("provider", "model", "window_minutes", "window_start"),
)
Index(None, tps_metrics.c.window_start)

daily_costs = Table(
    "daily_costs",
    metadata,
    Column("date", Text, primary_key=True),
    *[
        Column(name, Text, primary_key=True, server_default="")
        for name in ("provider", "model_name", "agent_name", "tool_name", "client_id")
    ],
    *counts("invocations", "successes", "failures"),
    *counts("input_tokens", "output_tokens", "total_tokens"),
    Column("total_cost_usd", FLOAT, nullable=False, server_default="0"),
    *counts("unpriced_calls"),
    sqlite_with_rowid=False,
)

system_metrics = Table(
    "system_metrics",
    metadata,
    identity(),
    Column("timestamp", Instant, nullable=False),
    Column("gpu_count", INT, nullable=False, server_default="0"),
    *floats("cpu_percent", "memory_percent", "memory_used_gb", "memory_total_gb"),
    *floats("swap_percent", "disk_percent"),
    *ints("disk_read_bytes", "disk_write_bytes", "network_bytes_sent", "network_bytes_recv"),
    *floats("load_1m", "load_5m", "load_15m", "process_rss_mb", "process_cpu_percent"),
    *ints("process_threads", "open_fds"),
    *floats("loop_lag_ms"),
    *ints("in_flight_requests", "writer_queue_depth"),
)
Index(None, system_metrics.c.timestamp)

gpu_metrics = Table(
    "gpu_metrics",
    metadata,
    identity(),
    Column("sample_id", INT, ForeignKey(system_metrics.c.id, ondelete="CASCADE"), nullable=False),
    Column("timestamp", Instant, nullable=False),
    Column("gpu_id", INT, nullable=False),
    *texts("uuid", "name"),
    *floats("temperature_c", "utilization_percent"),
    *floats("memory_used_mb", "memory_total_mb", "memory_percent"),
    *floats("power_draw_watts", "power_limit_watts", "sm_clock_mhz"),
    *ints("throttle_reasons"),
    UniqueConstraint("sample_id", "gpu_id"),
)
Index(None, gpu_metrics.c.timestamp)

errors = Table(
    "errors",
    metadata,
    identity(),
    Column("timestamp", Instant, nullable=False),
    *texts("request_id"),
    *ints("attempt"),
    *required(Text, "error_type", "error_message"),
    *texts("stack_trace", "provider", "model_name", "endpoint", "client_id"),
    Column("severity", Text, nullable=False, server_default="error"),
    *ints("http_status"),
    Column("fingerprint", Text, nullable=False),
    one_of("severity", SEVERITIES),
)
Index(None, errors.c.timestamp)
Index(None, errors.c.request_id)
Index(None, errors.c.severity, errors.c.timestamp)

models = Table(
    "models",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    *texts("version", "type"),
    *ints("parameters", "context_length", "max_output_tokens"),
    *floats("memory_usage_gb"),
    *instants("loaded_at"),
    *floats("input_price_per_mtok", "output_price_per_mtok", "cached_price_per_mtok"),
    *texts("price_source", "price_version"),
    Column("is_free", Boolean),
    *required(Instant, "first_seen", "last_seen"),
    *texts("metadata"),
)

custom_events = Table(
    "custom_events",
    metadata,
    identity(),
    Column("event_id", Text, nullable=False),
    Column("timestamp", Instant, nullable=False),
    Column("name", Text, nullable=False),
    *floats("value"),
    *texts("request_id", "agent_name", "tool_name", "client_id", "metadata"),
    UniqueConstraint("event_id"),
)
Index(None, custom_events.c.timestamp)
Index(None, custom_events.c.name, custom_events.c.timestamp)

call_contents = Table(
    "call_contents",
    metadata,
    identity(),
    Column("request_id", Text, nullable=False),
    Column("attempt", INT, nullable=False),
    Column("timestamp", Instant, nullable=False),
    Column("request", Packed),
    *ints("request_length"),
    Column("request_cut", Boolean, nullable=False),
    Column("answer", Packed),
    *ints("answer_length"),
    Column("answer_cut", Boolean, nullable=False),
    UniqueConstraint("request_id", "attempt"),
)
Index(None, call_contents.c.timestamp)

client_keys = Table(
    "client_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    *texts("owner"),
    *[Column(name, Text, nullable=False, server_default="[]") for name in CLIENT_LISTS],
    *instants("expires_at", "revoked_at"),
    Column("updated_at", Instant, nullable=False),
    Column("limits", Text, nullable=False, server_default="{}"),
)

client_secrets = Table(
    "client_secrets",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("client_id", Text, ForeignKey(client_keys.c.id), nullable=False),
    Column("created_at", Instant, nullable=False),
    *instants("expires_at"),
)
api_credits = Table(
    "api_credits",
    metadata,
    identity(),
    *key("kind", "provider", "key_id"),
    *floats("allowance", "credits_remaining"),
    Column("credits_used_total", FLOAT, nullable=False),
    Column("credits_used", FLOAT, nullable=False, server_default="0"),
    Column("reset_period", Text, nullable=False),
    *instants("reset_at"),
    Column("is_exhausted", Boolean, nullable=False),
    Column("updated_at", Instant, nullable=False),
    one_of("reset_period", RESET_PERIODS),
    UniqueConstraint("kind", "provider", "key_id"),
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("account", Text, primary_key=True),
    Column("start", Instant, primary_key=True),
    *counts("spent_nano"),
)

budget_leases = Table(
    "budget_leases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", Text, nullable=False),
    Column("start", Instant, nullable=False),
    *counts("amount_nano", "spent_nano"),
    Column("expires_at", Instant, nullable=False),
)
Index(None, budget_leases.c.account, budget_leases.c.start)

running_figures = Table(
    "running_figures",
    metadata,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("until", Instant, nullable=False),
)
Index(None, running_figures.c.until)

journal_positions = Table(
    "journal_positions",
    metadata,
    Column("segment", Text, primary_key=True),
    Column("position", INT, nullable=False),
    Column("updated_at", Instant, nullable=False),
)
rollup_series = Table(
    "rollup_series",
    metadata,
    Column("id", INT, primary_key=True, autoincrement=False),
    Column("scope", Text, nullable=False),
    *key("provider", "model", "key_id", "client_id", "agent_name", "tool_name"),
    *key("endpoint", "status", "error_reason"),
    Column("first_seen", Instant, nullable=False),
)


def _rollups(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("start", Instant, primary_key=True),
        Column("series_id", INT, primary_key=True, autoincrement=False),
        *counts("attempts", "requests", "failovers", "unpriced"),
        *ints("input_tokens", "output_tokens", "total_tokens", "nano_usd"),
        *counts("latency_total", "ttft_total", "speed_total"),
        *[Column(f"{name}_sketch", LargeBinary) for name in ("latency", "ttft", "speed")],
        sqlite_with_rowid=False,
    )


rollups_minute = _rollups("rollups_minute")
rollups_hour = _rollups("rollups_hour")
rollups_day = _rollups("rollups_day")
