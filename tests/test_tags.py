from __future__ import annotations

from typing import Any

import pytest

from proxy.tags import LONGEST, LOOKED, MOST, listed, tags, whole, written


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ((), ()),
        (("",), ()),
        ((" , ,",), ()),
        (("a",), ("a",)),
        (("a, b ,c",), ("a", "b", "c")),
        (("b", "a,b", "c"), ("b", "a", "c")),
        (("A", "a"), ("A", "a")),
        (("x\x00y", "\x00"), ("xy",)),
        (("t" * 500,), ("t" * LONGEST,)),
    ],
)
def test_each_tag_is_there_once_in_the_order_in_which_it_was_told(
    told: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert tags(told) == found


def test_the_first_ten_count() -> None:
    many = [str(number) for number in range(500)]
    assert tags(many) == tags([",".join(many)]) == tuple(many[:MOST])


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, ()),
        ("a,b", ("a,b",)),
        (["a", 1, None, "b", ["c"]], ("a", "b")),
        (("a",), ("a",)),
        ({"a": "b"}, ()),
        (7, ()),
        (["a"] * 5000, ("a",) * LOOKED),
    ],
)
def test_a_program_tells_a_list_or_a_text(value: Any, texts: tuple[str, ...]) -> None:
    assert listed(value) == texts


def test_a_row_keeps_a_list_or_nothing() -> None:
    assert written(("a", 'say "b"')) == '["a","say \\"b\\""]'
    assert written(()) is None


def test_tags_that_a_call_would_not_keep_are_refused() -> None:
    kept = tuple(str(n) for n in range(MOST))
    assert whole(list(kept)) == kept
    for told in ([*kept, "x"], ["a", "a"], [" a"], ["a,b"], [""], ["x" * (LONGEST + 1)]):
        with pytest.raises(ValueError, match="at most 10"):
            whole(told)
