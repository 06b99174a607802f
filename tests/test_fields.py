from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from proxy import fields
from proxy.fields import Part, passwords, target


def checked(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)


def refused(kind: Any, value: Any) -> str:
    """The first words of the refusal."""
    with pytest.raises(ValidationError) as caught:
        checked(kind, value)
    return caught.value.errors()[0]["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("8s", 8), ("500ms", 0.5), ("1.5m", 90), ("2h", 7200), ("3", 3), (" 4 s ", 4)),
        *((4, 4), (0.25, 0.25), ("24h", 86_400)),
    ],
)
def test_durations_are_seconds(text: Any, seconds: float) -> None:
    assert checked(fields.Seconds, text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "soon", "8 days", "-1s", True, None, [], "1e3", -1, "nan", float("nan"), 90_000, "25h"],
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    refused(fields.Seconds, text)


@pytest.mark.parametrize("value", [0, -1, "0s"])
def test_where_nothing_makes_no_sense_a_duration_is_positive(value: Any) -> None:
    assert refused(fields.Positive, value) == "Input should be greater than 0"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("cancel", 0),
        ("drain", fields.LONGEST_DRAIN),
        (" Drain ", fields.LONGEST_DRAIN),
        ("drain_for 5s", 5),
        ("drain_for: 500ms", 0.5),
        ("drain_for 2", 2),
        ({"drain_for": "5s"}, 5),
        ({"drain_for": 0}, 0),
        ("drain_for 10m", 600),
    ],
)
def test_a_drain_is_how_long_an_answer_is_read_on(text: Any, seconds: float) -> None:
    assert checked(fields.Drain, text) == seconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((text, "must be cancel, drain, or drain_for and") for text in ("", "5s", 5, True, None)),
        *((text, "must be cancel, drain, or drain_for and") for text in ("drain 5s", "wait", [])),
        ("drain_for", "must be cancel, drain, or drain_for and"),
        ({"drain_for": 1, "more": 2}, "must be cancel, drain, or drain_for and"),
        ({}, "must be cancel, drain, or drain_for and"),
        ("drain_for soon", "must be a duration"),
        ({"drain_for": None}, "must be a duration"),
        ("drain_for -1s", "must be a duration"),
        ({"drain_for": -1}, "drain_for must be between 0s and 10m"),
        ("drain_for 11m", "drain_for must be between 0s and 10m"),
        ({"drain_for": float("nan")}, "drain_for must be between 0s and 10m"),
    ],
)
def test_what_is_no_drain_is_refused(text: Any, words: str) -> None:
    assert refused(fields.Drain, text).startswith(words)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20MiB", 20 * 1024**2),
        ("20 mib", 20 * 1024**2),
        ("500kB", 500_000),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("64K", 64_000),
        ("1048576", 1024**2),
        (1048576, 1024**2),
        ("10B", 10),
    ],
)
def test_sizes_are_bytes(text: Any, size: int) -> None:
    assert checked(fields.Bytes, text) == size


@pytest.mark.parametrize("text", ["", "lots", "20 MB/s", "-1", 0, True, 1.5, "1TiB"])
def test_what_is_no_size_is_refused(text: Any) -> None:
    refused(fields.Bytes, text)


@pytest.mark.parametrize("kind", [fields.Whole, fields.Weight, fields.Share, fields.Usd])
def test_true_is_no_number(kind: Any) -> None:
    assert refused(kind, True) == "must be a number"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (fields.Whole, [0, 7, "7"], [1.5, "x"]),
        (fields.Weight, [0.1, 2], [0, -1, float("inf")]),
        (fields.Share, [0, 0.2, 1], [-0.1, 1.1, float("nan")]),
        (fields.Usd, [0, "0.1", Decimal(2)], [-1, 2_000_000, float("nan")]),
    ],
)
def test_numbers_keep_within_their_limits(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert checked(kind, value) == type(checked(kind, value))(value)
    for value in bad:
        refused(kind, value)


def test_blanks_around_a_secret_are_taken_off_and_those_inside_refused() -> None:
    assert checked(fields.Secret, " sk-1\n").get_secret_value() == "sk-1"
    assert checked(fields.Secret, "  ").get_secret_value() == ""
    for text in ("two words", "smörgås", "a\nb"):
        assert refused(fields.Secret, text).startswith("holds a blank or a character")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:9000/v1/", "http://127.0.0.1:9000/v1"),
        ("https://h/a/b///", "https://h/a/b"),
        (" http://[::1]:1 ", "http://[::1]:1"),
    ],
)
def test_a_web_address_loses_the_slash_at_its_end(given: str, kept: str) -> None:
    assert checked(fields.WebAddress, given) == kept


@pytest.mark.parametrize(
    "url",
    [
        *("", "h:9000", "ftp://h", "http://", "http://h:99999", "http://h:0", "//h/v1"),
        *("http://u:p@h", "http://h/?key=x", "http://h/#x", "http://a b/", "http://[::1"),
    ],
)
def test_a_web_address_is_plain(url: str) -> None:
    assert refused(fields.WebAddress, url).startswith("must ")


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://h:1/2", "redis://:p%2Fw@[::1]:6379/0", "redis://u:p@h?db=1", ""]
)
def test_an_address_of_redis_stays_as_it_is(url: str) -> None:
    assert checked(fields.RedisAddress, url) == url


@pytest.mark.parametrize(
    "url",
    [
        *("h", "h:6379", "http://h", "unix:///run/redis", "redis://", "redis:///0"),
        *("redis://:canary@h:x", "redis://h:99999", "redis://h:0", "redis://u:can[ary@h"),
    ],
)
def test_what_is_no_address_of_redis_is_refused_and_not_quoted(url: str) -> None:
    words = refused(fields.RedisAddress, url)
    assert words == "must be an address such as redis://:PASSWORD@127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("redis://:secret@h:6379/0", ["secret"]),
        ("redis://user:secret@h", ["secret"]),
        ("redis://user:se%2Fcr%40et@h", ["se/cr@et"]),
        ("postgresql+asyncpg://u:se@cret@h/d", ["se@cret"]),
        ("postgresql+asyncpg://u:se[cret@h/d", ["se[cret"]),
        ("postgresql+asyncpg://h/d?user=u&password=secret&ssl=1", ["secret"]),
        ("redis://u:one@h?password=two", ["one", "two"]),
        ("redis://h:6379/0", []),
        ("redis://[::1]:6379/0", []),
        ("redis://user@h:6379", []),
        ("sqlite+aiosqlite:///./a:b@c.db", []),
        ("", []),
    ],
)
def test_passwords_are_found_in_addresses(address: str, found: list[str]) -> None:
    assert passwords(address) == found


@pytest.mark.parametrize("name", ["a", "k-1", "me@example.org", "A" * 64])
def test_a_name_is_short_and_without_blanks(name: str) -> None:
    assert checked(fields.Name, name) == name
    for wrong in (f"-{name}", f"{name} ", f"{name}/", "a" * 65, ""):
        refused(fields.Name, wrong)


def test_a_provider_is_named_in_small_letters_and_an_account_without_marks() -> None:
    assert checked(fields.ProviderName, "my-lab_2") == "my-lab_2"
    assert checked(fields.AccountId, "0aB-_") == "0aB-_"
    for wrong in ("Lab", "my.lab", "-lab", "a/b", ""):
        refused(fields.ProviderName, wrong)
    for wrong in ("a b", "a/b", ""):
        refused(fields.AccountId, wrong)


@pytest.mark.parametrize("name", ["lab/x", "openrouter/deepseek/r1:free", "lab/ x"])
def test_a_target_is_a_provider_and_a_model(name: str) -> None:
    assert target(name) == checked(fields.TargetName, name) == name


@pytest.mark.parametrize("name", ["", "x", "/", "lab/", "/x"])
def test_what_is_no_target_is_told_so(name: str) -> None:
    with pytest.raises(ValueError, match="must be PROVIDER/MODEL"):
        target(name)
    assert refused(fields.TargetName, name) == "must be PROVIDER/MODEL"


def test_a_part_without_content_has_its_defaults_and_knows_its_members() -> None:
    class Shed(Part):
        size: int = 3

    assert Shed.model_validate(None).size == 3
    with pytest.raises(ValidationError):
        Shed.model_validate({"sise": 4})
    with pytest.raises(ValidationError):
        Shed().size = 4  # type: ignore[misc]
