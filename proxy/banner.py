"""What the gateway says once it is ready: where it is, what it found, and what to try."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from proxy import __version__
from proxy.schema import Settings
from proxy.types import ModelInfo

EXAMPLE_SECONDS = 2.0
_NO_CHAT = re.compile("embed|whisper|tts|audio|guard|image|rerank|veo|aqa", re.IGNORECASE)


def banner(
    settings: Settings,
    address: str,
    providers: Sequence[tuple[str, int]],
    *,
    example: str | None = None,
    key_made: bool = False,
) -> str:
    """The text for a person who has just started the gateway at ``address``.

    ``providers`` are names with their number of keys, ``example`` a model that the command to try
    may ask for. Of secrets it shows one, once: the master key that was made just now.
    """
    key = settings.auth.master_key
    shown = "$TOLLKEEPER_MASTER_KEY" if key else "unused"
    lines = [
        f"Tollkeeper {__version__} at {address}",
        "",
        f"  export OPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={shown}",
        "",
        f"  providers   {', '.join(_provider(*entry) for entry in providers) or 'none'}",
        f"  database    {_database(settings)}",
        f"  access      {'with the master key' if key else 'open, to this machine alone'}",
    ]
    if settings.telemetry.keeps and settings.telemetry.privacy_level == "full":
        days = settings.telemetry.content_days
        lines.append(f"  PRIVACY     full: PROMPTS AND ANSWERS ARE STORED, for {days} days")
    if settings.server.workers > 1:
        lines.append(f"  workers     {settings.server.workers}")
    if key and key_made:
        lines.insert(2, f"  export TOLLKEEPER_MASTER_KEY={key.get_secret_value()}")
        lines.append(f"  master key  was made, kept in {settings.auth.master_key_file}")
        lines.append("              and is shown above, this once")
    lines += ["", "  try", f"  {_command(address, example, locked=key is not None)}", ""]
    return "\n".join(lines)


async def example(
    aliases: Iterable[str], listed: Callable[[], Awaitable[Sequence[ModelInfo]]]
) -> str | None:
    """A model to show how to call: an alias, else the first that sounds like one to chat with.

    The providers have a moment to list theirs; one that takes longer is not waited for.
    """
    for alias in aliases:
        return alias
    with suppress(TimeoutError):
        async with asyncio.timeout(EXAMPLE_SECONDS):
            for model in await listed():
                if not _NO_CHAT.search(model.name):
                    return f"{model.provider}/{model.name}"
    return None


def _provider(name: str, keys: int) -> str:
    if name == "demo":
        return "demo (simulated: its answers come from no real model)"
    return f"{name} ({keys} {'key' if keys == 1 else 'keys'})" if keys else f"{name} (no key)"


def _database(settings: Settings) -> str:
    """Where the rows go, without the user and the password."""
    if not settings.telemetry.keeps:
        return "none, nothing is kept"
    parts = urlsplit(settings.telemetry.database_url)
    if parts.scheme.startswith("sqlite"):
        return parts.path.removeprefix("/")
    return f"{parts.scheme.partition('+')[0]} at {parts.netloc.rpartition('@')[2]}{parts.path}"


def _command(address: str, example: str | None, *, locked: bool) -> str:
    guard = ' -H "Authorization: Bearer $TOLLKEEPER_MASTER_KEY"' if locked else ""
    if example is None:
        return f"curl {address}/v1/models{guard}"
    body = {"model": example, "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"curl {address}/v1/chat/completions{guard}"
        f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )
