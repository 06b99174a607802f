"""From the settings to who may serve: providers, key pools, aliases. Also what a reload swaps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

from proxy.clock import now_ms
from proxy.providers import DIALECTS, OLLAMA_NATIVE
from proxy.providers.base import Provider
from proxy.relay.relay import Routes
from proxy.routing.alias import Alias, Candidate, Cost
from proxy.routing.breaker import BreakerRules
from proxy.routing.counters import Allowance, Allowances, Counters
from proxy.routing.events import Event
from proxy.routing.key import Key
from proxy.routing.keypool import KeyPool
from proxy.routing.limits import DAY, MINUTE, Limit
from proxy.routing.planner import Planner
from proxy.routing.retries import RetryBudget
from proxy.schema import Alias as AliasSettings
from proxy.schema import (
    BreakerSettings,
    LimitSettings,
    ProviderSettings,
    Settings,
)
from proxy.types import Target


class Builder:
    """Makes routes of settings, and keeps what was learnt from one time to the next.

    ``listed`` and ``names`` are the model lists', ``cost`` the prices'; ``changed`` hears what the
    pools learn, and ``released`` of every lease that has ended.
    """

    def __init__(
        self,
        *,
        listed: Callable[[str], str | None],
        names: Callable[[], Iterable[str]],
        cost: Cost,
        changed: Callable[[Event], None],
        released: Callable[[], None],
    ) -> None:
        self._listed = listed
        self._names = names
        self._cost = cost
        self._changed = changed
        self._released = released

    def routes(
        self,
        settings: Settings,
        configured: Mapping[str, ProviderSettings],
        before: Routes | None = None,
    ) -> Routes:
        """The routes of the settings; ``configured`` are the providers, with their addresses.

        The pools of ``before`` go on where the provider is still the same.
        """
        providers = {name: provider(name, each) for name, each in configured.items()}
        pools = {}
        for name, each in configured.items():
            pools[name] = self._pool(providers[name], each, settings, before)
        aliases = {
            name: self._alias(alias, pools, before.planner.alias(name) if before else None)
            for name, alias in settings.models.items()
        }
        retries = before.retries if before else RetryBudget()
        budget = settings.routing.retry_budget
        retries.configure(budget.ratio, budget.minimum)
        return Routes(
            planner=Planner(providers, aliases, self._listed, lambda: [*aliases, *self._names()]),
            providers=providers,
            pools=pools,
            retries=retries,
            max_wait=settings.routing.max_wait,
        )

    def _pool(
        self,
        provider: Provider,
        provided: ProviderSettings,
        settings: Settings,
        before: Routes | None,
    ) -> KeyPool:
        routing = settings.routing
        known = before.providers.get(provider.name) if before else None
        if before and known and _is_same(known, provider):
            pool = before.pools[provider.name]
        else:
            pool = KeyPool(
                provider.name,
                (),
                Counters(provider.dialect.day, lambda: now_ms() / 1000),
                chance=random.random,
                changed=self._changed,
                released=self._released,
            )
        pool.configure(
            _keys(provided), provided.strategy, _rules(routing.breaker), routing.max_cooldown
        )
        pool.counters.configure(_allowances(provided, settings.server.workers))
        return pool

    def _alias(
        self, settings: AliasSettings, pools: Mapping[str, KeyPool], before: Alias | None
    ) -> Alias:
        alias = Alias(
            [Candidate(_target(t.target), t.tier, t.weight) for t in settings.targets],
            settings.strategy,
            rewrite_model=settings.rewrite_model,
            context_window=tuple(map(_target, settings.context_window_fallbacks)),
            content_filter=tuple(map(_target, settings.content_filter_fallbacks)),
            pools=pools,
            cost=self._cost,
            chance=random.random,
        )
        if before is not None:
            alias.sessions = before.sessions
        return alias


def _is_same(one: Provider, other: Provider) -> bool:
    """Whether what was learnt of one holds for the other."""
    return (one.base_url, one.dialect) == (other.base_url, other.dialect)


def provider(name: str, settings: ProviderSettings) -> Provider:
    """One provider as it is configured."""
    kind = "openai" if settings.type == "demo" else settings.type
    return Provider.of(
        name,
        OLLAMA_NATIVE if settings.api == "native" else DIALECTS[kind],
        base_url=settings.base_url,
        account_id=settings.account_id,
        connect=settings.timeouts.connect,
        first_byte=settings.timeouts.first_byte,
        idle=settings.timeouts.idle,
        include_usage=settings.include_usage,
    )


def targets(settings: Settings) -> dict[str, list[Target]]:
    """What each alias stands for."""
    return {
        name: [_target(each.target) for each in alias.targets]
        for name, alias in settings.models.items()
    }


def _keys(settings: ProviderSettings) -> list[Key]:
    """The provider's keys; one without a secret stands for a provider that needs none."""
    if not settings.keys:
        return [Key("none", None, "none")]
    return [
        Key(key.name, key.value.get_secret_value(), key.quota_group, key.weight)
        for key in settings.keys
    ]


def _rules(settings: BreakerSettings) -> BreakerRules:
    return BreakerRules(
        failures=settings.failures,
        rate=settings.rate,
        minimum=settings.minimum,
        window=settings.window,
        open_for=settings.open_for,
        longest=settings.longest,
    )


def _allowances(settings: ProviderSettings, workers: int) -> Allowances:
    def each(limits: Mapping[str, LimitSettings]) -> dict[str, Allowance]:
        return {name: _allowance(limit, workers) for name, limit in limits.items()}

    return Allowances(
        keys=each({key.name: key.limits for key in settings.keys}),
        groups=each(settings.limits.groups),
        models=each(settings.limits.models),
    )


def _allowance(settings: LimitSettings, workers: int) -> Allowance:
    """Workers count together what goes by time; of calls at a time each has its part."""
    amounts = [
        (Limit("requests", settings.rpm, MINUTE) if settings.rpm else None),
        (Limit("requests", settings.rpd, DAY) if settings.rpd else None),
        (Limit("tokens", settings.tpm, MINUTE) if settings.tpm else None),
        (Limit("tokens", settings.tpd, DAY) if settings.tpd else None),
    ]
    slots = settings.concurrency and max(1, settings.concurrency // workers)
    return Allowance(tuple(each for each in amounts if each is not None), slots)


def _target(name: str) -> Target:
    provider, _, model = name.partition("/")
    return Target(provider, model)
