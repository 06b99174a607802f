from __future__ import annotations

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from proxy.store.tables import api_calls
from proxy.store.upsert import insert_into


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])
def test_a_conflict_is_spelled_for_the_database(dialect: object) -> None:
    statement = insert_into(api_calls, dialect.name).on_conflict_do_nothing()
    assert "ON CONFLICT DO NOTHING" in str(statement.compile(dialect=dialect))
