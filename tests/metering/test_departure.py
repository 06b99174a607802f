from __future__ import annotations

from proxy.metering.departure import Departure
from proxy.metering.tap import BodyTap, StreamTap
from tests.upstream import event, usage_event


def test_before_the_head_nothing_was_told() -> None:
    assert Departure.of(None) == Departure(None)


def test_a_stream_that_has_told_all_is_not_read_on() -> None:
    tap = StreamTap()
    tap.feed(event({"content": "a"}), 1.0)
    assert Departure.of(tap) is not None
    tap.feed(b"data: [DONE]\n\n", 2.0)
    assert Departure.of(tap) is None


def test_usage_that_comes_later_is_gained() -> None:
    tap = StreamTap()
    tap.feed(usage_event(5, 1), 1.0)
    departure = Departure.of(tap)
    assert departure is not None
    tap.feed(event({"content": "a"}), 2.0)
    assert not departure.gained(tap)
    tap.feed(usage_event(5, 9), 3.0)
    assert departure.gained(tap)


def test_a_body_is_told_at_its_end() -> None:
    tap = BodyTap()
    tap.feed(b'{"usage": {"prompt_tokens": 1}}', 1.0)
    departure = Departure.of(tap)
    assert departure is not None
    assert not departure.gained(tap)
    tap.finish()
    assert departure.gained(tap)
