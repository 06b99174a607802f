from __future__ import annotations

from sqlalchemy import create_engine, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from proxy.store.columns import FLOAT, Instant, Packed, nano_usd


def test_an_instant_is_milliseconds_on_both_sides() -> None:
    ms = 1_795_219_200_123
    kept = Instant().process_bind_param(ms, postgresql.dialect())
    assert kept.isoformat() == "2026-11-21T00:00:00.123000+00:00"
    assert Instant().process_result_value(kept, postgresql.dialect()) == ms
    assert Instant().process_bind_param(ms, sqlite.dialect()) == ms
    assert Instant().process_bind_param(None, postgresql.dialect()) is None


def test_a_packed_text_is_a_text_again() -> None:
    kept = Packed().process_bind_param("hm", sqlite.dialect())
    assert isinstance(kept, bytes)
    assert Packed().process_result_value(kept, sqlite.dialect()) == "hm"
    assert Packed().process_bind_param(kept, sqlite.dialect()) == kept


def test_dollars_are_whole_nano_dollars_before_they_are_added_up() -> None:
    with create_engine("sqlite://").connect() as connection:
        assert connection.scalar(select(nano_usd(literal(0.1 + 0.2, FLOAT)))) == 3 * 10**8
