"""A list as an answer: JSON, or CSV for those who ask for that with ``Accept: text/csv``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.api.spreadsheet import Row, written

CSV = "text/csv; charset=utf-8; header=present"


class Listing(Response):
    """``{"data", "next_cursor"}``, with ``more`` before them.

    In CSV there are the rows alone, under the columns of ``blank`` (see ``spreadsheet``), and the
    next page is told by headers: ``link`` with ``rel="next"``, and ``x-next-cursor``. A row may be
    ``msgspec.Raw``, JSON already.
    """

    def __init__(
        self, rows: Sequence[Row | msgspec.Raw], cursor: str | None, blank: Row, **more: Any
    ) -> None:
        super().__init__()
        self._rows = rows
        self._cursor = cursor
        self._blank = blank
        self._more = more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accept = b",".join(v for name, v in scope["headers"] if name == b"accept").decode("latin-1")
        form = self._csv if wants_csv(accept) else self._json
        await form(scope)(scope, receive, send)

    def _json(self, _: Scope) -> Response:
        content = {**self._more, "data": self._rows, "next_cursor": self._cursor}
        body = msgspec.json.encode(content)
        return Response(body, headers={"vary": "accept"}, media_type="application/json")

    def _csv(self, scope: Scope) -> Response:
        rows = (msgspec.json.decode(r) if isinstance(r, msgspec.Raw) else r for r in self._rows)
        headers = {"vary": "accept"}
        if self._cursor is not None:
            headers["link"] = f'<{_next(scope, self._cursor)}>; rel="next"'
            headers["x-next-cursor"] = self._cursor
        body = written(rows, self._blank).encode(errors="replace")
        return Response(body, headers=headers, media_type=CSV)


def wants_csv(accept: str) -> bool:
    """Whether an ``Accept`` header prefers CSV to JSON (RFC 9110, 12.5.1); JSON if it is the same
    to it."""
    return _quality(accept, "text/csv") > _quality(accept, "application/json")


def _quality(accept: str, wanted: str) -> float:
    """What the most specific range that covers a media type says of it; 0 if none does."""
    ranges = (wanted, wanted.partition("/")[0] + "/*", "*/*")
    said: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        said[name] = _weight(parameters)
    return next((said[each] for each in ranges if each in said), 0.0)


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _next(scope: Scope, cursor: str) -> str:
    """The next page, relative to this one."""
    asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    kept = [(name, value) for name, value in asked if name != "cursor"]
    return "?" + urlencode([*kept, ("cursor", cursor)])
