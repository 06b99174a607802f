from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from proxy.limiting import HolderLimits, Limits

_MANY: TypeAdapter[list[HolderLimits]] = TypeAdapter(Limits)


def test_a_limit_is_of_a_user_or_of_a_tag() -> None:
    asked = [{"scope": "User", "value": "ann", "rpm": 3}, {"scope": "tag", "value": "x", "tpd": 9}]
    made = _MANY.validate_python(asked)
    assert [(each.holder, each.rpm, each.tpd) for each in made] == [
        (("user", "ann"), 3, None),
        (("tag", "x"), None, 9),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scope": "client"}, "'user' or 'tag'"),
        ({"value": ""}, "at least 1"),
        ({"value": "a,b", "scope": "tag"}, "no comma"),
        ({"value": "ann "}, "no space"),
        ({"rpm": 0}, "greater than"),
        ({"rpm": None}, "no limit"),
        ({"max_body": 10}, "max_body"),
    ],
)
def test_what_is_no_limit_is_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        HolderLimits.model_validate({"scope": "user", "value": "ann", "rpm": 1, **changes})


def test_a_user_or_tag_has_one_entry() -> None:
    limit = {"scope": "tag", "value": "x", "rpm": 1}
    _MANY.validate_python([limit, {**limit, "scope": "user"}])
    with pytest.raises(ValidationError, match="twice: tag x"):
        _MANY.validate_python([limit, limit])
