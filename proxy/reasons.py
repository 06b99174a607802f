"""What every error reason means: one closed table for the relay, the key pool and the statistics.

What a single refusal adds to its reason stands in ``relay/verdict.py``: how long, for which models,
and the two exceptions (a request too large for a minute's tokens, a limit set on one key).
"""

from __future__ import annotations

import msgspec

from proxy.errors import ErrorReason as R
from proxy.types import Action, Rests

KEY, TARGET, STOP = Action.NEXT_KEY, Action.NEXT_TARGET, Action.STOP


class Meaning(msgspec.Struct, frozen=True):
    """What follows from a reason, as long as the client has not got a byte.

    ``action`` is what is tried next. ``rests`` is what is left alone for a while: the key's quota
    group, the key, or the target, and that only if the provider said for how long.
    ``failure`` counts against the provider: in its health, and in the breaker of the target.
    ``status`` and ``code`` are HTTP's and OpenAI's with which the client hears of it when nothing
    is left. ``own`` is the client's own matter: it hears the provider's words, and the provider's
    status and code where they fit.
    """

    action: Action
    rests: Rests
    failure: bool
    own: bool
    status: int
    code: str | None


# fmt: off
MEANINGS: dict[R, Meaning] = {
    #                          action  rests     failure own    status code
    R.RATE_LIMIT:      Meaning(KEY,    "group",  False,  False, 429,   "rate_limit_exceeded"),
    R.QUOTA_EXCEEDED:  Meaning(KEY,    "group",  False,  False, 429,   "quota_exceeded"),
    R.CREDIT:          Meaning(KEY,    "group",  False,  False, 502,   "upstream_credit"),
    R.AUTHENTICATION:  Meaning(KEY,    "key",    False,  False, 502,   "upstream_authentication"),
    R.FORBIDDEN:       Meaning(STOP,   "none",   False,  True,  403,   None),
    R.NOT_FOUND:       Meaning(TARGET, "none",   False,  True,  404,   "model_not_found"),
    R.INVALID_REQUEST: Meaning(STOP,   "none",   False,  True,  400,   None),
    R.CONTEXT_LENGTH:  Meaning(STOP,   "none",   False,  True,  400,   "context_length_exceeded"),
    R.CONTENT_FILTER:  Meaning(STOP,   "none",   False,  True,  400,   "content_filter"),
    R.TOO_LARGE:       Meaning(STOP,   "none",   False,  True,  413,   None),
    R.SERVER_ERROR:    Meaning(KEY,    "none",   True,   False, 502,   "upstream_server_error"),
    R.OVERLOADED:      Meaning(KEY,    "target", True,   False, 503,   "upstream_overloaded"),
    # Another key leads to the same host, and may pay a second time for work already done.
    R.CONNECT:         Meaning(TARGET, "none",   True,   False, 502,   "upstream_connect"),
    R.TIMEOUT:         Meaning(TARGET, "none",   True,   False, 504,   "upstream_timeout"),
    R.STREAM_ERROR:    Meaning(TARGET, "none",   True,   False, 502,   "upstream_stream_error"),
    R.TRUNCATED:       Meaning(TARGET, "none",   True,   False, 502,   "upstream_truncated"),
    R.EMPTY_RESPONSE:  Meaning(TARGET, "none",   True,   False, 502,   "upstream_empty_response"),
    R.BAD_RESPONSE:    Meaning(TARGET, "none",   True,   False, 502,   "upstream_bad_response"),
    # Of the gateway itself: no upstream said so.
    R.CLIENT_CLOSED:   Meaning(STOP,   "none",   False,  False, 499,   "client_closed"),
    R.NO_KEYS:         Meaning(TARGET, "none",   False,  False, 429,   "no_keys"),
    R.INTERRUPTED:     Meaning(STOP,   "none",   False,  False, 503,   "interrupted"),
    R.INTERNAL:        Meaning(STOP,   "none",   False,  False, 500,   "internal_error"),
}
# fmt: on

FAILURES = frozenset(reason for reason, meaning in MEANINGS.items() if meaning.failure)
"""What a provider answers for. A client's mistake, a limit and a bad key are not among it."""
