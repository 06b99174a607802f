"""Performance side by side: each provider or model, and how far it is from the best of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.filters import Filters
from proxy.store.groups import somebodys
from proxy.store.metrics import NO_VALUES, Values, measure

BY: Mapping[str, Sequence[str]] = {"provider": ("provider",), "model": ("provider", "model")}
"""What is compared. A model that two providers serve is two models."""

_BEST: Mapping[str, Callable[..., Any]] = {
    "latency_ms": min,
    "ttft_ms": min,
    "tokens_per_second": max,
}
NO_RATIOS: Values = {"success_rate": None, **dict.fromkeys(_BEST, NO_VALUES)}
"""The figures that have a best, without values. Counts and sums have none: they tell how much was
asked of each."""


async def compared(connection: AsyncConnection, by: str, filters: Filters) -> list[Values]:
    """The groups of one of ``BY`` with their measures and ratios, most requests first."""
    return beside_the_best(await measure(connection, filters, BY[by], somebodys))


def beside_the_best(groups: Sequence[Values]) -> list[Values]:
    """The groups with ``ratio``: their figures divided by the best of all groups.

    The best is 1; a latency of 2 is twice the shortest, a speed of 0.5 half of the highest. None
    where a figure is unknown, or where the best is 0 and it is not.
    """
    rates = _ratios([group["success_rate"] for group in groups], max)
    spreads = {
        name: {
            share: _ratios([group[name][share] for group in groups], best) for share in NO_VALUES
        }
        for name, best in _BEST.items()
    }
    return [
        group
        | {
            "ratio": {
                "success_rate": rates[place],
                **{
                    name: {share: ratios[place] for share, ratios in spread.items()}
                    for name, spread in spreads.items()
                },
            }
        }
        for place, group in enumerate(groups)
    ]


def _ratios(
    figures: Sequence[float | None], best_of: Callable[..., float | None]
) -> list[float | None]:
    best = best_of((figure for figure in figures if figure is not None), default=None)
    return [_ratio(figure, best) for figure in figures]


def _ratio(figure: float | None, best: float | None) -> float | None:
    if figure is None or best is None:
        return None
    if figure == best:
        return 1.0
    return figure / best if best else None
