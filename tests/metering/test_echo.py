from __future__ import annotations

import json

import pytest

from proxy.metering.echo import MAX_TEXT, UNTOLD, without_echo

SECRET = "canary-7f3a9b2c4d"
"""17 characters."""


def request(*texts: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": "llama-3.3-70b-versatile", "messages": messages, **more}).encode()


@pytest.mark.parametrize(
    "body",
    [
        request(SECRET),
        request("before " + SECRET + " after"),
        request("x" * 100_000 + SECRET),
        *[request("y" * shift + SECRET + "z") for shift in range(9)],
        request("a", tools=[{"function": {"name": SECRET}}]),
        request("a", metadata={"deep": [{"er": [SECRET]}]}),
        json.dumps({"input": [SECRET]}).encode(),
        b'{"broken": "' + SECRET.encode(),
    ],
)
def test_what_stands_in_the_request_goes_wherever_it_stands(body: bytes) -> None:
    for told in (SECRET, f"Invalid: {SECRET}!", f"{SECRET} and {SECRET}"):
        kept = without_echo(told, body)
        assert SECRET not in kept
        assert "[…]" in kept
    assert without_echo(f"Invalid: {SECRET}!", body) in ("Invalid: […]!", "Invalid:[…]!")


def test_quotations_may_have_other_spaces_and_escapes() -> None:
    prompt = "Der Käufer\nheißt  Müller und wohnt in Köln"
    body = request(prompt)
    assert json.dumps(prompt).count("\\u") == 4
    for told in (json.dumps(prompt), " ".join(prompt.split()), repr(prompt), prompt):
        kept = without_echo(f"cannot read {told}", body)
        assert not [piece for piece in ("ufer", "Köln", "K\\u", "wohnt") if piece in kept], told


def test_scripts_with_few_letters_a_word_are_measured_in_bytes() -> None:
    assert "机密文件" not in without_echo("无法处理: 这是机密文件", request("请看这是机密文件吧"))


def test_capital_letters_are_the_same_letters() -> None:
    body = request("Die Straße nach Überlingen")
    assert "LINGEN" not in without_echo("refused: NACH ÜBERLINGEN", body)
    assert without_echo("refused: NACH İSTANBUL", body) == UNTOLD  # small, it has another length


@pytest.mark.parametrize("told", ["where%20is+the%20gold", "where&nbsp;is the&#32;gold"])
def test_a_message_that_quotes_in_the_code_of_an_address_or_a_page_is_not_kept(told: str) -> None:
    assert without_echo(f"Invalid: {told}", request("where is the gold")) == UNTOLD


def test_the_rest_of_a_message_stays_to_the_letter() -> None:
    body = request("Translate the following sentence.")
    for told in (
        "Rate limit reached:  Limit 6000, Used 5999",
        "'messages' must not be empty, 50% of 100+1 &c",
        "Unsupported parameter: max_completion_tokens",
        "the fol",
        "",
    ):
        assert without_echo(told, body) == told


def test_seven_bytes_may_stay_and_eight_may_not() -> None:
    body = request("0123456789abcdefghij")
    assert without_echo("about 0123456", body) == "about 0123456"
    assert without_echo("about 01234567", body) == "about […]"


def test_beside_words_too_long_to_compare_no_message_is_kept() -> None:
    for size in (MAX_TEXT + 1, 3 * MAX_TEXT):
        assert without_echo(f"Invalid: {SECRET}", request("z" * size)) == UNTOLD


def test_a_hostile_pair_takes_no_time_worth_telling() -> None:
    told = "abcd!" * 400
    assert without_echo(told, request("abcd?" * 20_000))[:9] == "abcd!abcd"
