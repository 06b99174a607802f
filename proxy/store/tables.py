"""The tables. A change here is a migration too; a test compares the two.

Instants are integer UTC milliseconds in Python on every database (``Instant``), durations REAL
milliseconds, money REAL US dollars. NULL is unknown. The columns of ``api_calls`` are the fields
of ``CallRecord`` in order, between ``id`` and the computed ``success``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Computed,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from proxy.errors import ErrorReason

STATUSES = ("success", "error", "timeout", "cancelled", "rejected")
USAGE_SOURCES = ("provider", "drained", "estimated", "none")
COST_SOURCES = ("provider", "config", "catalog", "none")
SEVERITIES = ("info", "warning", "error", "critical")
LIMIT_SOURCES = ("header", "body", "local", "config")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Instant(TypeDecorator[int]):
    """UTC milliseconds: INTEGER on SQLite, ``timestamptz`` on PostgreSQL."""

    impl = Integer
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(Integer())

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "postgresql":
            return value
        return _EPOCH + value * _MILLISECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        if value is None or dialect.name != "postgresql":
            return value
        return int((value - _EPOCH) // _MILLISECOND)


INT = BigInteger().with_variant(Integer(), "sqlite")
FLOAT: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> Column[int]:
    return Column("id", INT, primary_key=True, autoincrement=True)


def _texts(*names: str) -> list[Column[str]]:
    return [Column(name, Text) for name in names]


def _ints(*names: str) -> list[Column[int]]:
    return [Column(name, INT) for name in names]


def _counts(*names: str) -> list[Column[int]]:
    return [Column(name, INT, nullable=False, server_default="0") for name in names]


def _floats(*names: str) -> list[Column[float]]:
    return [Column(name, FLOAT) for name in names]


def _instants(*names: str) -> list[Column[int]]:
    return [Column(name, Instant) for name in names]


def _key(*names: str) -> list[Column[str]]:
    """Parts of a unique key: never NULL, since NULLs are never equal and would never conflict."""
    return [Column(name, Text, nullable=False, server_default="") for name in names]


def _one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    # The frequent cases come first: SQLite builds a list for IN anew with every row, 2 µs each.
    first, *others = (f"'{value}'" for value in values)
    listed = f"{column} IS NULL OR {column} = {first} OR {column} IN ({', '.join(others)})"
    return CheckConstraint(listed, name=column)


api_calls = Table(
    "api_calls",
    metadata,
    _id(),
    Column("request_id", Text, nullable=False),
    Column("attempt", INT, nullable=False),
    Column("is_final", Boolean, nullable=False),
    Column("timestamp", Instant, nullable=False),
    Column("finished_at", Instant, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    *_texts("requested_model", "model_version", "key_id", "account", "client_id"),
    *_texts("client_request_id", "upstream_request_id"),
    *_texts("agent_name", "tool_name", "session_id", "trace_id"),
    Column("is_stream", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    *_ints("http_status", "client_status"),
    *_texts("error_reason", "error_message", "finish_reason"),
    *_floats("response_time_ms", "total_duration_ms", "queue_time_ms", "processing_time_ms"),
    *_floats("overhead_ms", "overhead_before_ms", "overhead_after_ms", "ttfb_ms"),
    *_floats("time_to_first_token_ms", "first_reasoning_ms", "first_content_ms", "first_tool_ms"),
    *_floats("last_token_ms", "tokens_per_second"),
    *_floats("inter_token_avg_ms", "inter_token_p50_ms", "inter_token_p95_ms", "max_stall_ms"),
    *_ints("stall_count", "chunk_count"),
    *_floats("model_load_ms", "prompt_eval_ms", "generation_ms"),
    Column("is_cold_start", Boolean),
    *_floats("model_memory_mb", "model_vram_mb", "gpu_memory_used_mb"),
    *_ints("input_tokens", "output_tokens", "total_tokens"),
    *_ints("cached_tokens", "cache_write_tokens", "reasoning_tokens"),
    *_ints("input_audio_tokens", "output_audio_tokens"),
    *_ints("input_image_tokens", "output_image_tokens"),
    Column("usage_source", Text, nullable=False),
    Column("cost_estimate_usd", FLOAT),
    Column("list_cost_usd", FLOAT),
    Column("cost_source", Text, nullable=False),
    *_texts("price_version"),
    *_ints("message_count", "prompt_length", "response_length"),
    *_floats("temperature", "top_p", "frequency_penalty", "presence_penalty"),
    *_ints("top_k", "max_tokens", "stop_count", "tool_count", "n", "seed"),
    *_texts("reasoning_effort"),
    Column("privacy_level", Text, nullable=False),
    *_texts("metadata"),
    Column("success", Boolean, Computed("status = 'success'", persisted=True)),
    _one_of("status", STATUSES),
    _one_of("error_reason", ErrorReason),
    _one_of("usage_source", USAGE_SOURCES),
    _one_of("cost_source", COST_SOURCES),
    UniqueConstraint("request_id", "attempt"),
)
Index(None, api_calls.c.timestamp)
Index(None, api_calls.c.provider, api_calls.c.model, api_calls.c.timestamp)


def _partial(name: str, where: ColumnElement[bool], *columns: Column[Any]) -> None:
    """An index of the few rows that the condition picks: it costs the others nothing."""
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


_AGENT, _SESSION = api_calls.c.agent_name, api_calls.c.session_id
_partial("ix_api_calls_unsuccessful", api_calls.c.status != "success", api_calls.c.timestamp)
_partial("ix_api_calls_agent", _AGENT.is_not(None), _AGENT, api_calls.c.timestamp)
_partial("ix_api_calls_session", _SESSION.is_not(None), _SESSION)

rate_limits = Table(
    "rate_limits",
    metadata,
    _id(),
    *_key("provider", "model", "key_id", "account", "limit_type"),
    *_ints("current_count", "limit_limit", "remaining", "window_seconds"),
    *_instants("reset_time", "cooldown_until"),
    *_texts("cooldown_reason"),
    *_counts("backoff_count", "hit_count"),
    *_instants("last_hit_at"),
    Column("source", Text, nullable=False),
    Column("last_updated", Instant, nullable=False),
    *_instants("probe_at"),
    _one_of("source", LIMIT_SOURCES),
    UniqueConstraint("provider", "model", "key_id", "account", "limit_type"),
)

provider_health = Table(
    "provider_health",
    metadata,
    _id(),
    *_key("provider", "model", "key_id"),
    Column("is_healthy", Boolean, nullable=False),
    Column("failure_rate", FLOAT, nullable=False),
    Column("window_seconds", INT, nullable=False),
    Column("sample_count", INT, nullable=False),
    Column("consecutive_failures", INT, nullable=False),
    *_instants("last_success_time", "last_failure_time", "last_check_time"),
    *_texts("last_error_reason"),
    *_ints("last_http_status"),
    *_floats("avg_latency_ms", "avg_ttft_ms"),
    Column("updated_at", Instant, nullable=False),
    Column("state", Text, nullable=False, server_default="closed"),
    *_instants("open_until"),
    *_counts("openings"),
    UniqueConstraint("provider", "model", "key_id"),
)

provider_health_events = Table(
    "provider_health_events",
    metadata,
    _id(),
    Column("timestamp", Instant, nullable=False),
    *_key("provider", "model"),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    *_instants("open_until"),
    *_counts("openings"),
    UniqueConstraint("provider", "model", "timestamp", "to_state"),
)
Index(None, provider_health_events.c.timestamp)

tps_metrics = Table(
    "tps_metrics",
    metadata,
    _id(),
    *_key("provider", "model"),
    Column("window_minutes", INT, nullable=False),
    Column("window_start", Instant, nullable=False),
    Column("tps", FLOAT, nullable=False),
    *_floats("tps_p50", "tps_p95", "tps_min", "tps_max"),
    Column("sample_count", INT, nullable=False),
    Column("output_tokens", INT, nullable=False),
    *_floats("aggregate_tps", "avg_ttft_ms", "p95_ttft_ms"),
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
    *_counts("invocations", "successes", "failures"),
    *_counts("input_tokens", "output_tokens", "total_tokens"),
    Column("total_cost_usd", FLOAT, nullable=False, server_default="0"),
    *_counts("unpriced_calls"),
    sqlite_with_rowid=False,
)

system_metrics = Table(
    "system_metrics",
    metadata,
    _id(),
    Column("timestamp", Instant, nullable=False),
    Column("gpu_count", INT, nullable=False, server_default="0"),
    *_floats("cpu_percent", "memory_percent", "memory_used_gb", "memory_total_gb"),
    *_floats("swap_percent", "disk_percent"),
    *_ints("disk_read_bytes", "disk_write_bytes", "network_bytes_sent", "network_bytes_recv"),
    *_floats("load_1m", "load_5m", "load_15m", "process_rss_mb", "process_cpu_percent"),
    *_ints("process_threads", "open_fds"),
    *_floats("loop_lag_ms"),
    *_ints("in_flight_requests", "writer_queue_depth"),
)
Index(None, system_metrics.c.timestamp)

gpu_metrics = Table(
    "gpu_metrics",
    metadata,
    _id(),
    Column("sample_id", INT, ForeignKey(system_metrics.c.id, ondelete="CASCADE"), nullable=False),
    Column("timestamp", Instant, nullable=False),
    Column("gpu_id", INT, nullable=False),
    *_texts("uuid", "name"),
    *_floats("temperature_c", "utilization_percent"),
    *_floats("memory_used_mb", "memory_total_mb", "memory_percent"),
    *_floats("power_draw_watts", "power_limit_watts", "sm_clock_mhz"),
    *_ints("throttle_reasons"),
    UniqueConstraint("sample_id", "gpu_id"),
)
Index(None, gpu_metrics.c.timestamp)

errors = Table(
    "errors",
    metadata,
    _id(),
    Column("timestamp", Instant, nullable=False),
    *_texts("request_id"),
    *_ints("attempt"),
    Column("error_type", Text, nullable=False),
    Column("error_message", Text, nullable=False),
    *_texts("stack_trace", "provider", "model_name", "endpoint", "client_id"),
    Column("severity", Text, nullable=False, server_default="error"),
    *_ints("http_status"),
    Column("fingerprint", Text, nullable=False),
    _one_of("severity", SEVERITIES),
)
Index(None, errors.c.timestamp)
Index(None, errors.c.request_id)
Index(None, errors.c.severity, errors.c.timestamp)

models = Table(
    "models",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    *_texts("version", "type"),
    *_ints("parameters", "context_length", "max_output_tokens"),
    *_floats("memory_usage_gb"),
    *_instants("loaded_at"),
    *_floats("input_price_per_mtok", "output_price_per_mtok", "cached_price_per_mtok"),
    *_texts("price_source", "price_version"),
    Column("is_free", Boolean),
    Column("first_seen", Instant, nullable=False),
    Column("last_seen", Instant, nullable=False),
    *_texts("metadata"),
)

custom_events = Table(
    "custom_events",
    metadata,
    _id(),
    Column("event_id", Text, nullable=False),
    Column("timestamp", Instant, nullable=False),
    Column("name", Text, nullable=False),
    *_floats("value"),
    *_texts("request_id", "agent_name", "tool_name", "client_id", "metadata"),
    UniqueConstraint("event_id"),
)
Index(None, custom_events.c.timestamp)
Index(None, custom_events.c.name, custom_events.c.timestamp)

rollup_series = Table(
    "rollup_series",
    metadata,
    Column("id", INT, primary_key=True, autoincrement=False),
    Column("scope", Text, nullable=False),
    *_key("provider", "model", "key_id", "client_id", "agent_name", "tool_name"),
    *_key("endpoint", "status", "error_reason"),
    Column("first_seen", Instant, nullable=False),
)


def _rollups(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("start", Instant, primary_key=True),
        Column("series_id", INT, primary_key=True, autoincrement=False),
        *_counts("attempts", "requests", "failovers", "unpriced"),
        *_ints("input_tokens", "output_tokens", "total_tokens", "nano_usd"),
        *_counts("latency_total", "ttft_total", "speed_total"),
        *[Column(f"{name}_sketch", LargeBinary) for name in ("latency", "ttft", "speed")],
        sqlite_with_rowid=False,
    )


rollups_minute = _rollups("rollups_minute")
rollups_hour = _rollups("rollups_hour")
rollups_day = _rollups("rollups_day")
