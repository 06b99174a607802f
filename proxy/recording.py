"""From what happened to what is kept: the log line, a price that came late, the row."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proxy.clock import now_ms
from proxy.entries import decode, encode
from proxy.errors import ErrorReason, GatewayError
from proxy.learnt import records, told
from proxy.metering.meter import Books
from proxy.metering.pricing import Prices
from proxy.metering.writer import Writer
from proxy.money import dollars
from proxy.places import state_folder
from proxy.redact import Redactor, shorten
from proxy.routing.events import Event
from proxy.schema import TelemetrySettings
from proxy.sealing import Sealing
from proxy.store.engine import Store
from proxy.store.positions import Moves
from proxy.store.recent import Recent, encoded
from proxy.types import CallRecord, FaultRecord, ModelInfo, Usage

_CAUSES = 5
"""Of a fault and what led to it, so many are told."""

_log = logging.getLogger("tollkeeper")


class Recording:
    """Takes what the parts report. Without a ``writer`` it is logged, and nothing is kept.

    ``share`` takes the row of each call for other gateways to show, as JSON. ``content`` takes what
    a call said, and is None where that is not to be kept. ``prices`` may not know a model when its
    first call ends, so every batch is settled before it is written.
    """

    def __init__(
        self,
        prices: Prices,
        store: Store,
        log_request: Callable[[CallRecord], None],
        redact: Redactor,
        telemetry: TelemetrySettings,
        share: Callable[[bytes], None] | None = None,
    ) -> None:
        self.settle: Callable[[CallRecord], CallRecord] = lambda record: record
        """Has an attempt's cost paid, and gives its record saying by whom."""
        self._share = share
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
        self._most = telemetry.content_limit
        self._sealing = Sealing(redact.whole, self._most or 0, self.keep)
        self.content = None if self._most is None else self._sealing.take
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

    def check(self) -> None:
        """GatewayError where nothing is kept, or nothing can be written down now."""
        if self.writer is None:
            raise GatewayError(
                503,
                "Nothing is kept here: telemetry is switched off.",
                ErrorReason.INTERNAL,
                code="telemetry_off",
                should_retry=False,
            )
        self.writer.journal.check()

    def keep(self, item: object) -> None:
        """Have a row written, unless nothing is to be kept."""
        if self.writer is not None:
            self.writer.put(item)

    def books(self, privacy_level: str, gpu_memory_mb: Callable[[], float | None]) -> Books:
        """What the meters of this process write in."""
        return Books(
            self.call,
            self._prices.quote,
            self._redact,
            privacy_level,
            None if self.writer is None else self.writer.journal,
            gpu_memory_mb,
            self.content,
            self._most or 0,
        )

    async def drain(self, seconds: float) -> None:
        """Write what is left, for so long."""
        if self.writer is not None:
            await self._sealing.drain(seconds)
            await self.writer.drain(seconds)

    def call(self, record: CallRecord) -> None:
        """An attempt has ended."""
        record = self.settle(record)
        self.keep(record)
        self._log_request(record)
        if self.writer is not None:
            self.recent.add(record)
            self._show(record)

    def _show(self, record: CallRecord) -> None:
        if self._share is not None:
            self._share(bytes(encoded(record)))

    def learnt(self, event: Event) -> None:
        """A key pool has changed what it does."""
        _log.warning("%s", told(event))
        for record in records(event):
            self.keep(record)

    def broken(
        self,
        exc: BaseException,
        request_id: str | None,
        endpoint: str | None,
        hide: Callable[[str], str] = str,
    ) -> None:
        """A fault of our own: told in the log, and kept with its stack. ``hide`` takes out of a
        message what it quotes of the call."""
        message, stack = hide(self._redact(str(exc))), self._redact(_stack(exc, hide))
        more = {"request_id": request_id, "stack": stack}
        _log.error("%s: %s", type(exc).__name__, message, extra=more)
        self.keep(
            FaultRecord(
                timestamp=now_ms(),
                error_type=type(exc).__name__,
                error_message=shorten(message),
                stack_trace=stack,
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
        self._show(settled)
        return settled

    def _priced(self, model: ModelInfo) -> ModelInfo:
        rates = self._prices.rates(model.provider, model.name)
        if rates is None:
            return model
        return msgspec.structs.replace(
            model,
            input_price_per_mtok=dollars(rates.input),
            output_price_per_mtok=dollars(rates.output),
            cached_price_per_mtok=dollars(rates.cache_read),
            price_source=rates.source,
            price_version=rates.version,
            is_free=rates.input == 0 and rates.output == 0,
        )


def _stack(exc: BaseException | None, hide: Callable[[str], str]) -> str:
    """Where it happened and of what, the cause first."""
    parts: list[str] = []
    while exc is not None and len(parts) < _CAUSES:
        frames = "".join(traceback.format_tb(exc.__traceback__))
        parts.append(f"{frames}{type(exc).__name__}: {hide(str(exc))}\n")
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    return "\n".join(reversed(parts))


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
