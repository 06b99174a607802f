"""What the head of every answer tells beside the upstream's own fields."""

from __future__ import annotations

from proxy.clock import monotonic
from proxy.metering.meter import Meter
from proxy.types import Headers


def answer_headers(meter: Meter) -> Headers:
    """What every answer tells: its id, and which attempt at which target it comes from, if any."""
    headers = [(b"x-request-id", meter.request_id.encode()), *meter.told]
    attempt = meter.last
    if attempt is None:
        return headers
    upstream = ((attempt.ended or monotonic()) - attempt.sent) * 1000
    gateway = (attempt.sent - meter.admitted) * 1000
    headers += [
        (b"x-tollkeeper-provider", attempt.target.provider.encode()),
        (b"x-tollkeeper-model", _ascii(attempt.target.model)),
        (b"x-tollkeeper-attempts", b"%d" % attempt.number),
        (b"server-timing", b"gateway;dur=%.2f, upstream;dur=%.2f" % (gateway, upstream)),
    ]
    if attempt.key_id:
        headers.append((b"x-tollkeeper-key", _ascii(attempt.key_id)))
    if attempt.upstream_request_id:
        headers.append((b"x-tollkeeper-upstream-request-id", _ascii(attempt.upstream_request_id)))
    return headers


def _ascii(text: str) -> bytes:
    """Text from a client or a configuration as a header value: one line, printable."""
    return text.encode("ascii", "backslashreplace").translate(None, _CONTROL)


_CONTROL = bytes((*range(32), 127))
