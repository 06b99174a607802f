from __future__ import annotations

import json

import pytest

from proxy.content import Content, pack, seal, unpack
from proxy.redact import Redactor

KEY = "sk-proj-canary-0123456789"
REDACT = Redactor([KEY])


def content(request: bytes | None, answer: bytes | None = None) -> Content:
    sizes = (None if side is None else len(side) for side in (request, answer))
    first, second = sizes
    return Content("r", 1, 7, request, first, answer, second)


def sealed(request: bytes, limit: int = 10_000) -> tuple[str, bool]:
    record = seal(content(request), REDACT.whole, limit)
    assert record.request is not None
    return unpack(record.request), record.request_cut


def test_both_sides_are_small_and_whole() -> None:
    text = "Grüße " * 500
    record = seal(content(text.encode(), b"Ho"), REDACT.whole, 10_000)
    assert (record.request_id, record.attempt, record.timestamp) == ("r", 1, 7)
    assert record.request is not None
    assert record.answer is not None
    assert (unpack(record.request), unpack(record.answer)) == (text, "Ho")
    assert (record.request_length, record.answer_length) == (len(text.encode()), 2)
    assert (record.request_cut, record.answer_cut) == (False, False)
    assert record.size == len(record.request) + len(record.answer) < 100


def test_what_did_not_come_is_unknown() -> None:
    record = seal(content(b"Hi"), REDACT.whole, 100)
    assert (record.answer, record.answer_length, record.answer_cut) == (None, None, False)


def test_a_packed_text_comes_back() -> None:
    assert unpack(pack("ä\0\U0001f600")) == "ä\0\U0001f600"


@pytest.mark.parametrize("limit", [1, 2, 999, 1000])
def test_a_long_text_is_cut_between_characters(limit: int) -> None:
    text, cut = sealed(("ä" * 501).encode(), limit)
    assert cut
    assert len(text.encode()) <= limit
    assert set(text) <= {"ä"}


def test_a_text_of_exactly_the_limit_is_whole() -> None:
    assert sealed(b"x-" * 50, 100) == ("x-" * 50, False)
    assert sealed(b"x-" * 51, 100)[1]


def test_a_text_that_is_no_utf8_is_kept_as_far_as_it_is() -> None:
    assert sealed(b"a\xffb") == ("a\ufffdb", False)


def test_keys_are_masked_wherever_they_stand_and_no_half_of_one_is_left_at_a_cut() -> None:
    assert KEY not in sealed(f"my key is {KEY}, yes".encode())[0]
    for at in range(950, 1001):
        text, _ = sealed(b"-" * at + KEY.encode() + b"-" * 3000, 1000)
        assert "sk-proj" not in text, at
    far = b"- " * 60_000 + KEY.encode()  # beyond what a log line would be looked at
    text, cut = sealed(far, 200_000)
    assert KEY not in text
    assert text.endswith("[redacted]")
    assert not cut


@pytest.mark.parametrize("slash", ["/", "\\/"])
def test_an_image_is_a_note_of_its_length(slash: str) -> None:
    image = ("iVBORw0K" + slash) * 100 + "=="
    body = {"messages": [{"content": [{"image_url": {"url": "data:image/png;base64,IMAGE"}}]}]}
    text, cut = sealed(json.dumps(body).replace("IMAGE", image).encode())
    assert not cut
    url = json.loads(text)["messages"][0]["content"][0]["image_url"]["url"]
    assert url == f"data:image/png;base64,[base64, {len(image)} characters]"


def test_long_words_of_people_stay() -> None:
    words = "Donaudampfschifffahrtsgesellschaft" * 10 + " " + "\\u4e2d\\u6587" * 200
    assert sealed(words.encode())[0] == words
