"""Groq: https://console.groq.com/docs/openai."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from proxy.providers.base import Dialect


class Groq(Dialect):
    """Sends usage unasked; counts requests by the day and tokens by the minute."""

    name: ClassVar[str] = "groq"
    base_url: ClassVar[str | None] = "https://api.groq.com/openai/v1"
    root: ClassVar[str] = "/openai/v1"
    include_usage: ClassVar[bool] = False
    windows: ClassVar[Mapping[str, int]] = {"requests": 86_400, "tokens": 60}
    catalog: ClassVar[str | None] = "groq"
