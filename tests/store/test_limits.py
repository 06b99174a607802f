from __future__ import annotations

from pathlib import Path

import pytest

from proxy.store.engine import Store
from proxy.store.limits import count, instant
from tests.store.rows import call, failed, rows

AT = 1_735_732_800_000
GROQ = (
    (b"x-ratelimit-limit-requests", b"14400"),
    (b"x-ratelimit-remaining-requests", b"14370"),
    (b"x-ratelimit-reset-requests", b"2m59.56s"),
    (b"x-ratelimit-limit-tokens", b"6000"),
    (b"x-ratelimit-remaining-tokens", b"5954"),
    (b"x-ratelimit-reset-tokens", b"230ms"),
)


def told(headers: tuple[tuple[bytes, bytes], ...], **changes: object) -> object:
    return call(timestamp=AT, ttfb_ms=100.0, rate_headers=headers, **changes)


async def limits(path: Path) -> list[dict]:
    return rows(path, "SELECT * FROM rate_limits ORDER BY limit_type")


async def test_the_headers_of_an_answer_make_a_row_for_each_limit(store: Store, path: Path) -> None:
    for _ in range(5):
        await store.write([told(GROQ)])
    requests, tokens = await limits(path)
    assert requests == {
        "id": requests["id"],
        "provider": "groq",
        "model": "llama",
        "key_id": "org-a",
        "account": "",
        "limit_type": "requests",
        "current_count": 30,
        "limit_limit": 14400,
        "remaining": 14370,
        "window_seconds": 86_400,
        "reset_time": AT + 100 + 179_560,
        "cooldown_until": None,
        "cooldown_reason": None,
        "backoff_count": 0,
        "hit_count": 0,
        "last_hit_at": None,
        "source": "header",
        "last_updated": AT + 100,
        "probe_at": None,
    }
    assert (tokens["limit_type"], tokens["current_count"]) == ("tokens", 46)
    assert (tokens["window_seconds"], tokens["reset_time"]) == (60, AT + 330)


async def test_the_newest_answer_of_a_batch_counts(store: Store, path: Path) -> None:
    late = told(((b"x-ratelimit-remaining-requests", b"1"),))
    early = call(
        timestamp=AT - 5000, ttfb_ms=1.0, rate_headers=((b"x-ratelimit-remaining-requests", b"2"),)
    )
    await store.write([late, early])
    await store.write([call(timestamp=AT - 9000, ttfb_ms=1.0, rate_headers=early.rate_headers)])
    (row,) = await limits(path)
    assert row["remaining"] == 1


async def test_a_limit_that_is_not_repeated_is_remembered(store: Store, path: Path) -> None:
    await store.write([told(GROQ)])
    await store.write([told(((b"x-ratelimit-remaining-requests", b"9"),))])
    requests, _ = await limits(path)
    assert (requests["limit_limit"], requests["remaining"]) == (14400, 9)


async def test_bare_headers_count_requests_and_days_are_told_apart(
    store: Store, path: Path
) -> None:
    bare = (
        (b"x-ratelimit-limit", b"50, 50;w=60"),
        (b"x-ratelimit-remaining", b"0"),
        (b"x-ratelimit-reset", str(AT + 60_000).encode()),
        (b"x-ratelimit-limit-tokens-day", b"1000000"),
        (b"x-ratelimit-flavour", b"plum"),
    )
    refused = failed("rate_limit", timestamp=AT, provider="lab", ttfb_ms=5.0, rate_headers=bare)
    await store.write([refused])
    requests, tokens = await limits(path)
    assert (requests["limit_type"], requests["reset_time"]) == ("requests", AT + 60_000)
    assert (requests["hit_count"], requests["last_hit_at"]) == (1, AT + 5)
    assert (tokens["limit_type"], tokens["window_seconds"]) == ("tokens_day", 86_400)
    assert (tokens["current_count"], tokens["remaining"], tokens["hit_count"]) == (None, None, 0)


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        ("2m59.56s", 179_560),
        ("172.799999ms", 173),
        ("1m26.4s", 86_400),
        ("1h0m0s", 3_600_000),
        ("4ms", 4),
        ("0s", 0),
        ("60", 60_000),
        ("1.5", 1500),
        (f"{AT // 1000 + 7}", 7000),
        (f"{AT + 7000}", 7000),
        (f"{AT - 7000}", 0),
        ("soon", None),
        ("5m later", None),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("9" * 30, None),
        ("", None),
        (None, None),
    ],
)
def test_a_reset_is_read_in_every_form(value: str | None, milliseconds: int | None) -> None:
    assert instant(value, AT) == (None if milliseconds is None else AT + milliseconds)


@pytest.mark.parametrize(
    ("value", "number"),
    [("100", 100), ("100;w=60", 100), ("-1", None), ("many", None), ("9" * 25, None), (None, None)],
)
def test_a_count_is_a_whole_number_or_unknown(value: str | None, number: int | None) -> None:
    assert count(value) == number
