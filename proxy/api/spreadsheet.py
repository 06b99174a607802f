"""Rows as CSV (RFC 4180) that a spreadsheet may open.

A ``blank`` is a row of the list without its values: it names the columns, so that they are the
same on every page and of no rows at all. An object in it is flattened with dots, a list is left
out. A value that is an object only in some rows, such as ``metadata``, is a cell of JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

Row = Mapping[str, Any]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""What a spreadsheet may take for the beginning of a formula:
https://owasp.org/www-community/attacks/CSV_Injection."""


def written(rows: Iterable[Row], blank: Row) -> str:
    """The header and the rows. Unknown is an empty cell; text is never a formula."""
    paths = list(_paths(blank))
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow([".".join(path) for path in paths])
    lines.writerows([_cell(_at(row, path)) for path in paths] for row in rows)
    return text.getvalue()


def _paths(blank: Row) -> Iterator[tuple[str, ...]]:
    for name, value in blank.items():
        if isinstance(value, Mapping):
            yield from ((name, *rest) for rest in _paths(value))
        elif not isinstance(value, list):
            yield (name,)


def _at(row: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return f"'{text}" if text.startswith(_FORMULA) else text
