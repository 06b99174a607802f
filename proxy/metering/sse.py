"""Server-sent events, split without waiting and without loss.

Only as much of the format as a meter needs (HTML standard, section 9.2): event boundaries, the
``data`` of an event, comments told apart. Bytes in, the same bytes out, cut at event boundaries.
"""

from __future__ import annotations

import re

MAX_EVENT = 4 * 1024 * 1024
"""An event longer than this passes unread, in pieces."""

_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
NEXT = b"\n\ndata: "
"""Where one plain event ends and the next begins."""
_DONE = b"\n\ndata: [DONE]\n\n"
_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Cuts a stream into events, whatever the reads looked like.

    ``feed`` gives the events that are whole, each with its blank line; ``rest`` is what has not
    ended yet. Joined, they are the stream as it came. The time is linear in the bytes.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0
        self._too_long = False

    @property
    def rest(self) -> bytes:
        return bytes(self._rest)

    @property
    def between_events(self) -> bool:
        """Whether all that was fed has been handed out."""
        return not self._rest and not self._too_long

    @property
    def inside_event(self) -> bool:
        """Whether an event has begun that has not ended."""
        return self._too_long or bool(self._rest.strip())

    def feed(self, data: bytes) -> list[bytes]:
        if not self._rest and data.endswith(b"\n\n") and b"\r" not in data:
            events = data.split(b"\n\n")
            if not events.pop():  # else three line ends: the third belongs to the next event
                return [event + b"\n\n" for event in events] if len(events) > 1 else [data]
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> list[bytes]:
        rest = self._rest
        rest += data
        events = []
        start, position = 0, self._searched
        while (found := _BLANK_LINE.search(rest, position)) is not None:
            position = found.end()
            if position == len(rest) and found[0].endswith(b"\n\r"):
                break  # its line feed is still to come
            events.append(bytes(rest[start:position]))
            start = position
            self._too_long = False
        del rest[:start]
        if len(rest) > MAX_EVENT or self._too_long:
            events.append(bytes(rest[:-3]))
            del rest[:-3]
            self._too_long = True
        # A blank line may straddle two reads: look again at the last three bytes.
        self._searched = max(0, len(rest) - 3)
        return events


def plain_events(data: bytes) -> tuple[bytes, int, bool] | None:
    """Many events of one line of data each, as most servers send them, read in one step.

    Their JSON documents separated by commas, how many these are, and whether ``[DONE]`` came
    behind them; None for anything that is not as plain as that.
    """
    done = data.endswith(_DONE)
    if done:
        data = data[: -len(_DONE)] + b"\n\n"
    if not data.startswith(b"data: {") or not data.endswith(b"}\n\n") or b"\r" in data:
        return None
    count = data.count(NEXT) + 1
    if data.count(b"\n") != 2 * count:
        return None
    return data[6:-2].replace(NEXT, b","), count, done


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
