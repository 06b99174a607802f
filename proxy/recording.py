"""From what happened to what is kept: the log line, a price that came late, the row."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proxy.clock import now_ms
from proxy.entries import decode, encode
from proxy.learnt import records, told
from proxy.metering.pricing import Prices
from proxy.metering.writer import Writer
from proxy.places import state_folder
from proxy.redact import shorten
from proxy.routing.events import Event
from proxy.schema import TelemetrySettings
from proxy.store.engine import Store
from proxy.store.positions import Moves
from proxy.store.recent import Recent
from proxy.types import CallRecord, FaultRecord, ModelInfo, Usage

_log = logging.getLogger("tollkeeper")


class Recording:
    """Takes what the parts report. Without a ``writer`` it is logged, and nothing is kept.

    ``prices`` may not know a model when its first call ends, so every batch is settled before it is
    written.
    """

    def __init__(
        self,
        prices: Prices,
        store: Store,
        log_request: Callable[[CallRecord], None],
        redact: Callable[[str], str],
        telemetry: TelemetrySettings,
    ) -> None:
        self.writer: Writer | None = None
        if telemetry.keeps:
            self.writer = Writer(
                state_folder(telemetry.database_url) / "journal",
                encode=encode,
                decode=decode,
                flush=self._flush,
                positions=store.positions,
                strict=telemetry.journal.on_failure == "strict",
                max_bytes=telemetry.journal.max_bytes,
            )
        self.recent = Recent()
        self._prices = prices
        self._store = store
        self._log_request = log_request
        self._redact = redact

    def status(self) -> dict[str, Any]:
        """``recorded`` call rows; ``queued`` and ``dropped`` items; the last error; the journal."""
        if self.writer is None:
            return {"recorded": 0, "queued": 0, "dropped": 0, "last_error": None, "journal": None}
        status = self.writer.status()
        status["dropped"] += self._store.refused
        return status

    def keep(self, item: object) -> None:
        """Have a row written, unless nothing is to be kept."""
        if self.writer is not None:
            self.writer.put(item)

    def call(self, record: CallRecord) -> None:
        """An attempt has ended."""
        self.keep(record)
        self._log_request(record)
        if self.writer is not None:
            self.recent.add(record)

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

    async def _flush(self, items: Sequence[object], moves: Moves) -> None:
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
        await self._store.write(items, moves)

    def _settled(self, item: object) -> object:
        if isinstance(item, list):
            return [self._priced(model) for model in item]
        if not isinstance(item, CallRecord) or not _unsettled(item):
            return item
        quote = self._prices.quote(item.provider, item.model, _usage(item))
        if quote is None:
            return item
        settled = msgspec.structs.replace(
            item,
            cost_nano_usd=quote.cost_nano_usd,
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
    return record.cost_source == "none" and record.usage_source != "none"


def _usage(record: CallRecord) -> Usage:
    return Usage(
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        total_tokens=record.total_tokens,
        cached_tokens=record.cached_tokens,
        cache_write_tokens=record.cache_write_tokens,
        reasoning_tokens=record.reasoning_tokens,
    )


def _dollars(nano: int | None) -> float | None:
    return nano / 1e9 if nano is not None else None
