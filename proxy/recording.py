"""From what happened to what is kept: the log line, a price that came late, the row."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from proxy.clock import now_ms
from proxy.learnt import records, told
from proxy.metering.pricing import Prices
from proxy.metering.writer import BatchWriter
from proxy.redact import shorten
from proxy.routing.events import Event
from proxy.store.recent import Recent
from proxy.types import CallRecord, FaultRecord, ModelInfo, Usage

_log = logging.getLogger("tollkeeper")


class Recording:
    """Takes what the parts report. ``keeps`` False: it is logged, and nothing is queued.

    ``write`` is the store's; ``prices`` may not know a model when its first call ends, so every
    batch is settled before it is written.
    """

    def __init__(
        self,
        prices: Prices,
        write: Callable[[Sequence[object]], Awaitable[None]],
        log_request: Callable[[CallRecord], None],
        redact: Callable[[str], str],
        keeps: bool,
    ) -> None:
        self.writer = BatchWriter(self._flush)
        self.recent = Recent()
        self._prices = prices
        self._write = write
        self._log_request = log_request
        self._redact = redact
        self._keeps = keeps

    def keep(self, item: object) -> None:
        """Queue a row, unless nothing is to be kept."""
        if self._keeps:
            self.writer.put(item)

    def call(self, record: CallRecord) -> None:
        """An attempt has ended."""
        self._log_request(record)
        if self._keeps:
            self.recent.add(record)
        self.keep(record)

    def learnt(self, event: Event) -> None:
        """A key pool has changed what it does."""
        _log.warning("%s", told(event))
        for record in records(event):
            self.keep(record)

    def broken(self, exc: BaseException, request_id: str | None, endpoint: str | None) -> None:
        """A fault of our own: told in the log, and kept with its stack."""
        more = {"request_id": request_id}
        _log.error("%s: %s", type(exc).__name__, exc, exc_info=exc, extra=more)
        self.keep(
            FaultRecord(
                timestamp=now_ms(),
                error_type=type(exc).__name__,
                error_message=shorten(self._redact(str(exc))),
                stack_trace=self._redact("".join(traceback.format_exception(exc))),
                request_id=request_id,
                endpoint=endpoint,
            )
        )

    async def _flush(self, items: Sequence[object]) -> None:
        waiting = {
            (item.provider, item.model)
            for item in items
            if isinstance(item, CallRecord) and _unsettled(item)
        }
        for item in items:
            if isinstance(item, list):
                waiting |= {(model.provider, model.name) for model in item}
        if waiting:
            await self._prices.resolve(waiting)
            items = [self._settled(item) for item in items]
        await self._write(items)

    def _settled(self, item: object) -> object:
        if isinstance(item, list):
            return [self._priced(model) for model in item]
        if not isinstance(item, CallRecord) or not _unsettled(item):
            return item
        quote = self._prices.quote(item.provider, item.model, _usage(item), item.key_id)
        if quote is None:
            return item
        said = item.cost_nano_usd, item.list_cost_nano_usd
        if said == (quote.cost_nano_usd, quote.list_cost_nano_usd):
            return item
        settled = msgspec.structs.replace(
            item,
            cost_nano_usd=quote.cost_nano_usd,
            list_cost_nano_usd=quote.list_cost_nano_usd,
            cost_source=quote.cost_source,
            price_version=quote.price_version,
        )
        self.recent.amend(settled)
        return settled

    def _priced(self, model: ModelInfo) -> ModelInfo:
        rates = self._prices.rates(model.provider, model.name)
        if rates is None:
            return model
        return msgspec.structs.replace(
            model,
            input_price_per_mtok=_dollars(rates.input),
            output_price_per_mtok=_dollars(rates.output),
            cached_price_per_mtok=_dollars(rates.cache_read),
            price_source=rates.source,
            price_version=rates.version,
            is_free=rates.input == 0 and rates.output == 0,
        )


def _unsettled(record: CallRecord) -> bool:
    unknown = record.cost_source == "none" or record.list_cost_nano_usd is None
    return unknown and record.usage_source != "none"


def _usage(record: CallRecord) -> Usage:
    return Usage(
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        total_tokens=record.total_tokens,
        cached_tokens=record.cached_tokens,
        cache_write_tokens=record.cache_write_tokens,
        reasoning_tokens=record.reasoning_tokens,
        input_audio_tokens=record.input_audio_tokens,
        output_audio_tokens=record.output_audio_tokens,
        input_image_tokens=record.input_image_tokens,
        output_image_tokens=record.output_image_tokens,
        cost_nano_usd=record.cost_nano_usd if record.cost_source == "provider" else None,
    )


def _dollars(nano: int | None) -> float | None:
    return nano / 1e9 if nano is not None else None
