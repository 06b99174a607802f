"""What one call can have at the most. What is beyond is no count, and would spoil every sum."""

from __future__ import annotations

MOST_TOKENS = 10**12
"""Tokens of one call, a hundred thousand times the largest context there is."""
MOST_USD = 10**6
MOST_NANO_USD = MOST_USD * 10**9
LONGEST_ID = 128
"""Characters of what a request names: a user, a session, an agent; the rest is cut off."""
MOST_SUM = 10**18
"""Where sums stop. The databases' integers end at 9.2e18, so several such can still be added."""


def saturated(total: int) -> int:
    """The sum, held to what a database can keep and add up: a full sum refuses no call."""
    return max(-MOST_SUM, min(total, MOST_SUM))
