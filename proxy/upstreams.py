"""The providers that this gateway serves with: configured, found beside it, or its own demo."""

from __future__ import annotations

from contextlib import AsyncExitStack

import httpx

from proxy.errors import ConfigError
from proxy.providers import ollama
from proxy.providers.demo import DemoServer
from proxy.schema import ProviderSettings, Settings


class Upstreams:
    """Finds them at the start, and places them again when the configuration is read anew."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._demo: str | None = None
        self._found: dict[str, ProviderSettings] = {}

    async def find(self, settings: Settings, stack: AsyncExitStack) -> dict[str, ProviderSettings]:
        """The configured providers; where there are none, an Ollama that answers, or the demo."""
        if not settings.providers:
            address = ollama.Ollama.base_url or ""
            if settings.file is None and await ollama.answers(self._transport, address):
                self._found["ollama"] = ProviderSettings(type="ollama", base_url=address)
            else:
                self._found["demo"] = ProviderSettings(type="demo")
        if any(each.type == "demo" for each in self._wanted(settings).values()):
            demo = DemoServer()
            stack.push_async_callback(demo.close)
            self._demo = await demo.start()
        return self.placed(settings)

    def placed(self, settings: Settings) -> dict[str, ProviderSettings]:
        """The providers of the settings, the demo with the address at which it runs.

        ConfigError if the settings want a demo that was not started.
        """
        wanted = self._wanted(settings)
        if self._demo is None and any(each.type == "demo" for each in wanted.values()):
            raise ConfigError(["providers: the demo starts with the gateway; restart it"])
        address = {"base_url": self._demo}
        return {
            name: each.model_copy(update=address) if each.type == "demo" else each
            for name, each in wanted.items()
        }

    def _wanted(self, settings: Settings) -> dict[str, ProviderSettings]:
        return settings.providers or self._found or {"demo": ProviderSettings(type="demo")}
