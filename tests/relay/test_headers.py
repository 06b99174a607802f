from __future__ import annotations

from proxy.metering.attempt import Attribution
from proxy.metering.meter import Books, Meter
from proxy.relay.headers import answer_headers
from proxy.types import Target


def meter() -> Meter:
    books = Books(lambda record: None, lambda *_: None, str, "metadata")
    return Meter(books, "ID", "/v1/chat/completions", None, Attribution(), 1.0)


def test_an_answer_of_our_own_tells_its_id_alone() -> None:
    assert answer_headers(meter()) == [(b"x-request-id", b"ID")]


def test_an_upstreams_answer_tells_where_it_comes_from_in_one_line_each() -> None:
    made = meter()
    attempt = made.attempt(Target("lab", "m\r\nx-evil: 1 \N{SNOWMAN}"), 1.0)
    attempt.key_id, attempt.upstream_request_id = "k1", "up-1"
    attempt.sent, attempt.ended = made.admitted + 0.001, made.admitted + 0.003
    made.admit(attempt)
    told = dict(answer_headers(made))
    assert told[b"x-tollkeeper-model"] == b"mx-evil: 1 \\u2603"
    assert told[b"x-tollkeeper-key"] == b"k1"
    assert told[b"x-tollkeeper-upstream-request-id"] == b"up-1"
    assert told[b"x-tollkeeper-attempts"] == b"1"
    assert told[b"server-timing"] == b"gateway;dur=1.00, upstream;dur=2.00"
