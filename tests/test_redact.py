from __future__ import annotations

import pytest

from proxy.redact import Redactor, shorten

PLAIN = Redactor([])


@pytest.mark.parametrize(
    "key",
    [
        "gsk_" + "a1B2" * 13,
        "AIza" + "Sy-_x" * 7,
        "AQ.Ab8RN6" + "x-_Z" * 10,
        "sk-or-v1-" + "0123456789abcdef" * 4,
        "sk-" + "Ab1" * 16,
        "sk-proj-" + "Ab1_-" * 12,
        "sk-ant-api03-" + "xyzXYZ09" * 6,
        "sk-svcacct-" + "xyzXYZ09" * 6,
        "cfut_" + "a1B2" * 12,
        "cfat_" + "a1B2" * 12,
        "cfk_" + "a1B2" * 12,
        "hf_" + "aBcD" * 8,
        "tk-" + "aB1-_" * 8 + "xyz",
        "sk-proj-abcd**********wxyz",
        "sk-12345...7890",
    ],
)
@pytest.mark.parametrize(
    "text", ["bad key {}", '{{"error":"{}"}}', "%22{}%22", "a={}&b=1", "{}", "key:{}."]
)
def test_keys_of_every_provider_disappear(key: str, text: str) -> None:
    cleaned = PLAIN(text.format(key))
    assert "[redacted]" in cleaned
    for start in range(0, len(key) - 6):
        assert key[start : start + 6] not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cret-value",
        "authorization=Basic s3cret-value",
        "Proxy-Authorization: s3cret-value",
        "{'authorization': 'Bearer s3cret-value', 'accept': '*/*'}",
        '{"cf-aig-authorization":"Bearer s3cret-value"}',
        r'"{\"x-api-key\":\"s3cret-value\"}"',
        "(b'x-api-key', b's3cret-value')",
        "api-key: s3cret-value",
        "x-goog-api-key: s3cret-value",
        "Cookie: session=s3cret-value; other=s3cret-value",
        "set-cookie: __cf_bm=s3cret-value; Path=/",
        "GET /v1beta/models?key=s3cret-value&alt=sse HTTP/1.1",
        "http://x/?a=1&api_key=s3cret-value",
        "http://x/?access_token=s3cret-value#top",
        "you sent bearer   s3cret-value",
    ],
)
def test_values_of_secret_fields_disappear(text: str) -> None:
    cleaned = PLAIN(text)
    assert "s3cret" not in cleaned
    assert "[redacted]" in cleaned


def test_field_names_and_neighbours_stay() -> None:
    assert PLAIN("GET /m?key=abc123&alt=sse done") == "GET /m?key=[redacted]&alt=sse done"
    assert PLAIN("{'authorization': 'Bearer abc', 'a': 1}") == (
        "{'authorization': 'Bearer [redacted]', 'a': 1}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit reached for model `llama-3.3-70b-versatile`: Limit 100000, Used 97050.",
        "task-oriented-dialogue-model-large-v2 and risk-assessment-model-extended are unknown",
        "user_location and user_message are no members; org_id is",
        "monkey=banana, tokens: 12, max_tokens=5",
        "AIza, gsk_ and sk- are prefixes",
    ],
)
def test_ordinary_text_is_untouched(text: str) -> None:
    assert PLAIN(text) == text


def test_identities_in_messages_of_providers_disappear() -> None:
    text = (
        "organization `org_01hx2test9` on tokens; user_2abcDEFghi3jklMNO4pqr; "
        "consumer 'projects/123456789012'; /accounts/0123456789abcdef0123456789abcdef/ai"
    )
    cleaned = PLAIN(text)
    for identity in ("01hx2test9", "2abcDEF", "123456789012", "0123456789abcdef"):
        assert identity not in cleaned
    assert cleaned.count("[redacted]") == 4


def test_configured_secrets_disappear_whatever_they_look_like() -> None:
    redact = Redactor(["correct horse battery", "p@ss/word+1", 'quo"ted\\secret', "sixsix"])
    text = (
        'a correct horse battery; p@ss/word+1; url p%40ss%2Fword%2B1; {"k":"quo\\"ted\\\\secret"};'
        'raw quo"ted\\secret; xsixsixx'
    )
    assert redact(text) == (
        'a [redacted]; [redacted]; url [redacted]; {"k":"[redacted]"};raw [redacted]; x[redacted]x'
    )


def test_what_is_learnt_disappears_with_what_was_known_before() -> None:
    redact = Redactor(["correct horse battery"])
    redact.learn(["p@ss/word+1", "sixsix"])
    redact.learn([])
    text = "correct horse battery p%40ss%2Fword%2B1 xsixsixx"
    assert redact(text) == "[redacted] [redacted] x[redacted]x"


def test_longest_secret_goes_first_so_no_tail_is_left() -> None:
    redact = Redactor(["abcdef", "abcdef-tail"])
    assert redact("abcdef-tail abcdef") == "[redacted] [redacted]"


def test_head_of_a_long_secret_is_enough() -> None:
    secret = "qwertyuiopasdfghjklzxcvb"
    redact = Redactor([secret])
    assert redact(f"key {secret[:14]} is wrong") == "key [redacted] is wrong"
    assert redact(f"key {secret[:12]}*****cvb is wrong") == "key [redacted] is wrong"
    assert redact(secret + "tail") == "[redacted]tail"


def test_short_secrets_go_only_where_they_stand_alone() -> None:
    redact = Redactor(["sk-1", "abc", ""])
    assert redact("key 'sk-1' of sk-15 task-1 abc") == "key '[redacted]' of sk-15 task-1 abc"


def test_repr_shows_no_secret() -> None:
    assert "correct" not in repr(Redactor(["correct horse battery"]))


def test_redacting_twice_changes_nothing() -> None:
    redact = Redactor(["correct horse battery"])
    once = redact("authorization: Bearer abc, cookie: a=b; correct horse battery gsk_" + "a" * 30)
    assert redact(once) == once


@pytest.mark.parametrize("shift", [0, 1, 5, 20, 39, 40, 60])
def test_cut_of_a_huge_text_leaves_no_head_of_a_secret(shift: int) -> None:
    secret = "Zx9" * 14
    text = "." * (64 * 1024 - shift) + secret + "." * 1000
    cleaned = Redactor([secret, "sixsix"])(text)
    assert "Zx9" not in cleaned
    assert len(cleaned) <= 64 * 1024


@pytest.mark.parametrize(
    "piece",
    [
        "sk-",
        "sk-a ",
        "cfk_",
        "bearer ",
        "bearer",
        " ",
        "authorization",
        "authorization: bearer ",
        "cookie:",
        "?key=",
        "a",
        "*",
        "sk-*",
        "org_",
        "user_a",
        "api-key\\",
        "authorization,",
        "AIza",
        "sk-aaaaaaaaaaaaaaaaaa.",
        "Zx9Zx9Zx9Zx9",
    ],
)
@pytest.mark.timeout(10)  # quadratic time would be minutes
def test_hostile_megabyte_ends_soon(piece: str) -> None:
    redact = Redactor(["Zx9" * 14])
    assert len(redact(piece * (1_000_000 // len(piece)))) < 700_000


def test_shorten_cuts_and_says_so() -> None:
    assert shorten("a" * 500) == "a" * 500
    assert shorten("a" * 501) == "a" * 499 + "…"
    assert shorten("abcdef", limit=3) == "ab…"


def test_a_whole_text_is_masked_however_long_and_gives_away_no_half_at_its_end() -> None:
    secret = "canary-" + "x1" * 12
    redact = Redactor([secret])
    far = "- " * 100_000 + secret + " end"
    assert redact.whole(far, len(far)) == "- " * 100_000 + "[redacted] end"
    for at in range(970, 1010):
        kept = redact.whole("-" * at + secret + "-" * 5000, 1000)
        assert len(kept) <= 1000
        assert "canary" not in kept, at


def test_a_name_that_was_let_through_is_masked_once_it_is_known_as_a_secret() -> None:
    redact = Redactor(())
    assert redact("hunter2-hunter2") == "hunter2-hunter2"
    redact.learn(["hunter2-hunter2"])
    assert redact("hunter2-hunter2") == "[redacted]"
