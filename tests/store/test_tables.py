from __future__ import annotations

from proxy.store.tables import api_calls
from proxy.types import BESIDE, CallRecord


def test_columns_of_api_calls_are_the_fields_of_the_record_in_order() -> None:
    fields = [name for name in CallRecord.__struct_fields__ if name not in BESIDE]
    fields[fields.index("cost_nano_usd")] = "cost_estimate_usd"
    fields[fields.index("list_cost_nano_usd")] = "list_cost_usd"
    assert [column.name for column in api_calls.c] == ["id", *fields, "success"]
