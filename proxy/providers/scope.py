"""How far a limit reaches: which models it covers, and whether it is one key's alone."""

from __future__ import annotations

import re

from proxy.errors import ErrorReason as R
from proxy.providers.faults import ErrorBody

FREE = "*:free"
"""OpenRouter's free models: one allowance for all of them, none of the others'."""

_ACCOUNT = frozenset({"3036", "4006", "insufficient_quota"})  # Cloudflare's neurons, OpenAI's money
_USAGE = re.compile(r"\busage limit\b", re.I)  # Ollama's cloud: session, hour or week
_FREE = re.compile(r"\bfree-models-per-(?:day|min)", re.I)
_KEY = re.compile(r"\bkey limit exceeded\b", re.I)


def covers(reason: R, error: ErrorBody) -> str | None:
    """The models that a limit holds for, as ``Fault.covers`` has it: what is not said is narrow."""
    if reason is R.CREDIT:
        return ""
    if reason not in (R.RATE_LIMIT, R.QUOTA_EXCEEDED):
        return None
    if not _ACCOUNT.isdisjoint(error.names) or _USAGE.search(error.message):
        return ""
    if "openrouter_free_tier_daily" in error.names or _FREE.search(error.message):
        return FREE
    quotas = [each["quotaId"] for each in error.violations if each.get("quotaId")]  # Gemini
    return "" if quotas and not any("PerModel" in str(quota) for quota in quotas) else None


def of_key(reason: R, error: ErrorBody) -> bool:
    """Whether the owner set the limit on this key: OpenRouter's, in dollars a key."""
    if reason is not R.CREDIT:
        return False
    return "openrouter_key_limit" in error.names or _KEY.search(error.message) is not None
