"""Where every object is built and every lifetime owned.

    create_app(settings)    the ASGI app; nothing is opened before its lifespan begins

The lifespan is one stack, read downwards for opening and upwards for closing: the writer drains
into a store that is still open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI

from proxy import __version__, tariffs
from proxy import loops as beside
from proxy.api import errors as api_errors
from proxy.api.admin import admin_router
from proxy.api.auth import Door
from proxy.api.budgets import budgets_router
from proxy.api.clients import clients_router
from proxy.api.credits import credits_router
from proxy.api.estimates import estimates_router
from proxy.api.health import health_router
from proxy.api.models import models_router
from proxy.api.openai import RELAYED, Calls
from proxy.api.savings import savings_router
from proxy.api.stats import stats_router
from proxy.api.track import track_router
from proxy.banner import example
from proxy.clients import Keyring
from proxy.clock import now_ms
from proxy.company import Company
from proxy.config import served_secret
from proxy.keys import ClientKeys
from proxy.learnt import restore, restore_quotas
from proxy.log import RequestLog
from proxy.metering import tokenizer
from proxy.metering.pricing import Prices
from proxy.observe.host import HostSampler
from proxy.overview import Overview
from proxy.providers.lists import ModelLists
from proxy.providers.transport import Transport
from proxy.recording import Recording
from proxy.redact import Redactor
from proxy.relay.line import Line
from proxy.relay.relay import Limits, Relay, Routes
from proxy.routes import Builder, targets
from proxy.routing.events import Event
from proxy.routing.keypool import KeyPool
from proxy.schema import ProviderSettings, Settings
from proxy.sharing.member import Member
from proxy.spending import Spending
from proxy.steering import key_to_ask_with, refused, steer
from proxy.store.address import SchemaError, StoreError
from proxy.store.clients import ClientTable
from proxy.store.credits import Credits
from proxy.store.engine import Store
from proxy.store.recent import Recent
from proxy.upstreams import Upstreams

DRAIN_SECONDS = 10.0
"""How long the writer may try to write what is left when the gateway stops."""

CATCH_UP_SECONDS = 2.0
"""How long the start may wait for what an earlier process could not write any more."""

FIXED = ("server", "auth", "state", "telemetry")
"""The sections that are read at the start alone."""

_log = logging.getLogger("tollkeeper")


def create_app(
    settings: Settings,
    transport: httpx.AsyncBaseTransport | None = None,
    *,
    reread: Callable[[], Settings] | None = None,
    redact: Redactor | None = None,
    member: Member | None = None,
) -> Door:
    """The gateway as an ASGI app. ``transport`` stands in for the network in tests.

    ``reread`` gives the settings anew when it is told to reload; ``redact`` learns new secrets;
    ``member`` is for one of several workers. Its ``state`` tells ``ready``, ``turned_away``
    (requests without a valid key) and, once ready, ``providers`` (name and number of keys of each),
    ``example_model`` (one that can be asked for, None if none is known) and ``reload``, which
    raises ConfigError and then changes nothing.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            anew, hide = reread or (lambda: settings), redact or Redactor(settings.secrets())
            wire = transport or Transport()
            gateway = _Gateway(settings, app, calls, wire, anew, hide, keyring, member)
            await gateway.open(stack)
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
    keyring = Keyring(served_secret(settings))
    return Door(
        calls,
        master_key=secret.get_secret_value() if secret is not None else None,
        keyring=keyring,
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
        reread: Callable[[], Settings],
        redact: Redactor,
        keyring: Keyring,
        member: Member | None,
    ) -> None:
        self._settings = settings
        self._app = app
        self._calls = calls
        self._transport = transport
        self._reread = reread
        self._redact = redact
        self._keyring = keyring
        self._prices = Prices({}, {})
        self._line = Line()
        self._began = now_ms()
        self._upstreams = Upstreams(transport)
        self._company = Company(settings, member, lambda: self._relay.routes.pools)
        self._windows: dict[str, Mapping[str, int]] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        """Open everything, each in the order in which it needs the ones before."""
        settings, keeps = self._settings, self._settings.telemetry.keeps
        stack.push_async_callback(self._transport.aclose)
        configured = await self._upstreams.find(settings, stack)
        self._store = Store(
            settings.telemetry.database_url if keeps else None,
            windows=self._windows,
            tps_windows=settings.telemetry.tps_windows,
        )
        stack.push_async_callback(self._store.close)
        await self._open_store()
        self._keys = ClientKeys(ClientTable(self._store), self._keyring)
        if tokenizer.INSTALLED:
            await asyncio.to_thread(tokenizer.load)
        self._record()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        self._spending = Spending(
            self._store, self._keys, self._prices, self._recording, tasks.create_task
        )
        stack.push_async_callback(self._spending.ledger.close)
        stack.push_async_callback(self._recording.drain, DRAIN_SECONDS)

        def pools() -> Mapping[str, KeyPool]:
            return self._relay.routes.pools

        self._lists = ModelLists(
            (),
            self._transport,
            key=partial(key_to_ask_with, pools),
            refused=partial(refused, pools),
            updated=self._keep_once,
        )
        self._builder = Builder(
            listed=self._lists.find,
            names=self._lists.names,
            cost=self._prices.estimate,
            changed=self._learnt,
            released=self._line.nudge,
        )
        self._relay = self._calls.relay = self._build_relay(tasks, configured)
        self._configure(settings, self._relay.routes)
        if (writer := self._recording.writer) is not None:
            await writer.open(CATCH_UP_SECONDS)
        restored = await self._restore(self._recording.recent)
        await self._company.open(stack, self.reload, self._overview.answers)
        self._relay.claims = self._company.claims
        self._start_loops(stack, tasks, restored)
        self._add_routes()
        self._app.state.reload = self.reload
        self._app.state.example_model = await example(settings.models, self._lists.all)

    def _record(self) -> None:
        """What becomes of calls, and who shows it."""
        settings = self._settings
        self._recording = Recording(
            self._prices,
            self._store,
            RequestLog(settings.server.log_level, settings.server.log_format),
            self._redact,
            settings.telemetry,
            None if self._company.shared is None else self._company.shared.row,
        )
        writer = self._recording.writer
        self._overview = Overview(
            lambda: self._relay.routes.pools,
            self._recording.recent,
            self._recorder,
            lambda: (self._relay.in_flight, 0 if writer is None else writer.depth),
            self._company,
        )
        self._sampler = HostSampler(self._keep_once, self._overview.gauges)

    def reload(self) -> dict[str, Any]:
        """Read the configuration again and go by it from the next request on.

        It is checked first and taken whole: ConfigError leaves everything as it was. Calls under
        way go on, and what was learnt stays. The sections of ``FIXED`` need a restart.
        """
        settings = self._reread()
        kept = {name: getattr(self._settings, name) for name in FIXED}
        fixed = [name for name, value in kept.items() if getattr(settings, name) != value]
        configured = self._upstreams.placed(settings)
        self._redact.learn(settings.secrets())
        settings = settings.model_copy(update=kept)
        routes = self._builder.routes(settings, configured, self._relay.routes)
        self._settings = settings
        self._configure(settings, routes)
        _log.info("the configuration was read again")
        return {
            "reloaded": True,
            "restart_needed": fixed,
            "warnings": list(settings.warnings),
        }

    def _configure(self, settings: Settings, routes: Routes) -> None:
        """Everything that goes by the providers goes by these."""
        providers = routes.providers
        self._windows.clear()
        self._windows.update({name: each.dialect.windows for name, each in providers.items()})
        tariffs.configure(self._prices, settings, providers)
        self._spending.configure(settings)
        self._company.gate.configure(settings)
        self._lists.replace(providers.values())
        self._relay.routes = routes
        self._app.state.providers = [
            (name, sum(key.secret is not None for key in pool.keys))
            for name, pool in routes.pools.items()
        ]

    async def _open_store(self) -> None:
        """A database that cannot be opened now is no reason not to serve; a newer one is."""
        try:
            await self._store.open()
        except SchemaError as error:
            _log.critical("%s", error)
            raise
        except StoreError as error:
            _log.error("%s; serving without it, and trying again", error)

    async def _restore(self, recent: Recent | None = None) -> bool:
        """Go on with what was learnt before; False where the database cannot be read yet."""
        if self._settings.telemetry.keeps:
            try:
                await self._keys.load()
                async with self._store.reader() as connection:
                    await restore(connection, self._relay.routes.pools, self._began)
                    quotas = self._company.gate.quotas(self._keys.all())
                    await restore_quotas(connection, quotas, self._began)
                    if recent is not None:
                        await recent.load(connection)
            except StoreError:
                return False
        self._company.begin()
        return True

    def _build_relay(
        self, tasks: asyncio.TaskGroup, configured: Mapping[str, ProviderSettings]
    ) -> Relay:
        settings = self._settings
        return Relay(
            routes=self._builder.routes(settings, configured),
            line=self._line,
            gate=self._company.gate,
            transport=self._transport,
            books=self._recording.books(
                settings.telemetry.privacy_level, self._sampler.gpu_memory_used_mb
            ),
            prices=self._prices,
            limits=Limits(
                settings.server.max_body,
                settings.server.body_timeout,
                settings.server.peek,
                settings.server.on_disconnect,
            ),
            start=tasks.create_task,
            refresh_models=self._refresh_models,
            broken=self._recording.broken,
            admit=self._spending.admit if settings.telemetry.keeps else None,
        )

    def _start_loops(self, stack: AsyncExitStack, tasks: asyncio.TaskGroup, restored: bool) -> None:
        """What runs beside the requests. All but the writer are cancelled at the end."""
        settings, relay, writer = self._settings, self._relay, self._recording.writer
        loops: list[Callable[[], Awaitable[None]]] = [
            self._refresh_models,
            lambda: beside.probe(
                lambda: relay.routes.pools, self._lists, lambda: self._settings.routing.probe
            ),
        ]
        if writer is not None:
            tasks.create_task(self._guard(writer.run))
            loops += [writer.tend, self._sampler.run, self._keys.follow]
            loops += [self._spending.ledger.run, self._spending.forget]
            once: list[Callable[[], Awaitable[None]]] = [
                partial(beside.retain, self._store, settings.telemetry),
                partial(beside.publish_counts, self._overview.counted, self._recording.keep),
                *self._overview.loops,
            ]
            loops += [partial(beside.elected, self._company.leads, loop) for loop in once]
        if not restored:
            loops.append(partial(beside.until, self._restore))
        loops += self._company.loops
        for loop in loops:
            stack.callback(tasks.create_task(self._guard(loop)).cancel)

    def _add_routes(self) -> None:
        app = self._app
        app.state.broken = self._recording.broken
        app.include_router(models_router(lambda: targets(self._settings), self._lists.all))
        steering = partial(steer, lambda: self._relay.routes.pools)
        app.include_router(admin_router(steering, partial(self._company.reload, self.reload)))
        app.include_router(clients_router(self._keys, self._store))
        app.include_router(credits_router(Credits(self._store)))
        server, routes = self._settings.server, lambda: self._relay.routes
        app.include_router(estimates_router(routes, self._refresh_models, self._prices, server))
        app.include_router(health_router(lambda: app.state.ready))
        kept = self._recording
        app.include_router(
            track_router(kept.call, kept.keep, self._redact, kept.check, kept.content)
        )
        app.include_router(budgets_router(self._spending))
        app.include_router(stats_router(self._store, self._overview))
        app.include_router(
            savings_router(self._store, lambda: targets(self._settings), self._prices)
        )

    def _keep_once(self, item: object) -> None:
        """Keep what every worker knows, and one of them keeps."""
        if self._company.leads():
            self._recording.keep(item)

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        """A fault in one of the loops is told, and ends neither the others nor the gateway."""
        try:
            await loop()
        except Exception as exc:
            self._recording.broken(exc, None, None)

    async def _refresh_models(self) -> None:
        await self._lists.all()

    def _learnt(self, event: Event) -> None:
        self._recording.learnt(event)
        if self._company.claims is not None:
            self._company.claims.tell(event)
        self._line.nudge()

    def _recorder(self) -> dict[str, Any]:
        return {**self._recording.status(), "turned_away": self._app.state.turned_away}
