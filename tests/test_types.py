from __future__ import annotations

import msgspec
import pytest

from proxy import types
from proxy.errors import ErrorReason
from proxy.sample import GpuSample, HostSample
from proxy.store.rows import COLUMNS
from proxy.store.tables import api_calls, gpu_metrics, models, system_metrics
from proxy.types import BESIDE, CallRecord, ModelInfo, Operation, Plan, Target

RECORDS = [
    kind
    for kind in vars(types).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
]


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (Operation.CHAT, "/chat/completions"),
        (Operation.COMPLETION, "/completions"),
        (Operation.EMBEDDINGS, "/embeddings"),
    ],
)
def test_an_operation_has_its_path(operation: Operation, path: str) -> None:
    assert operation.path == path


def test_a_target_is_written_as_clients_write_it() -> None:
    assert str(Target("lab", "vendor/model")) == "lab/vendor/model"


def test_a_plan_is_narrowed_also_where_others_take_over() -> None:
    a, b, c = (Target(name, "m") for name in "abc")
    plan = Plan("fast", (a, b), "fast", instead={ErrorReason.CONTEXT_LENGTH: (c, b)})
    assert plan.everyone == (a, b, c)
    narrow = plan.only(lambda target: target is not b)
    assert (narrow.targets, narrow.alias) == ((a,), "fast")
    assert narrow.instead == {ErrorReason.CONTEXT_LENGTH: (c,)}
    assert plan.only(lambda _: False).targets == ()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_records_do_not_change(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen


def test_a_call_record_is_a_row_of_api_calls() -> None:
    between = [column.name for column in api_calls.columns][1:-1]
    assert list(COLUMNS) == between
    assert CallRecord.__struct_fields__[-2:] == BESIDE


@pytest.mark.parametrize(
    ("kind", "table", "of_the_table"),
    [
        (HostSample, system_metrics, {"id"}),
        (GpuSample, gpu_metrics, {"id", "sample_id", "timestamp"}),
        (ModelInfo, models, {"first_seen", "last_seen", "metadata"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_record_says_has_a_column(kind: type, table: object, of_the_table: set[str]) -> None:
    fields = set(kind.__struct_fields__) - {"gpus", "raw"}  # type: ignore[attr-defined]
    columns = {column.name for column in table.columns}  # type: ignore[attr-defined]
    assert fields == columns - of_the_table
