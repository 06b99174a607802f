"""The moment at which a client leaves an answer that is read on without it."""

from __future__ import annotations

import msgspec

from proxy.metering.tap import StreamTap, Tap
from proxy.metering.usage import RawUsage


class Departure(msgspec.Struct, frozen=True):
    """``told`` is the usage that the provider had given by then."""

    told: RawUsage | None

    @classmethod
    def of(cls, tap: Tap | None) -> Departure | None:
        """The client leaves now; None if a stream has told all, or told of an error: then nothing
        is left to read."""
        if isinstance(tap, StreamTap) and (tap.done or tap.error is not None):
            return None
        return cls(tap.usage if tap is not None else None)

    def gained(self, tap: Tap) -> bool:
        """Whether the provider has told the usage since."""
        return tap.usage is not self.told
