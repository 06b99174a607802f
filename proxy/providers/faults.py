"""What a provider says when it refuses: every body shape into one, and one table of reasons.

The body decides before the status, and its codes before its words: words only refine what a
code or the status has already narrowed down, so a 404 that speaks of a "limit" stays a 404.
Nothing here raises, whatever the bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from proxy.errors import ErrorReason as R

_MESSAGE = 4_000  # characters kept of a message
_TEXT = 500  # characters kept of a body that is no JSON
_BODY = 1 << 20  # bytes beyond which a body is not parsed: no provider explains itself at length


class ErrorBody(msgspec.Struct, frozen=True):
    """A refusal, whatever its shape was.

    ``names`` are all its machine-readable words in lower case, the most telling first.
    ``status`` is the HTTP status that the body itself names. ``members`` is the error object.
    """

    message: str = ""
    type: str | None = None
    code: str | None = None
    param: str | None = None
    status: int | None = None
    names: tuple[str, ...] = ()
    members: Mapping[str, Any] = {}

    @property
    def details(self) -> list[Mapping[str, Any]]:
        """Google's ``details``: ErrorInfo, QuotaFailure, RetryInfo and others."""
        return mappings(self.members.get("details"))

    @property
    def violations(self) -> list[Mapping[str, Any]]:
        """The limits that a Google QuotaFailure lists."""
        return [each for detail in self.details for each in mappings(detail.get("violations"))]

    def member(self, name: str) -> Mapping[str, Any]:
        """A member that is an object; empty where it is absent or something else."""
        value = self.members.get(name)
        return value if isinstance(value, Mapping) else {}


def parse(body: bytes) -> ErrorBody:
    """Reads the body of a refusal: JSON of any known shape, else text."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    if len(body) <= _BODY:
        try:
            return read(msgspec.json.decode(body))
        except (ValueError, RecursionError):
            pass
    text = clean(body[: 4 * _TEXT].decode("utf-8", "replace"))
    return ErrorBody(message=_cut(" ".join(text.split()), _TEXT))


def read(answer: Any) -> ErrorBody:
    """Reads a decoded answer, or the ``error`` member of one.

    The shapes, in order: a list around the object (Gemini), ``error`` as an object, a string
    (vLLM, Ollama's own) or a list (AI Gateway), Cloudflare's ``errors``, the flat object of old
    vLLM, FastAPI's ``detail``.
    """
    found = mappings(answer)
    if isinstance(answer, list):
        answer = found[0] if found else None
    if isinstance(answer, str):
        return ErrorBody(message=clean(answer))
    if not isinstance(answer, Mapping):
        return ErrorBody()
    inner = answer.get("error")
    if isinstance(inner, str) and inner:
        return ErrorBody(message=clean(inner), members=answer)
    listed = mappings(inner) or mappings(answer.get("errors"))
    if isinstance(inner, Mapping):
        return _from_object(inner)
    if listed:
        return _from_object(listed[0])
    if "detail" in answer and "message" not in answer:
        return ErrorBody(message=_detail(answer["detail"]))
    return _from_object(answer)


def reason_of(status: int | None, error: ErrorBody) -> R:
    """Why the call failed. ``status`` is None for an error inside an answer that began well."""
    reason = next((_REASONS[name] for name in error.names if name in _REASONS), None)
    if status == 413 and reason is R.RATE_LIMIT:
        return R.TOO_LARGE  # Groq: this one request is larger than the whole minute's allowance
    if reason is None:
        reason = _by_status(status if status is not None else error.status, error)
    if reason is R.RATE_LIMIT and _is_daily(error):
        return R.QUOTA_EXCEEDED
    for narrowed, pattern, refined in _WORDS:
        if reason in narrowed and pattern.search(error.message):
            return refined
    return reason


def has_no_allowance(error: ErrorBody) -> bool:
    """Whether Gemini's allowance is zero: the model is not in the plan, a short wait is useless."""
    return bool(error.violations) and _ZERO.search(error.message) is not None


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a JSON list; empty for anything else."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def clean(text: str) -> str:
    """Text that every log, database and answer can hold: no NUL, no lone surrogate, not endless."""
    text = text[: 2 * _MESSAGE].encode("utf-8", "replace").decode().replace("\x00", "")
    return _cut(text, _MESSAGE)


def _from_object(error: Mapping[str, Any]) -> ErrorBody:
    names = tuple(_names(error))
    message = error.get("message")
    return ErrorBody(
        message=clean(message) if isinstance(message, str) else "",
        type=_word(error.get("type")),
        code=_shown_code(error),
        param=_word(error.get("param")),
        status=_status(error),
        names=names,
        members=error,
    )


def _names(error: Mapping[str, Any]) -> Iterator[str]:
    """Every word that could name the reason: the narrow ones first, ``type`` last."""
    metadata, availability = error.get("metadata"), error.get("availability")
    candidates = [detail.get("reason") for detail in mappings(error.get("details"))]
    if isinstance(metadata, Mapping):
        candidates.append(metadata.get("limit_source"))
    if isinstance(availability, Mapping):
        candidates.append(availability.get("code"))
    candidates += [error.get("code"), error.get("error_type")]
    if isinstance(metadata, Mapping):
        candidates.append(metadata.get("error_type"))
    candidates += [error.get("status"), error.get("type")]
    for candidate in candidates:
        word = _word(candidate)
        if word is not None:
            yield word.lower()


def _shown_code(error: Mapping[str, Any]) -> str | None:
    """The code that helps a client: a name rather than a repetition of the HTTP status."""
    code = _word(error.get("code"))
    if code is not None and not (code.isdecimal() and len(code) == 3):
        return code
    metadata, availability = error.get("metadata"), error.get("availability")
    reasons = [detail.get("reason") for detail in mappings(error.get("details"))]
    others = [
        *reasons,
        availability.get("code") if isinstance(availability, Mapping) else None,
        error.get("error_type"),
        metadata.get("error_type") if isinstance(metadata, Mapping) else None,
        error.get("status"),
    ]
    return next((word for each in others if (word := _word(each)) and not word.isdecimal()), None)


def _status(error: Mapping[str, Any]) -> int | None:
    for name in ("status_code", "http_status", "code"):
        word = _word(error.get(name))
        if word is not None and len(word) == 3 and word.isdecimal() and word[0] in "45":
            return int(word)
    return None


def _word(value: Any) -> str | None:
    """A short string or a small number as text; None for anything else."""
    if isinstance(value, str) and value:
        return clean(value)[:200]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9:
        return str(value)
    return None


def _detail(detail: Any) -> str:
    if isinstance(detail, str):
        return clean(detail)
    for item in mappings(detail):
        place, what = item.get("loc"), item.get("msg")
        if isinstance(what, str):
            path = [str(part) for part in place[:8]] if isinstance(place, list) else []
            return clean(f"{'.'.join(path)}: {what}" if path else what)
    return "The provider gave no readable detail."


def _cut(text: str, limit: int) -> str:
    """Cuts between words: half a key at the end would be known to no redactor."""
    if len(text) <= limit:
        return text
    return text[:limit].rsplit(None, 1)[0] + " …"


def _is_daily(error: ErrorBody) -> bool:
    quotas = [str(violation.get("quotaId")) for violation in error.violations]
    if quotas:
        return any("PerDay" in quota for quota in quotas) or has_no_allowance(error)
    return _DAILY.search(error.message) is not None


def _by_status(status: int | None, error: ErrorBody) -> R:
    if status is None:  # an error event that names no status: its type may
        return next((_TYPES[name] for name in error.names if name in _TYPES), R.STREAM_ERROR)
    reason = _STATUSES.get(status)
    if reason is not None:
        return reason
    if 400 <= status < 500:
        return R.INVALID_REQUEST
    return R.SERVER_ERROR if 500 <= status < 600 else R.BAD_RESPONSE


_REASONS = {
    # OpenAI's codes, which Groq, vLLM and others use too
    "rate_limit_exceeded": R.RATE_LIMIT,
    "rate_limit_error": R.RATE_LIMIT,
    "insufficient_quota": R.QUOTA_EXCEEDED,
    "invalid_api_key": R.AUTHENTICATION,
    "authentication_error": R.AUTHENTICATION,
    "model_not_found": R.NOT_FOUND,
    "model_decommissioned": R.NOT_FOUND,
    "not_found_error": R.NOT_FOUND,
    "context_length_exceeded": R.CONTEXT_LENGTH,
    "content_filter": R.CONTENT_FILTER,
    "content_policy_violation": R.CONTENT_FILTER,
    # Groq
    "tool_use_failed": R.INVALID_REQUEST,
    "capacity_exceeded": R.OVERLOADED,
    # Gemini: google.rpc status words and ErrorInfo reasons
    "api_key_invalid": R.AUTHENTICATION,
    "access_token_type_unsupported": R.AUTHENTICATION,
    "unauthenticated": R.AUTHENTICATION,
    "resource_exhausted": R.RATE_LIMIT,
    "not_found": R.NOT_FOUND,
    "unavailable": R.OVERLOADED,
    "deadline_exceeded": R.TIMEOUT,
    # OpenRouter: metadata.error_type and metadata.limit_source
    "openrouter_free_tier_daily": R.QUOTA_EXCEEDED,
    "openrouter_shared_capacity": R.RATE_LIMIT,
    "upstream_provider_shared_pool": R.RATE_LIMIT,
    "openrouter_credits": R.CREDIT,
    "openrouter_key_limit": R.CREDIT,
    "payment_required": R.CREDIT,
    "authentication": R.AUTHENTICATION,
    "provider_overloaded": R.OVERLOADED,
    "token_limit_exceeded": R.CONTEXT_LENGTH,
    "timeout": R.TIMEOUT,
    # llama.cpp
    "exceed_context_size_error": R.CONTEXT_LENGTH,
    "unavailable_error": R.OVERLOADED,
    "not_supported_error": R.NOT_FOUND,
    # Cloudflare: https://developers.cloudflare.com/workers-ai/platform/errors/
    "10000": R.AUTHENTICATION,
    "7001": R.NOT_FOUND,
    "7003": R.NOT_FOUND,
    "7009": R.OVERLOADED,
    "5007": R.NOT_FOUND,
    "3042": R.NOT_FOUND,
    "3003": R.INVALID_REQUEST,
    "3039": R.INVALID_REQUEST,
    "5004": R.INVALID_REQUEST,
    "5005": R.INVALID_REQUEST,
    "5006": R.INVALID_REQUEST,
    "5019": R.INVALID_REQUEST,
    "3023": R.FORBIDDEN,
    "3041": R.FORBIDDEN,
    "5016": R.FORBIDDEN,
    "5018": R.FORBIDDEN,
    "3006": R.TOO_LARGE,
    "3007": R.TIMEOUT,
    "3008": R.TIMEOUT,
    "3036": R.QUOTA_EXCEEDED,
    "4006": R.QUOTA_EXCEEDED,
    "3040": R.OVERLOADED,
    "5021": R.CONTEXT_LENGTH,
}

_STATUSES = {
    401: R.AUTHENTICATION,
    402: R.CREDIT,
    403: R.FORBIDDEN,
    404: R.NOT_FOUND,
    405: R.NOT_FOUND,
    407: R.BAD_RESPONSE,  # a proxy on the way, not the provider
    408: R.TIMEOUT,
    410: R.NOT_FOUND,
    413: R.TOO_LARGE,
    429: R.RATE_LIMIT,
    498: R.OVERLOADED,  # Groq's flex tier is full
    499: R.STREAM_ERROR,  # "cancelled by the caller", though the caller is still here
    501: R.NOT_FOUND,
    503: R.OVERLOADED,
    504: R.TIMEOUT,
    524: R.TIMEOUT,
    529: R.OVERLOADED,
}

_TYPES = {
    "invalid_request_error": R.INVALID_REQUEST,
    "invalid_request": R.INVALID_REQUEST,
    "permission_error": R.FORBIDDEN,
    "api_error": R.SERVER_ERROR,
    "internal_server_error": R.SERVER_ERROR,
    "server_error": R.SERVER_ERROR,
    "server": R.SERVER_ERROR,
    "provider_unavailable": R.SERVER_ERROR,
}
"""What a type means where no status stands beside it; too wide to overrule one."""

_ZERO = re.compile(r"\blimit: 0\b(?!\.)")
_DAILY = re.compile(
    r"\bper[ -]day\b|\bdaily\b|\bweekly\b|\bmonthly\b|\([RT]PD\)|\blimit_rpd\b|\busage limit\b",
    re.I,
)

_CONTEXT = re.compile(
    r"maximum context length|context (?:length|window|size)|context_length"
    r"|reduce the length of the|input token count .{0,40}exceeds|token limit reached",
    re.I,
)
_KEY = re.compile(  # near the start: further on a message may quote the request
    r"\A.{0,60}?(?:"
    r"\b(?:invalid|incorrect|missing|malformed|expired|revoked|no) (?:\w+ )?"
    r"(?:api[ _-]?key|api token|access token|auth\w* (?:header|token|credentials))"
    r"|\bapi[ _-]?key (?:\w+ ){0,2}"
    r"(?:not valid|not found|invalid|expired|missing|revoked|disabled|reported|suspended|leaked)"
    r"|\bauthentication (?:error|failed)|\bunregistered callers|\binsufficient permissions)",
    re.I | re.S,
)
_MONEY = re.compile(
    r"insufficient (?:\w+ )?(?:credits?|balance|funds)|credit balance is too low"
    r"|\bkey limit exceeded",
    re.I,
)
_REGION = re.compile(r"\blocation is not supported\b", re.I)
_MODEL = re.compile(
    r"not a valid model\b|\bmodel\b.{0,200}\b(?:does not exist|not found|decommissioned)", re.I
)
_OVERSIZE = re.compile(r"^request too large\b", re.I)

_WORDS = (
    (frozenset({R.RATE_LIMIT}), _OVERSIZE, R.TOO_LARGE),
    (frozenset({R.RATE_LIMIT, R.FORBIDDEN, R.INVALID_REQUEST}), _MONEY, R.CREDIT),
    (frozenset({R.FORBIDDEN, R.INVALID_REQUEST}), _KEY, R.AUTHENTICATION),
    (frozenset({R.INVALID_REQUEST}), _REGION, R.FORBIDDEN),
    (frozenset({R.INVALID_REQUEST}), _MODEL, R.NOT_FOUND),
    (
        frozenset({R.INVALID_REQUEST, R.TOO_LARGE, R.SERVER_ERROR, R.STREAM_ERROR}),
        _CONTEXT,
        R.CONTEXT_LENGTH,
    ),
)
"""What the words of a message make of a reason that leaves room for them, in order."""
