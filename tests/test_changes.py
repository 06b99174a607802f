from __future__ import annotations

import msgspec
import pytest

from proxy import changes

RECORDS = [
    kind
    for kind in vars(changes).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_records_do_not_change(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
