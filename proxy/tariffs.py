"""From the settings to what calls cost: the user's prices, free tiers, names in the catalogue."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.metering.pricing import Free, Prices
from proxy.providers.base import Provider
from proxy.schema import Settings


def configure(prices: Prices, settings: Settings, providers: Mapping[str, Provider]) -> None:
    """Let the prices go by the settings; ``providers`` are those that serve."""
    prices.configure(
        settings.prices,
        {name: catalogue(each) for name, each in providers.items()},
        _free(settings, providers),
        _dearest(settings),
    )


def catalogue(provider: Provider) -> str | None:
    """How the price catalogue knows a provider: by its id, or an address on the internet."""
    if provider.dialect.catalog is not None:
        return provider.dialect.catalog
    return provider.base_url if provider.base_url.startswith("https://") else None


def _free(settings: Settings, providers: Mapping[str, Provider]) -> Free:
    free: dict[tuple[str, str | None], bool] = {
        (name, None): True for name, each in providers.items() if each.dialect.name == "ollama"
    }
    for name, each in settings.providers.items():
        if each.free_tier:
            free[name, None] = True
        for key in each.keys:
            if key.free_tier is not None:
                free[name, key.name] = key.free_tier
    return free


def _dearest(settings: Settings) -> dict[str, str]:
    """A key that is paid for, where the provider's are free otherwise; a free one where all are."""
    found = {}
    for name, each in settings.providers.items():
        free = {key.free_tier: key.name for key in each.keys}
        if False in free:
            found[name] = free[False]
        elif free and None not in free:
            found[name] = free[True]
    return found
