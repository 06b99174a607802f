"""Google Gemini by its OpenAI endpoint: https://ai.google.dev/gemini-api/docs/openai."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import msgspec

from proxy.providers.base import Dialect, listed
from proxy.providers.members import tokens
from proxy.providers.usage import count
from proxy.types import ModelInfo, Usage


class Gemini(Dialect):
    """Bills thoughts that it does not send, and puts ``models/`` before its listed names."""

    name: ClassVar[str] = "gemini"
    base_url: ClassVar[str | None] = "https://generativelanguage.googleapis.com/v1beta/openai"
    root: ClassVar[str] = "/v1beta/openai"
    include_usage: ClassVar[bool] = False
    catalog: ClassVar[str | None] = "google"
    day: ClassVar[tzinfo | None] = ZoneInfo("America/Los_Angeles")

    def usage(self, raw: Mapping[str, Any]) -> Usage:
        """``completion_tokens`` leaves the thoughts out; only the total has them."""
        total = tokens(raw.get("total_tokens"))
        usage = count({**raw, "total_tokens": None})  # what is beyond its parts is no cached input
        if total is None or usage.input_tokens is None:
            return usage if total is None else msgspec.structs.replace(usage, total_tokens=total)
        sent = tokens(raw.get("completion_tokens")) or 0
        output = max(sent, total - usage.input_tokens)
        return msgspec.structs.replace(
            usage,
            output_tokens=output,
            total_tokens=total,
            hidden_tokens=output - sent,
            reasoning_tokens=min(output, max(usage.reasoning_tokens or 0, output - sent)),
        )

    def models(self, provider: str, body: bytes) -> list[ModelInfo]:
        """The list under the names that answers use."""
        return [
            msgspec.structs.replace(model, name=model.name.removeprefix("models/"))
            for model in listed(provider, msgspec.json.decode(body))
        ]
