"""What a validation found wrong, told to a person: one line each, and never a part of a secret."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from proxy.document import Location

_WORDS = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "decimal_type": "must be a number",
    "decimal_parsing": "must be a number",
    "decimal_max_digits": "must be a shorter number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text (put it in quotes)",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "path_type": "must be a path",
}


def tell(error: ValidationError, schema: type[BaseModel]) -> Iterable[tuple[Location, str]]:
    """Each mistake as its place and its words.

    A wrong value is shown only if it is a number that is out of range: anything else, a member's
    name aside, may be a secret that stands in the wrong line.
    """
    for entry in error.errors(include_url=False):
        at, kind = entry["loc"], entry["type"]
        if at and at[-1] == "[key]":  # pydantic's mark for the name of an entry in a mapping
            at = at[:-1]
        if kind == "extra_forbidden":
            yield at, _unknown(str(at[-1]), _members(schema, at[:-1]))
        elif kind == "missing":
            yield at, _missing(_annotation(schema, at))
        elif kind in _WORDS:
            words = _WORDS[kind].format_map(entry.get("ctx", {}))
            shown = f" (got {entry['input']})" if kind.startswith(("greater", "less")) else ""
            yield at, words + shown
        else:  # our own validators' words; pydantic's others quote nothing but their limits
            yield at, entry["msg"].removeprefix("Value error, ")


def nearest(name: str, accepted: Iterable[str]) -> str:
    """What stands closest to a mistyped name, and all that is accepted."""
    names = sorted(accepted)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}accepted: {', '.join(names)}"


def _unknown(name: str, accepted: Iterable[str]) -> str:
    return f"is not a setting; {nearest(name, accepted)}"


def _missing(annotation: Any) -> str:
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    return f"is missing; accepted: {', '.join(choices)}" if choices else "is missing"


def _members(schema: type[BaseModel], at: Location) -> list[str]:
    return list(_annotation(schema, at).model_fields)


def _annotation(schema: type[BaseModel], at: Location) -> Any:
    """What the part of ``schema`` that stands at ``at`` may hold."""
    annotation: Any = schema
    for part in at:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = _model(annotation.model_fields[str(part)].annotation)
        else:
            annotation = _model(typing.get_args(annotation)[-1])
    return annotation


def _model(annotation: Any) -> Any:
    """``X`` for ``X | None``."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(arm for arm in typing.get_args(annotation) if arm is not types.NoneType)
    return annotation
