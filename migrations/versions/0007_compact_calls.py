"""On SQLite calls take less room: small numbers are kept, and the columns computed from them.

For a column X of those below, the row holds ``X_kept``, and X is a generated column that takes no
room. All other columns are taken over as they are found, and so are indexes and views. What
programs ask for most stays a column like any other: ``PRAGMA table_info`` shows no generated ones.

Two indexes go on every database: nobody asks by session, and a question about a provider or a model
has a window of time, whose rows are found by the index of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_REASONS = (
    "rate_limit quota_exceeded credit authentication forbidden not_found invalid_request "
    "context_length content_filter too_large server_error overloaded connect timeout "
    "stream_error truncated empty_response bad_response client_closed no_keys interrupted "
    "internal"
)
_CLOSED = {
    "status": "success error timeout cancelled rejected",
    "error_reason": _REASONS,
    "usage_source": "provider drained estimated none",
    "cost_source": "provider config catalog none",
}
_WORDS = {
    "endpoint": "/v1/chat/completions /v1/completions /v1/embeddings /track/inference python",
    "finish_reason": "stop length tool_calls content_filter function_call",
    "privacy_level": "metadata full none",
}
_THOUSANDTHS = (
    "queue_time_ms processing_time_ms overhead_ms overhead_before_ms overhead_after_ms ttfb_ms "
    "first_reasoning_ms first_content_ms first_tool_ms last_token_ms inter_token_avg_ms "
    "inter_token_p50_ms inter_token_p95_ms max_stall_ms model_load_ms prompt_eval_ms generation_ms "
    "temperature top_p frequency_penalty presence_penalty"
)


class Packed(NamedTuple):
    """A column that is computed: how X is read from ``X_kept``, and how that is made of X. It has
    no type, so that no text is taken for a number, nor 2.0 for 2."""

    shown: str
    made: str


def upgrade() -> None:
    for name in ("ix_api_calls_provider_model_timestamp", "ix_api_calls_session"):
        op.drop_index(name, "api_calls")
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        _rebuild(bind)


def _rebuild(bind: sa.Connection) -> None:
    packed = dict(_packed())
    found = bind.exec_driver_sql("PRAGMA table_xinfo(api_calls)").all()
    columns = [(name, f"{kind} NOT NULL" if full else kind) for _, name, kind, full, *_ in found]
    plain = [name for name, _ in columns if name not in {*packed, "success"}]
    parts = [
        *(_column(name, kind, packed.get(name)) for name, kind in columns),
        *(f"{name}_kept" for name in packed),
        "CONSTRAINT pk_api_calls PRIMARY KEY (id)",
        "CONSTRAINT uq_api_calls_request_id_attempt UNIQUE (request_id, attempt)",
        *(_one_of(name, words.split()) for name, words in _CLOSED.items()),
    ]
    kept = "SELECT name, type, sql FROM sqlite_schema WHERE sql IS NOT NULL AND "
    views = bind.exec_driver_sql(kept + "type = 'view'").all()
    indexes = bind.exec_driver_sql(kept + "type = 'index' AND tbl_name = 'api_calls'").all()
    into = [*plain, *(f"{name}_kept" for name in packed)]
    made = [*plain, *(column.made for column in packed.values())]
    for name, *_ in views:
        bind.exec_driver_sql(f"DROP VIEW {name}")
    bind.exec_driver_sql(f"CREATE TABLE api_calls_new ({', '.join(parts)})")
    bind.exec_driver_sql(
        f"INSERT INTO api_calls_new ({', '.join(into)}) SELECT {', '.join(made)} FROM api_calls"
    )
    bind.exec_driver_sql("DROP TABLE api_calls")
    bind.exec_driver_sql("ALTER TABLE api_calls_new RENAME TO api_calls")
    for *_, statement in (*indexes, *views):
        bind.exec_driver_sql(statement)


def _column(name: str, kind: str, packed: Packed | None) -> str:
    if name == "success":
        return f"{name} {kind} GENERATED ALWAYS AS (status = 'success') VIRTUAL"
    if packed is None:
        return f"{name} {kind}"
    return f"{name} {kind} GENERATED ALWAYS AS ({packed.shown}) VIRTUAL"


def _one_of(column: str, values: list[str]) -> str:
    # The frequent cases come first: SQLite builds a list for IN anew with every row.
    first, *others = (f"'{value}'" for value in values)
    listed = f"{column} IS NULL OR {column} = {first} OR {column} IN ({', '.join(others)})"
    return f"CONSTRAINT ck_api_calls_{column} CHECK ({listed})"


def _packed() -> Iterator[tuple[str, Packed]]:
    yield "requested_model", _requested_model()
    for name, words in _WORDS.items():
        yield name, _words(name, words.split())
    for name in _THOUSANDTHS.split():
        yield name, _thousandths(name)


def _words(name: str, words: list[str]) -> Packed:
    codes = " ".join(f"WHEN {code} THEN '{word}'" for code, word in enumerate(words))
    places = " ".join(f"WHEN '{word}' THEN {code}" for code, word in enumerate(words))
    shown = f"CASE {name}_kept {codes} ELSE {name}_kept END"
    return Packed(shown, f"CASE {name} {places} ELSE {name} END")


def _thousandths(name: str) -> Packed:
    many = f"CAST(round({name} * 1000) AS INTEGER)"
    shown = (
        f"CASE typeof({name}_kept) WHEN 'integer' THEN {name}_kept / 1000.0 ELSE {name}_kept END"
    )
    made = f"CASE WHEN {many} / 1000.0 = {name} THEN {many} ELSE {name} END"
    return Packed(shown, made)


def _requested_model() -> Packed:
    full = "provider || '/' || model"
    shown = f"WHEN 0 THEN model WHEN 1 THEN {full} ELSE requested_model_kept"
    made = f"WHEN model THEN 0 WHEN {full} THEN 1 ELSE requested_model"
    return Packed(f"CASE requested_model_kept {shown} END", f"CASE requested_model {made} END")
