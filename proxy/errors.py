"""What can go wrong, in one closed vocabulary that rows, stats, logs and answers share.

GatewayError        an answer of the gateway's own, in OpenAI's error envelope
ConfigError         the configuration does not hold; one line for each mistake
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ErrorReason(StrEnum):
    """Why a call did not succeed: the closed set of ``api_calls.error_reason``."""

    RATE_LIMIT = "rate_limit"  # requests or tokens a minute; the provider said "later"
    QUOTA_EXCEEDED = "quota_exceeded"  # the day's or the plan's allowance is used up
    CREDIT = "credit"  # the account has no money left
    AUTHENTICATION = "authentication"  # the provider refuses the key
    FORBIDDEN = "forbidden"  # moderation, region, licence: the client's matter
    NOT_FOUND = "not_found"  # model or route does not exist
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    TOO_LARGE = "too_large"  # the body, or one request against a per-minute limit
    SERVER_ERROR = "server_error"
    OVERLOADED = "overloaded"  # the provider has no capacity just now
    CONNECT = "connect"  # no connection, or refused; nothing was sent
    TIMEOUT = "timeout"
    STREAM_ERROR = "stream_error"  # an error event inside a stream, or a reset
    TRUNCATED = "truncated"  # a stream that ended without finish_reason and [DONE]
    EMPTY_RESPONSE = "empty_response"
    BAD_RESPONSE = "bad_response"  # not HTTP, or not what was asked for
    CLIENT_CLOSED = "client_closed"
    NO_KEYS = "no_keys"  # every key is cooling, exhausted or disabled
    INTERRUPTED = "interrupted"  # the gateway was stopped while the call ran
    INTERNAL = "internal"  # a fault of our own


class GatewayError(Exception):
    """An answer of the gateway's own: an HTTP status and OpenAI's error members.

    ``retry_after`` is whole seconds for the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: ErrorReason,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.type = type or error_type(status)
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry

    def body(self) -> bytes:
        """OpenAI's envelope as JSON."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """``retry-after``, and ``x-should-retry``, which OpenAI's clients obey."""
        fields = []
        if self.retry_after is not None:
            fields.append((b"retry-after", b"%d" % self.retry_after))
        if self.should_retry is not None:
            fields.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return fields


class ConfigError(Exception):
    """The configuration does not hold. ``mistakes`` has one line for each."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def error_type(status: int) -> str:
    """The ``type`` that OpenAI's clients expect beside an HTTP status."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "api_error"
