"""Who a call is counted for: by its headers, by its body, and by the client's key.

What the client says is a hint, never an identity: only the tags of its key are certain, and these
come first where there are too many. A user or a tag that looks like a key is masked at once, so
that rows, limits and budgets have the same name for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain

import msgspec

from proxy.bounds import LONGEST_ID
from proxy.clients import Client
from proxy.metering.attempt import Attribution
from proxy.relay.inbound import Inbound
from proxy.tags import tags

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
        b"x-user-id",
        b"x-openwebui-user-id",
        b"x-tags",
        PRIVACY,
        MAX_COST,
    )
)
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


def attribution(
    headers: Sequence[tuple[bytes, bytes]],
    client: Client | None = None,
    redact: Callable[[str], str] = str,
) -> Attribution:
    """What the headers and the client's key tell. Overlong values are cut, unusable ones are
    None."""
    found = {name: value for name, value in headers if name in _WANTED}
    agent = found.get(b"user-agent")
    trace = found.get(b"traceparent")
    labels = _all(headers, b"x-tags")
    own = client.tags if client is not None else ()

    def said(name: bytes) -> str | None:
        value = found.get(name)
        return _masked(value.decode("utf-8", "replace"), redact) if value else None

    return Attribution(
        client_request_id=said(b"x-request-id"),
        agent_name=said(b"x-agent-name"),
        tool_name=said(b"x-tool-name") or (_tool(agent) if agent else None),
        session_id=said(b"x-session-id"),
        trace_id=_trace_id(trace) if trace else None,
        private=found.get(PRIVACY, b"full").strip().lower() != b"full",
        max_cost=_all(headers, MAX_COST) if MAX_COST in found else None,
        user_id=said(b"x-user-id" if found.get(b"x-user-id") else b"x-openwebui-user-id"),
        tags=tags((*own, redact(labels.decode("utf-8", "replace")))) if labels else tags(own),
    )


def _all(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    """A header that came several times, as one: RFC 9110, section 5.3."""
    return b",".join([value for name, value in headers if name == wanted])


def completed(
    who: Attribution, inbound: Inbound, redact: Callable[[str], str] = str
) -> Attribution:
    """With what the body tells: its tags beside the others, its user where no header names one.

    A header is set by whoever runs the program, the body by the program: as in LiteLLM, the
    header wins.
    """
    if inbound.user is not None and who.user_id is None:
        who = msgspec.structs.replace(who, user_id=_masked(inbound.user, redact))
    if inbound.tags:
        all_of_them = tags(chain(who.tags, map(redact, inbound.tags)))
        who = msgspec.structs.replace(who, tags=all_of_them)
    return who


def _masked(text: str, redact: Callable[[str], str]) -> str | None:
    """Masked first, then cut: the head of a key looks like none."""
    return _short(redact(text))


def _short(text: str) -> str | None:
    return text.strip()[:LONGEST_ID].replace("\x00", "") or None


@lru_cache(maxsize=256)
def _tool(agent: bytes) -> str | None:
    text = agent[:LONGEST_ID].decode("latin-1").lower()
    return next((tool for start, tool in TOOLS if text.startswith(start)), None)


def _trace_id(value: bytes) -> str | None:
    """The trace id of a W3C ``traceparent``; the all-zero one means none (trace context, 3.2.2)."""
    found = _TRACE.match(value.decode("latin-1"))
    if found is None or found[1] == "0" * 32:
        return None
    return found[1]
