from __future__ import annotations

from pathlib import Path

import pytest

from proxy.document import Document, dotted, read
from proxy.errors import ConfigError


def document(tmp_path: Path, text: str, **environ: str) -> Document:
    file = tmp_path / "t.yaml"
    file.write_text(text, encoding="utf-8")
    return read(file, environ)


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        document(tmp_path, text)
    return [mistake.removeprefix(f"{tmp_path}/") for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "one"),
        ("x-${A}-${B}", "x-one-two"),
        ("${GONE:-three}", "three"),
        ("${GONE:-}", ""),
        ("${EMPTY:-three}", "three"),
        ("${A:-three}", "one"),
        ("${EMPTY}", ""),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("costs $5", "costs $5"),
        ("${GONE:-http://h:1/v1}", "http://h:1/v1"),
    ],
)
def test_variables_are_filled_in_anywhere_in_a_text(tmp_path: Path, text: str, value: str) -> None:
    found = document(tmp_path, f'a: ["{text}"]', A="one", B="two", EMPTY="")
    assert found == Document({"a": [value]}, {})


def test_a_variable_s_value_is_never_read_as_yaml_or_as_another_variable(tmp_path: Path) -> None:
    assert document(tmp_path, "a: ${A}", A="${B}: [x").data == {"a": "${B}: [x"}


def test_an_unset_variable_is_told_with_its_place(tmp_path: Path) -> None:
    found = document(tmp_path, 'a: {b: ["x${GONE}", "${ALSO}"]}')
    assert found.unset == {("a", "b", 0): "GONE", ("a", "b", 1): "ALSO"}
    assert found.data == {"a": {"b": ["", ""]}}


def test_an_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    assert document(tmp_path, "# nothing\n") == Document({}, {})


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    found = document(tmp_path, "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n")
    assert found.data["b"] == {"p": 1, "q": 3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "t.yaml: line 2, column 1: did not find expected ',' or ']'"),
        ("a: 1\nb: 2\na: 3", "t.yaml: line 3, column 1: this key stands here twice"),
        ("a: {b: {c: 1, c: 1}}", "t.yaml: line 1, column 15: this key stands here twice"),
        ("- a", "t.yaml: must be a mapping of settings"),
        ("a: {1: x}", "t.yaml: a: each name in it must be text (put it in quotes)"),
        ("a: &a [*a]", "t.yaml: is nested without end"),
        (
            "a: {b: '${1X}'}",
            "t.yaml: a.b: write ${NAME} or ${NAME:-default}, and $$ for a dollar sign",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    assert mistakes(tmp_path, text + "\n") == [told]


@pytest.mark.parametrize(
    "text", ["a: *canary", "a: !canary b", "a: {b: canary", "canary\n\tcanary"]
)
def test_a_syntax_error_quotes_nothing_from_the_file(tmp_path: Path, text: str) -> None:
    [mistake] = mistakes(tmp_path, text)
    assert "canary" not in mistake
    assert "\n" not in mistake


def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, told in {
        "gone": "no such file",
        "bytes": "is not text in UTF-8",
        ".": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(ConfigError) as caught:
            read(tmp_path / name, {})
        assert caught.value.mistakes == [f"{tmp_path / name}: {told}"]


def test_a_place_is_written_as_users_write_it() -> None:
    assert dotted(("providers", "groq", "keys", 0, "weight")) == "providers.groq.keys[0].weight"
