"""Server-sent events, split without waiting and without loss.

Only as much of the format as a meter needs (HTML standard, section 9.2): event boundaries, the
``data`` of an event, comments told apart. Bytes in, the same bytes out, cut at event boundaries.
"""

from __future__ import annotations

import re

MAX_EVENT = 4 * 1024 * 1024
"""An event longer than this passes unread."""

_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Cuts a stream into events, whatever the reads looked like.

    ``feed`` gives the events that are whole, each with its blank line; ``rest`` is what has not
    ended yet. Joined, they are the stream as it came.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        if not self.rest and b"\r" not in data:
            if data.endswith(b"\n\n"):
                events = data.split(b"\n\n")
                events.pop()
                return [event + b"\n\n" for event in events]
        elif len(self.rest) + len(data) > MAX_EVENT:
            events, self.rest, self._searched = [self.rest + data], b"", 0
            return events
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        text = self.rest + data
        events = []
        start = 0
        for found in _BLANK_LINE.finditer(text, self._searched):
            events.append(text[start : found.end()])
            start = found.end()
        self.rest = text[start:]
        # A blank line may straddle two reads: look again at the last three bytes.
        self._searched = max(0, len(self.rest) - 3)
        return events


def payload(event: bytes) -> bytes | None:
    """The data of one event, its lines joined with a newline; None for comments and blanks."""
    if event.startswith(b"data: {") and event.endswith(b"}\n\n") and event.count(b"\n") == 2:
        return event[6:-2]
    lines = []
    for line in _LINE_END.split(event.removeprefix(_BOM)):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None
