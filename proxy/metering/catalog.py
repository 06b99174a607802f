"""The catalogue of list prices, in a process of its own: ``python -m proxy.metering.catalog``.

One line in, a JSON list of [reference, model]; one JSON list out, the model's ``Rates`` now or
null. The reference is a provider's id in genai-prices ("groq", "google", "openrouter",
"cloudflare") or an https address to match. Nobody imports this module: genai-prices, the only
thing it is for, takes some 40 MB. The prices are those of the installed release and, as its
authors say, indicative.
"""

from __future__ import annotations

import sys
from decimal import Decimal

import genai_prices
import msgspec
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    PriceCalculation,
    StartDateConstraint,
    TieredPrices,
)

from proxy.metering.rates import Rates, Tier, nano_dollars

_VERSION = f"genai-prices {genai_prices.__version__}"
_OPENROUTER = ("openrouter", "https://openrouter.ai/")


def rates(reference: str, model: str) -> Rates | None:
    """The rates of a model today; None for a model or a provider that is not listed."""
    model = model.removeprefix("models/")
    if reference.startswith(_OPENROUTER) and model.endswith(":free"):
        # Free by OpenRouter's rule for names, listed or not: new ones come every week.
        return Rates(input=0, output=0, version=_VERSION)
    try:
        found = _find(reference, model)
    except LookupError:
        return None
    price, version = found.model_price, _version(found.model, found.model_price)
    listed = {key for key, value in vars(price).items() if value is not None}
    if not listed:
        free = Rates(input=0, output=0, version=version)
        return free if _said_to_be_free(found.model) else None
    if listed.isdisjoint(("input_mtok", "output_mtok")) or "requests_kcount" in listed:
        return None  # speech by the hour, or a fee for each request: tokens do not tell the cost
    base = msgspec.structs.asdict(_level(price, 0))
    del base["above"]
    return Rates(**base, tiers=_tiers(price), version=version)


def _find(reference: str, model: str) -> PriceCalculation:
    nothing = genai_prices.Usage()
    if reference.startswith(("https://", "http://")):
        return genai_prices.calc_price(nothing, model, provider_api_url=reference)
    return genai_prices.calc_price(nothing, model, provider_id=reference)


def _said_to_be_free(model: ModelInfo) -> bool:
    """Whether a model without any price is free: others lost their price or never had one."""
    return "free" in f"{model.name} {model.price_comments}".lower()


def _tiers(price: ModelPrice) -> tuple[Tier, ...]:
    """Each rate has tiers of its own in the catalogue; here one tier has all rates."""
    tiered = [value for value in vars(price).values() if isinstance(value, TieredPrices)]
    starts = sorted({tier.start for value in tiered for tier in value.tiers})
    return tuple(_level(price, start + 1, above=start) for start in starts)


def _level(price: ModelPrice, input_tokens: int, above: int = 0) -> Tier:
    """The rates of a call with so many input tokens."""
    return Tier(
        above=above,
        input=_rate(price.input_mtok, input_tokens),
        output=_rate(price.output_mtok, input_tokens),
        cache_read=_rate(price.cache_read_mtok, input_tokens),
        cache_write=_rate(price.cache_write_mtok, input_tokens),
        input_audio=_rate(price.input_audio_mtok, input_tokens),
        input_image=_rate(price.input_image_mtok, input_tokens),
        output_audio=_rate(price.output_audio_mtok, input_tokens),
        output_image=_rate(price.output_image_mtok, input_tokens),
        reasoning=_rate(price.output_reasoning_mtok, input_tokens),
    )


def _rate(value: Decimal | TieredPrices | None, input_tokens: int) -> int | None:
    """One rate: of its tiers the last that the input exceeds, as the catalogue itself reads it."""
    if not isinstance(value, TieredPrices):
        return nano_dollars(value)
    usd = value.base
    for tier in value.tiers:
        if input_tokens > tier.start:
            usd = tier.price
    return nano_dollars(usd)


def _version(model: ModelInfo, price: ModelPrice) -> str:
    """The release, and the day from which this price holds where the catalogue says one."""
    if isinstance(model.prices, list):
        for dated in model.prices:
            if dated.prices is price and isinstance(dated.constraint, StartDateConstraint):
                return f"{_VERSION}, {dated.constraint.start_date.isoformat()}"
    return _VERSION


def main() -> None:
    """Answer the line on standard input."""
    pairs = msgspec.json.decode(sys.stdin.buffer.readline(), type=list[tuple[str, str]])
    answers = [rates(reference, model) for reference, model in pairs]
    sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")


if __name__ == "__main__":
    main()
