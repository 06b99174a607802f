from __future__ import annotations

from typing import Any

import pytest

from proxy.providers.faults import ErrorBody, read
from proxy.providers.hints import LONGEST, in_words, reset, retry_after
from tests.providers.cases import NOW

NOTHING = ErrorBody()


def hint(headers: dict[str, str] | None = None, **members: Any) -> float | None:
    fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return retry_after(fields, read({"error": members}), NOW)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 9m38.016s. Need more tokens?", 578.016),
        ("Please try again in 172.8ms.", 0.1728),
        ("Please try again in 6ms", 0.006),
        ("Please retry in 36.429760048s.", 36.429760048),
        ("at capacity. Retry after 40 seconds.", 40.0),
        ("Try again in 2 minutes", 120.0),
        ("try again in 5 hours", 18_000.0),
        ("try again in 500 milliseconds", 0.5),
        ("Please try again and back off exponentially.", None),
        ("try again in 5mins", None),
        ("try again in a while", None),
        ("", None),
    ],
)
def test_sentences_are_read(text: str, seconds: float | None) -> None:
    assert in_words(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Fri, 20 Nov 2026 16:01:30 GMT"}, 90.0),
        ({"retry-after": "Fri, 20 Nov 2026 15:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, LONGEST),
        ({"retry-after": "31536000"}, LONGEST),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"x-ratelimit-reset": str(int(NOW * 1000) + 5000)}, 5.0),
        ({"x-ratelimit-reset": str(int(NOW) + 7)}, 7.0),
        ({"x-ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "1m30s"}, 90.0),
        ({"x-ratelimit-reset": str(int(NOW) - 7)}, None),
        ({"x-ratelimit-reset-requests": "1m26.4s"}, None),
        ({}, None),
    ],
)
def test_headers_are_read(headers: dict[str, str], seconds: float | None) -> None:
    assert hint(headers) == seconds


def test_bodies_are_read() -> None:
    assert hint(availability={"retry_after": 40}) == 40.0
    assert hint(details=[{"@type": "x"}, {"retryDelay": "34.4s"}]) == 34.4
    assert hint(details=[{"retryDelay": "soon"}, {"retryDelay": "2m1.5s"}]) == 121.5
    assert hint(metadata={"headers": {"x-RateLimit-Reset": int(NOW * 1000) + 2000}}) == 2.0
    assert hint(details="x", metadata=5, availability=[]) is None


def test_the_first_form_wins() -> None:
    everything: dict[str, Any] = {
        "message": "try again in 500s",
        "availability": {"retry_after": 40},
        "details": [{"retryDelay": "34s"}],
    }
    assert hint({"retry-after-ms": "1000", "retry-after": "7"}, **everything) == 1.0
    assert hint({"retry-after": "7"}, **everything) == 7.0
    assert hint(**everything) == 40.0
    del everything["availability"]
    assert hint(**everything) == 34.0
    del everything["details"]
    assert hint({"x-ratelimit-reset": "9"}, **everything) == 500.0


def test_the_sentence_is_finer_than_the_rounded_field() -> None:
    assert hint({"retry-after": "579"}, message="try again in 9m38.016s.") == 578.016
    assert hint({"retry-after": "60"}, message="try again in 9m38.016s.") == 60.0


def test_no_hint_is_longer_than_a_day() -> None:
    assert hint(message="try again in 900h") == LONGEST
    assert hint(metadata={"headers": {"X-RateLimit-Reset": "1e17"}}) == LONGEST


def test_the_end_of_a_limit_is_read_whatever_wait_stands_beside_it() -> None:
    fields = [(b"retry-after", b"5"), (b"x-ratelimit-reset", b"90")]
    assert reset(fields, NOTHING, NOW) == 90.0
    quoted = {"metadata": {"headers": {"X-RateLimit-Reset": int(NOW * 1000) + 7000}}}
    assert reset(fields, read({"error": quoted}), NOW) == 7.0
    assert reset([], NOTHING, NOW) is None
    assert reset([(b"x-ratelimit-reset", b"1e17")], NOTHING, NOW) == LONGEST
