from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.changes import BreakerRecord, CooldownRecord, LiftRecord, SwitchRecord
from proxy.clock import monotonic, now_ms
from proxy.content import Content, ContentRecord, unpack
from proxy.errors import ErrorReason
from proxy.metering.pricing import Quote
from proxy.metering.rates import Rates
from proxy.recording import Recording
from proxy.redact import Redactor
from proxy.routing.breaker import Transition
from proxy.routing.events import Event, Lifted, Parked, Switched
from proxy.routing.health import Turned
from proxy.routing.key import Key
from proxy.routing.rests import Rest
from proxy.sample import HostSample
from proxy.schema import TelemetrySettings
from proxy.store.positions import Moves
from proxy.types import CallRecord, FaultRecord, ModelInfo, Usage
from tests.store.rows import anything, call

PRICED = Rates(input=500_000_000, output=1_500_000_000, cache_read=0, version="v7")


class Shop:
    """Prices that are known only once they were asked for."""

    def __init__(self, **known: Rates) -> None:
        self.shelf = known
        self.asked: list[set[tuple[str, str]]] = []
        self.known: dict[str, Rates] = {}

    async def resolve(self, pairs: Collection[tuple[str, str]]) -> None:
        self.asked.append(set(pairs))
        self.known |= {model: self.shelf[model] for _, model in pairs if model in self.shelf}

    def rates(self, provider: str, model: str) -> Rates | None:
        return self.known.get(model)

    def quote(
        self, provider: str, model: str, usage: Usage | None, key: str | None
    ) -> Quote | None:
        rates = self.known.get(model)
        if rates is None or usage is None:
            return None
        if usage.cost_nano_usd is not None:
            return Quote(usage.cost_nano_usd, "provider", None, usage.total_tokens)
        return Quote(usage.total_tokens, "catalog", rates.version, usage.total_tokens)


class Office:
    """A recording, and everything that it gave away."""

    refused = 0

    def __init__(self, keeps: bool = True, level: str = "metadata", **known: Rates) -> None:
        self.shop = Shop(**known)
        self.logged: list[CallRecord] = []
        self.written: list[object] = []
        folder = tempfile.TemporaryDirectory()
        self.folder = Path(folder.name)
        self._at_the_end = weakref.finalize(self, folder.cleanup)
        self.recording = Recording(
            self.shop,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.logged.append,
            Redactor(["sk-1"]),
            TelemetrySettings(
                enabled=keeps,
                database_url=f"sqlite+aiosqlite:///{self.folder}/calls.db",
                privacy_level=level,
            ),
        )
        if self.recording.writer is not None:
            self.recording.writer.journal.open()

    async def positions(self) -> dict[str, int]:
        return {}

    async def write(self, items: Sequence[object], moves: Moves) -> None:
        self.written.extend(items)

    async def rows(self) -> list[object]:
        if self.recording.writer is not None:
            await self.recording.writer.drain(5)
        return self.written

    def recent(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(row) for row in self.recording.recent.newest(anything(), 10)]


def parked() -> Parked:
    rest = Rest(monotonic() + 60, ErrorReason.RATE_LIMIT, 1, "cooling")
    return Parked("lab", Key("k1", "sk-1", "org"), ("group", "org", "big"), rest, "header")


async def test_a_call_is_logged_and_kept_as_it_is() -> None:
    office = Office()
    record = call(list_cost_nano_usd=985_000)
    office.recording.call(record)
    assert office.logged == [record]
    assert await office.rows() == [record]
    assert office.shop.asked == []


async def test_a_call_is_among_the_recent_ones_before_its_row_is_written() -> None:
    office = Office(llama=PRICED)
    record = unpriced()
    office.recording.call(record)
    assert office.written == []
    assert [row["cost_estimate_usd"] for row in office.recent()] == [None]
    await office.rows()
    assert [row["cost_estimate_usd"] for row in office.recent()] == [1.5e-06]


async def test_where_nothing_is_kept_it_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    office = Office(keeps=False)
    office.recording.call(call())
    office.recording.keep(HostSample(1))
    office.recording.learnt(parked())
    office.recording.broken(KeyError("x"), None, None)
    assert await office.rows() == []
    assert office.recording.status() == {
        **{"recorded": 0, "queued": 0, "dropped": 0, "last_error": None},
        "journal": None,
    }
    assert not list(office.folder.iterdir())
    assert office.recording.recent.newest(anything(), 10) == []
    assert len(office.logged) == 1
    assert len(caplog.records) == 2


async def test_a_rest_is_told_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    office = Office()
    before = now_ms()
    office.recording.learnt(parked())
    (row,) = await office.rows()
    assert isinstance(row, CooldownRecord)
    assert (row.provider, row.model, row.key_id, row.account) == ("lab", "big", "k1", "org")
    assert (row.reason, row.backoff_count, row.source) == ("rate_limit", 1, "header")
    assert before <= row.at <= now_ms()
    assert 59_000 < row.until - row.at <= 60_000
    line = "lab: key k1 was refused; quota group org rests for 60 s (rate_limit, big)"
    assert caplog.messages == [line]


@pytest.mark.parametrize(
    ("event", "kind", "line"),
    [
        (
            Lifted("lab", [("key", "k1", ""), ("group", "org", "big")]),
            LiftRecord,
            "lab: k1, org rests no more",
        ),
        (
            Switched("lab", Key("k1", "sk-1", "org", disabled=True)),
            SwitchRecord,
            "lab: key k1 was disabled",
        ),
        (
            Turned("lab", "big", Transition("closed", "open", "timeout", 9.0, 1)),
            BreakerRecord,
            "lab/big: the breaker is open (timeout)",
        ),
    ],
)
async def test_whatever_a_pool_learns_is_told_in_a_line_and_kept(
    caplog: pytest.LogCaptureFixture, event: Event, kind: type, line: str
) -> None:
    office = Office()
    office.recording.learnt(event)
    assert {type(row) for row in await office.rows()} == {kind}
    assert caplog.messages == [line]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_a_fault_of_ours_is_kept_with_its_stack_and_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    office = Office()

    def fail() -> None:
        raise ValueError("the key sk-1 " + "x" * 600)

    try:
        fail()
    except ValueError as exc:
        office.recording.broken(exc, "ID", "/stats")
    (row,) = await office.rows()
    assert isinstance(row, FaultRecord)
    assert (row.error_type, row.request_id, row.endpoint) == ("ValueError", "ID", "/stats")
    assert row.severity == "critical"
    assert row.error_message.startswith("the key [redacted] x")
    assert len(row.error_message) == 500
    assert "in fail" in (row.stack_trace or "")
    assert "sk-1" not in (row.stack_trace or "")
    (record,) = caplog.records
    assert (record.levelno, record.request_id) == (logging.ERROR, "ID")  # type: ignore[attr-defined]
    assert "in fail" in record.stack  # type: ignore[attr-defined]


# Prices that came late.


def unpriced(model: str = "llama", **more: object) -> CallRecord:
    return call(model=model, cost_nano_usd=None, cost_source="none", **more)


async def test_a_price_that_was_not_known_at_the_end_of_a_call_is_put_in_later() -> None:
    office = Office(llama=PRICED)
    priced = call(list_cost_nano_usd=985_000)
    for record in (unpriced(), priced, unpriced("secret"), unpriced()):
        office.recording.call(record)
    first, second, third, fourth = await office.rows()
    assert isinstance(first, CallRecord)
    assert (first.cost_nano_usd, first.cost_source, first.price_version) == (1500, "catalog", "v7")
    assert second == priced
    assert isinstance(third, CallRecord)
    assert (third.cost_nano_usd, third.cost_source) == (None, "none")
    assert isinstance(fourth, CallRecord)
    assert fourth.cost_nano_usd == 1500
    assert office.shop.asked == [{("groq", "llama"), ("groq", "secret")}]


async def test_a_list_cost_that_was_not_known_is_put_in_beside_the_providers_own_word() -> None:
    office = Office(llama=PRICED)
    told = call(cost_nano_usd=0, cost_source="provider", price_version=None)
    office.recording.call(told)
    (row,) = await office.rows()
    assert isinstance(row, CallRecord)
    assert (row.cost_nano_usd, row.cost_source, row.list_cost_nano_usd) == (0, "provider", 1500)
    assert office.recent()[0]["list_cost_usd"] == 1.5e-6


async def test_a_call_that_nothing_can_be_added_to_stays_as_it_is() -> None:
    office = Office(llama=PRICED)
    unlisted = call(model="secret", cost_source="config", price_version="config 1")
    office.recording.call(unlisted)
    (row,) = await office.rows()
    assert row == unlisted


async def test_a_call_without_tokens_has_no_price_to_ask_for() -> None:
    office = Office(llama=PRICED)
    record = unpriced(usage_source="none", input_tokens=None, output_tokens=None)
    office.recording.call(record)
    assert await office.rows() == [record]
    assert office.shop.asked == []


async def test_listed_models_get_their_prices() -> None:
    office = Office(llama=PRICED, free=Rates(input=0, output=0, source="config"))
    office.shop.shelf["input"] = Rates(input=0, output=1)
    names = ("llama", "free", "odd", "input")
    listed = [ModelInfo("groq", name, {"id": name}) for name in names]
    office.recording.keep(listed)
    ((llama, free, odd, paid),) = await office.rows()  # type: ignore[misc]
    assert paid.is_free is False
    assert (llama.input_price_per_mtok, llama.output_price_per_mtok) == (0.5, 1.5)
    assert (llama.cached_price_per_mtok, llama.price_version, llama.is_free) == (0.0, "v7", False)
    assert (free.is_free, free.price_source, free.cached_price_per_mtok) == (True, "config", None)
    assert odd == listed[2]


async def test_what_a_fault_quotes_of_a_call_is_neither_logged_nor_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    office = Office()

    def fail() -> None:
        try:
            raise KeyError("the prompt")
        except KeyError as inner:
            raise ValueError("quoted: the prompt") from inner

    try:
        fail()
    except ValueError as exc:
        office.recording.broken(exc, "ID", "/v1", lambda text: text.replace("the prompt", "-"))
    (row,) = await office.rows()
    assert isinstance(row, FaultRecord)
    assert row.error_message == "quoted: -"
    told = [line for line in (row.stack_trace or "").splitlines() if not line.startswith(" ")]
    assert told == ["KeyError: '-'", "", "ValueError: quoted: -"]
    [record] = caplog.records
    assert "the prompt" not in record.getMessage()


async def test_contents_are_kept_only_where_so_many_bytes_are_named() -> None:
    assert Office().recording.content is None
    office = Office(level="full")
    assert office.recording.content is not None
    office.recording.content(Content("r", 1, 7, b"sk-1 and more", 13, None, None))
    await office.recording.drain(1)
    [record] = office.written
    assert isinstance(record, ContentRecord)
    assert unpack(record.request or b"") == "[redacted] and more"
