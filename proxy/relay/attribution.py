"""Who a call is counted for, read from its headers. A hint from the client, never an identity."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from proxy.metering.attempt import Attribution

PRIVACY = b"x-tollkeeper-privacy"
"""With any value but ``full`` it lowers the level of one call to metadata; nothing raises it."""

MAX_COST = b"x-max-cost-usd"
"""The most that one call may cost by estimate; see ``proxy.relay.ceiling``."""

_WANTED = frozenset(
    (
        b"x-request-id",
        b"x-agent-name",
        b"x-tool-name",
        b"x-session-id",
        b"traceparent",
        b"user-agent",
        PRIVACY,
        MAX_COST,
    )
)
_LONGEST = 128
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

TOOLS = (
    ("claude-cli", "claude-code"),
    ("claude-code", "claude-code"),
    ("codex", "codex"),
    ("opencode", "opencode"),
    ("aider", "aider"),
    ("cline", "cline"),
    ("roo-code", "roo-code"),
    ("roocode", "roo-code"),
    ("kilo-code", "kilo-code"),
    ("cursor", "cursor"),
    ("continue", "continue"),
    ("zed", "zed"),
    ("goose", "goose"),
    ("qwencode", "qwen-code"),
    ("qwen-code", "qwen-code"),
    ("geminicli", "gemini-cli"),
    ("gemini-cli", "gemini-cli"),
    ("githubcopilot", "copilot"),
    ("openhands", "openhands"),
    ("crush", "crush"),
)
"""What the User-Agent of a coding tool begins with, and the tool's name."""


def attribution(headers: Iterable[tuple[bytes, bytes]]) -> Attribution:
    """Read the attribution headers. Overlong values are cut, unusable ones are None."""
    found = {name: value for name, value in headers if name in _WANTED}
    agent = found.get(b"user-agent")
    trace = found.get(b"traceparent")
    return Attribution(
        client_request_id=_text(found.get(b"x-request-id")),
        agent_name=_text(found.get(b"x-agent-name")),
        tool_name=_text(found.get(b"x-tool-name")) or (_tool(agent) if agent else None),
        session_id=_text(found.get(b"x-session-id")),
        trace_id=_trace_id(trace) if trace else None,
        private=found.get(PRIVACY, b"full").strip().lower() != b"full",
        max_cost=found.get(MAX_COST),
    )


def _text(value: bytes | None) -> str | None:
    if not value:
        return None
    text = value[: _LONGEST * 4].decode("utf-8", "replace").strip()[:_LONGEST]
    return text.replace("\x00", "") or None


@lru_cache(maxsize=256)
def _tool(agent: bytes) -> str | None:
    text = agent[:_LONGEST].decode("latin-1").lower()
    return next((tool for start, tool in TOOLS if text.startswith(start)), None)


def _trace_id(value: bytes) -> str | None:
    """The trace id of a W3C ``traceparent``; the all-zero one means none (trace context, 3.2.2)."""
    found = _TRACE.match(value.decode("latin-1"))
    if found is None or found[1] == "0" * 32:
        return None
    return found[1]
