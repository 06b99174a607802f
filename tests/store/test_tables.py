from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite

from proxy.store.tables import Instant, api_calls
from proxy.types import CallRecord


def test_columns_of_api_calls_are_the_fields_of_the_record_in_order() -> None:
    fields = [name for name in CallRecord.__struct_fields__ if name != "rate_headers"]
    fields[fields.index("cost_nano_usd")] = "cost_estimate_usd"
    fields[fields.index("list_cost_nano_usd")] = "list_cost_usd"
    assert [column.name for column in api_calls.c] == ["id", *fields, "success"]


def test_an_instant_is_milliseconds_on_both_sides() -> None:
    ms = 1_795_219_200_123
    kept = Instant().process_bind_param(ms, postgresql.dialect())
    assert kept.isoformat() == "2026-11-21T00:00:00.123000+00:00"
    assert Instant().process_result_value(kept, postgresql.dialect()) == ms
    assert Instant().process_bind_param(ms, sqlite.dialect()) == ms
    assert Instant().process_bind_param(None, postgresql.dialect()) is None
