"""Where every object is built and every lifetime owned.

    create_app(settings)    the ASGI app; nothing is opened before its lifespan begins

The lifespan is one stack, read downwards for opening and upwards for closing: the writer drains
into a store that is still open.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
from fastapi import FastAPI

from proxy import __version__
from proxy.api import errors as api_errors
from proxy.api.auth import Door
from proxy.api.health import health_router
from proxy.api.models import models_router
from proxy.api.openai import RELAYED, Calls
from proxy.api.stats import stats_router
from proxy.clock import monotonic, now_ms
from proxy.errors import ErrorReason
from proxy.log import RequestLog
from proxy.metering.meter import Books
from proxy.metering.pricing import Prices
from proxy.observe.host import HostSampler
from proxy.providers import DIALECTS, ollama
from proxy.providers.base import Provider
from proxy.providers.demo import DemoServer
from proxy.providers.lists import ModelLists
from proxy.providers.transport import Transport
from proxy.recording import Recording
from proxy.redact import Redactor
from proxy.relay.relay import Limits, Relay
from proxy.relay.verdict import judge
from proxy.routing.keypool import Key, KeyPool
from proxy.routing.planner import AliasRoute, Planner
from proxy.schema import ProviderSettings, Settings
from proxy.store import retention
from proxy.store.address import SchemaError, StoreError
from proxy.store.engine import Store
from proxy.types import Fault, Target

DRAIN_SECONDS = 10.0
"""How long the writer may try to write what is left when the gateway stops."""

EXAMPLE_SECONDS = 2.0
RETENTION_SECONDS = 3600.0

_NO_CHAT = re.compile("embed|whisper|tts|audio|guard|image|rerank|veo|aqa", re.IGNORECASE)
_log = logging.getLogger("tollkeeper")


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> Door:
    """The gateway as an ASGI app. ``transport`` stands in for the network in tests.

    Its ``state`` tells ``ready``, ``turned_away`` (requests without a valid key) and, once ready,
    ``providers`` (name and number of keys of each) and ``example_model`` (one that can be asked
    for, None if none is known).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await _Gateway(settings, app, calls, transport or Transport()).open(stack)
            app.state.ready = True
            yield
            app.state.ready = False

    app = FastAPI(
        title="Tollkeeper",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    api_errors.install(app)
    app.state.ready = False
    app.state.turned_away = 0

    def turned_away() -> None:
        app.state.turned_away += 1

    calls = Calls(app)
    secret = settings.auth.master_key
    return Door(
        calls,
        master_key=secret.get_secret_value() if secret is not None else None,
        named_elsewhere=RELAYED,
        turned_away=turned_away,
        state=app.state,
    )


class _Gateway:
    """The objects of one running gateway, and how they are connected."""

    def __init__(
        self,
        settings: Settings,
        app: FastAPI,
        calls: Calls,
        transport: httpx.AsyncBaseTransport,
    ) -> None:
        self._settings = settings
        self._app = app
        self._calls = calls
        self._transport = transport
        self._redact = Redactor(settings.secrets())
        self._providers: dict[str, Provider] = {}
        self._pools: dict[str, KeyPool] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        """Open everything, each in the order in which it needs the ones before."""
        settings, keeps = self._settings, self._settings.telemetry.keeps
        stack.push_async_callback(self._transport.aclose)
        await self._find_providers(stack)
        self._store = Store(
            settings.telemetry.database_url if keeps else None,
            windows={name: each.dialect.windows for name, each in self._providers.items()},
        )
        stack.push_async_callback(self._store.close)
        await self._open_store()
        self._prices = Prices(
            settings.prices,
            {name: _catalogue(each) for name, each in self._providers.items()},
            frozenset(n for n, each in self._providers.items() if each.dialect.name == "ollama"),
        )
        self._recording = Recording(
            self._prices,
            self._store.write,
            RequestLog(settings.server.log_level, settings.server.log_format),
            self._redact,
            keeps,
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.push_async_callback(self._recording.writer.drain, DRAIN_SECONDS)
        self._lists = ModelLists(
            self._providers.values(),
            self._transport,
            key=self._key_to_ask_with,
            refused=self._refused,
            updated=self._recording.keep,
        )
        self._relay = self._calls.relay = self._build_relay(tasks)
        self._start_loops(stack, tasks)
        self._add_routes()
        self._app.state.example_model = await self._example()

    async def _find_providers(self, stack: AsyncExitStack) -> None:
        """The configured providers; where there are none, an Ollama that answers, or the demo."""
        configured = dict(self._settings.providers)
        if not configured and self._settings.file is None:
            address = ollama.Ollama.base_url or ""
            if await ollama.answers(self._transport, address):
                configured["ollama"] = ProviderSettings(type="ollama", base_url=address)
        if not configured:
            configured["demo"] = ProviderSettings(type="demo")
        if any(each.type == "demo" for each in configured.values()):
            demo = DemoServer()
            stack.push_async_callback(demo.close)
            address = await demo.start()
            configured = {
                name: ProviderSettings(type="demo", base_url=address)
                if each.type == "demo"
                else each
                for name, each in configured.items()
            }
        for name, each in configured.items():
            self._providers[name] = _provider(name, each)
            self._pools[name] = KeyPool(name, _keys(each))
        self._app.state.providers = [(name, len(each.keys)) for name, each in configured.items()]

    async def _open_store(self) -> None:
        """A database that cannot be opened now is no reason not to serve; a newer one is."""
        try:
            await self._store.open()
        except SchemaError as error:
            _log.critical("%s", error)
            raise
        except StoreError as error:
            _log.error("%s; serving without it, and trying again", error)

    def _build_relay(self, tasks: asyncio.TaskGroup) -> Relay:
        settings = self._settings
        aliases = {
            name: AliasRoute(tuple(map(_target, alias.targets)), alias.rewrite_model)
            for name, alias in settings.models.items()
        }
        return Relay(
            planner=Planner(
                self._providers,
                aliases,
                self._lists.find,
                lambda: [*aliases, *self._lists.names()],
            ),
            providers=self._providers,
            pools=self._pools,
            transport=self._transport,
            books=Books(
                self._recording.call,
                self._prices.quote,
                self._redact,
                settings.telemetry.privacy_level,
            ),
            limits=Limits(
                settings.server.max_body, settings.server.body_timeout, settings.server.peek
            ),
            start=tasks.create_task,
            refresh_models=self._refresh_models,
            parked=self._recording.parked,
            broken=self._recording.broken,
        )

    def _start_loops(self, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        """What runs beside the requests. All but the writer are cancelled at the end."""
        tasks.create_task(self._guard(self._recording.writer.run))
        loops: list[Callable[[], Awaitable[None]]] = [self._refresh_models]
        if self._settings.telemetry.keeps:
            sampler = HostSampler(
                self._recording.keep,
                lambda: (self._relay.in_flight, self._recording.writer.depth),
            )
            loops += [sampler.run, self._retain]
        for loop in loops:
            stack.callback(tasks.create_task(self._guard(loop)).cancel)

    def _add_routes(self) -> None:
        app = self._app
        app.state.broken = self._recording.broken
        app.include_router(models_router(self._settings.models, self._lists.all))
        app.include_router(health_router(lambda: app.state.ready))
        app.include_router(stats_router(self._store, self._recorder, self._key_states))

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        """A fault in one of the loops is told, and ends neither the others nor the gateway."""
        try:
            await loop()
        except Exception as exc:
            self._recording.broken(exc, None, None)

    async def _retain(self) -> None:
        """Let old rows go, now and every hour; a database that cannot be written is for later."""
        while True:
            with suppress(StoreError):
                await retention.run(self._store, self._settings.telemetry.retention_days)
            await asyncio.sleep(RETENTION_SECONDS)

    async def _refresh_models(self) -> None:
        await self._lists.all()

    async def _example(self) -> str | None:
        """A model to show how to call: an alias, else the first that sounds like one to chat with.

        The providers have a moment to list theirs; one that takes longer is not waited for.
        """
        for alias in self._settings.models:
            return alias
        with suppress(TimeoutError):
            async with asyncio.timeout(EXAMPLE_SECONDS):
                for model in await self._lists.all():
                    if not _NO_CHAT.search(model.name):
                        return f"{model.provider}/{model.name}"
        return None

    # What the model lists and the statistics ask for.

    def _key_to_ask_with(self, provider: str) -> tuple[str, str] | None:
        key = self._pools[provider].healthy(monotonic())
        return (key.name, key.secret) if key is not None and key.secret is not None else None

    def _refused(self, provider: str, name: str) -> None:
        """A provider answered 401 to the key with which its list was asked for."""
        pool, reason = self._pools[provider], ErrorReason.AUTHENTICATION
        verdict = judge(Fault(reason, "the provider refused the key"))
        for key in pool.keys:
            if key.name == name:
                parked = pool.park(key, "", verdict, reason, monotonic())
                if parked is not None:
                    self._recording.parked(provider, parked, "local")

    def _recorder(self) -> dict[str, Any]:
        status = self._recording.writer.status()
        status["dropped"] += self._store.refused
        return {**status, "turned_away": self._app.state.turned_away}

    def _key_states(self) -> list[dict[str, Any]]:
        now, at = monotonic(), now_ms()
        return [state for pool in self._pools.values() for state in pool.states(now, at)]


def _provider(name: str, settings: ProviderSettings) -> Provider:
    kind = "openai" if settings.type == "demo" else settings.type
    return Provider.of(
        name,
        DIALECTS[kind],
        base_url=settings.base_url,
        account_id=settings.account_id,
        connect=settings.timeouts.connect,
        first_byte=settings.timeouts.first_byte,
        idle=settings.timeouts.idle,
        include_usage=settings.include_usage,
    )


def _keys(settings: ProviderSettings) -> list[Key]:
    """The provider's keys; one without a secret stands for a provider that needs none."""
    if not settings.keys:
        return [Key("none", None, "none")]
    return [
        Key(key.name, key.value.get_secret_value(), key.quota_group, key.weight)
        for key in settings.keys
    ]


def _catalogue(provider: Provider) -> str | None:
    """How the price catalogue knows a provider: by its id, or an address on the internet."""
    if provider.dialect.catalog is not None:
        return provider.dialect.catalog
    return provider.base_url if provider.base_url.startswith("https://") else None


def _target(name: str) -> Target:
    provider, _, model = name.partition("/")
    return Target(provider, model)
