from __future__ import annotations

import pytest

from proxy.when import span, when

NOW = 1_735_732_800_123  # 2025-01-01T12:00:00.123Z
HOUR = 3_600_000


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", NOW - 168 * HOUR),
        ("24h", NOW - 24 * HOUR),
        (" 1d12h ", NOW - 36 * HOUR),
        ("90m", NOW - HOUR * 3 // 2),
        ("0s", NOW),
        ("99999d", 0),
        ("2025-01-01", NOW - 12 * HOUR - 123),
        ("2025-01-01T12:00:00.123Z", NOW),
        ("2025-01-01T13:00:00.123+01:00", NOW),
        ("2025-01-01T12:00:00", NOW - 123),
    ],
)
def test_a_moment_is_a_time_ago_a_date_or_rfc_3339(text: str, moment: int) -> None:
    assert when(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "7", "soon", "-1d", "2025-13-01", "7 days", "1e3", "d"])
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="must be RFC 3339, a date, or a time ago"):
        when(text, NOW)


def test_a_span_needs_its_unit() -> None:
    assert span("30d") == 720 * HOUR
    for text in ("30", "", "2025-01-01", "30 d", "1000001d", "999999999999d"):
        with pytest.raises(ValueError, match="must be a time such as 30d"):
            span(text)
