"""``GET /stats`` and below: what happened, from the database, and how the keys are now.

Every path takes the parameters of ``Parameters``; one that has no meaning for a path's rows, such
as a window for the current state, does nothing there. Lists are ``{"data", "next_cursor"}``.
Instants are RFC 3339 in UTC, durations milliseconds, money US dollars, and unknown is null.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from proxy.api.keys import shown
from proxy.api.listing import Listing
from proxy.clock import now_ms, rfc3339
from proxy.errors import ErrorReason, GatewayError
from proxy.store import (
    calls,
    compare,
    contents,
    fingerprints,
    groups,
    pages,
    ranking,
    samples,
    series,
    sizes,
    state,
    waste,
)
from proxy.store.address import StoreError
from proxy.store.engine import Reader, Store
from proxy.store.filters import Filters
from proxy.store.pages import BadCursor
from proxy.store.rollups import GRAINS, HOUR
from proxy.store.sets import STATUSES
from proxy.store.tables import api_calls

PERIODS = {"1h": 3_600_000, "24h": 86_400_000, "7d": 604_800_000, "30d": 2_592_000_000}
_FILTERS = Filters.__struct_fields__
_FARTHEST = 253_402_300_799  # the last second of the year 9999

Record = dict[str, Any]


def instant(value: object, info: ValidationInfo) -> int:
    """RFC 3339, a date, or unix seconds as UTC milliseconds; GatewayError 422 for anything else."""
    text = str(value).strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = _rfc3339(text)
    if not 0 <= seconds <= _FARTHEST:
        raise _bad(info.field_name, "must be RFC 3339 or unix seconds, between 1970 and 9999")
    return round(seconds * 1000)


def _rfc3339(text: str) -> float:
    # A plus in a query string arrives as a space unless the client escaped it.
    text = text.replace(" ", "+") if "T" in text else text
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


Moment = Annotated[int, BeforeValidator(instant)]


def _one_of(accepted: Collection[str]) -> AfterValidator:
    """GatewayError 422 for any other value."""

    def known(value: str, info: ValidationInfo) -> str:
        if value not in accepted:
            raise _bad(info.field_name, f"must be one of {', '.join(accepted)}")
        return value

    return AfterValidator(known)


Status = Annotated[str, _one_of(STATUSES)]
Dimension = Annotated[str, _one_of(ranking.DIMENSIONS)]
Order = Annotated[str, _one_of(ranking.ORDERS)]


class Parameters(BaseModel):
    """The common parameters. ``period`` is the window's length where ``start`` or ``end`` is
    missing; an end that is not given is now. A period up to now begins with a whole hour if it is
    longer than rollups by the minute are kept."""

    model_config = ConfigDict(extra="forbid")

    period: Literal["1h", "24h", "7d", "30d"] = "24h"
    start: Moment | None = None
    end: Moment | None = None
    provider: list[str] = []
    model: list[str] = []
    key: list[str] = []
    status: list[Status] = []
    client: list[str] = []
    agent: list[str] = []
    tool: list[str] = []
    endpoint: list[str] = []
    user: list[str] = []
    session: list[str] = []
    tag: list[str] = []
    min_latency_ms: float | None = Field(None, ge=0, allow_inf_nan=False)
    min_tokens: int | None = Field(None, ge=0, lt=2**63)
    limit: int = Field(100, ge=1, le=1000)
    cursor: str | None = Field(None, max_length=1000)

    def filters(self) -> Filters:
        """What they mean; GatewayError 422 if the window ends before it starts."""
        end = now_ms() + 1 if self.end is None else self.end
        start, length = self.start, PERIODS[self.period]
        if start is None:
            start = max(0, end - length)
            if self.end is None and length > GRAINS[0].kept:
                # So long ago there are no minutes, and an hour has thousands of calls to look at.
                start -= start % HOUR
        if start > end:
            raise _bad("start", "is after the end")
        lists = {name: value for name, value in self if isinstance(value, list)}
        values = {name: tuple(lists[name]) for name in lists.keys() & set(_FILTERS)}
        return Filters(
            start=start,
            end=end,
            min_latency_ms=self.min_latency_ms,
            min_tokens=self.min_tokens,
            **values,
        )


class SeriesParameters(Parameters):
    """What to draw, and in what steps."""

    metric: Literal[
        "requests",
        "errors",
        "latency_ms",
        "ttft_ms",
        "tokens_per_second",
        "input_tokens",
        "output_tokens",
        "cost_usd",
    ] = "requests"
    bucket: Literal["minute", "hour", "day"] = "hour"


class CompareParameters(Parameters):
    """What to set side by side."""

    by: Literal["provider", "model"] = "provider"


class RankingParameters(Parameters):
    """What to group by, and how many of the groups to tell of one by one."""

    group_by: list[Dimension] = Field(["client"], min_length=1, max_length=2)
    order: Order = "cost_usd"
    top: int = Field(10, ge=1, le=1000)


Asked = Annotated[Parameters, Query()]

_CALL = pages.blank(api_calls)
_KEY = dict.fromkeys(
    (
        *("provider", "name", "quota_group", "state", "reason", "until"),
        *("in_flight", "tried", "succeeded"),
    )
)


class Present(Protocol):
    """What is shown from memory."""

    async def recorder(self) -> Record:
        """What became of the rows: recorded, queued, dropped, last_error, turned_away."""
        ...

    async def keys(self) -> list[Record]:
        """The keys as they are now: provider, name, quota_group, state, reason, until (UTC
        milliseconds), in_flight, tried, succeeded, models with model, state, reason and until, and
        limits with their figures."""
        ...

    async def recent(self, filters: Filters, limit: int) -> Sequence[msgspec.Raw]:
        """The calls that ended last, as JSON, the last first."""
        ...


def stats_router(store: Store, present: Present) -> APIRouter:
    """Every ``/stats`` path."""
    stats = _Stats(store, present)
    router = APIRouter()
    routes: dict[str, Callable[..., Any]] = {
        "": stats.summary,
        "/summary": stats.summary,
        "/calls": stats.calls,
        "/calls/{request_id}": stats.call,
        "/calls/{request_id}/content": stats.content,
        "/recent": stats.recent,
        "/groups": stats.groups,
        "/compare": stats.compare,
        "/waste": stats.waste,
        "/errors/fingerprints": stats.fingerprints,
        "/keys": stats.keys,
        "/timeseries": stats.timeseries,
        "/database": stats.database,
    }
    routes |= {f"/{name}": stats.grouped(name) for name in groups.GROUPS}
    routes |= {f"/{name}": stats.listed(name) for name in state.TABLES}
    for path, endpoint in routes.items():
        router.add_api_route(f"/stats{path}", endpoint, methods=["GET"], response_model=None)
    return router


class _Stats:
    def __init__(self, store: Store, present: Present) -> None:
        self._store = store
        self._present = present

    async def summary(self, asked: Asked) -> Response:
        filters = asked.filters()
        try:
            async with self._store.reader() as connection:
                measures = await groups.whole(connection, filters)
                machine = await samples.means(connection, filters)
        except StoreError:  # and the recorder says what became of the rows
            measures, machine = groups.UNKNOWN, samples.UNKNOWN
        recorder = await self._present.recorder()
        told = {"window": window(filters), **measures, "machine": machine, "recorder": recorder}
        return _json(told)

    async def calls(self, asked: Asked) -> Response:
        async with self._reader() as connection:
            page = await calls.page(connection, asked.filters(), asked.limit, asked.cursor)
        return Listing(*page, _CALL)

    async def call(self, request_id: str) -> Response:
        async with self._reader() as connection:
            attempts = await calls.request(connection, request_id)
        if not attempts:
            raise _unknown(f"No call with the request id {request_id[:100]!r} is known")
        return Listing(attempts, None, _CALL, request_id=request_id)

    async def content(self, request_id: str) -> Response:
        async with self._reader() as connection:
            found = await contents.request(connection, request_id)
        if found is None:
            raise _unknown(f"No content of a call with the id {request_id[:100]!r} is kept")
        return _json(found)

    async def recent(self, asked: Asked) -> Response:
        return Listing(await self._present.recent(asked.filters(), asked.limit), None, _CALL)

    async def compare(self, asked: Annotated[CompareParameters, Query()]) -> Response:
        async with self._reader() as connection:
            found = await compare.compared(connection, asked.by, asked.filters())
        names = dict.fromkeys(compare.BY[asked.by])
        blank = names | groups.NOTHING | {"ratio": compare.NO_RATIOS}
        return _slice(found, asked, blank, by=asked.by)

    async def groups(self, asked: Annotated[RankingParameters, Query()]) -> Response:
        filters, by = asked.filters(), list(dict.fromkeys(asked.group_by))
        async with self._reader() as connection:
            found = await ranking.ranked(connection, filters, by, asked.order, asked.top)
        more: Record = {"window": window(filters), "group_by": by, "order": asked.order}
        return Listing(found, None, ranking.blank(by), **more)

    async def waste(self, asked: Asked) -> Response:
        filters = asked.filters()
        async with self._reader() as connection:
            totals, found = await waste.waste(connection, filters)
        blank = {"provider": None, "model": None, **waste.NO_KINDS}
        return _slice(found, asked, blank, window=window(filters), totals=totals)

    async def fingerprints(self, asked: Asked) -> Response:
        async with self._reader() as connection:
            found = await fingerprints.fingerprints(connection, asked.filters())
        return _slice(found, asked, fingerprints.BLANK)

    def grouped(self, name: str) -> Callable[..., Any]:
        async def endpoint(asked: Asked) -> Response:
            async with self._reader() as connection:
                found = await groups.grouped(connection, name, asked.filters())
            return _slice(found, asked, groups.blank(name))

        return endpoint

    def listed(self, name: str) -> Callable[..., Any]:
        async def endpoint(asked: Asked) -> Response:
            limit, cursor = asked.limit, asked.cursor
            async with self._reader() as connection:
                page = await state.page(connection, name, asked.filters(), limit, cursor)
            return Listing(*page, pages.blank(state.TABLES[name][0]))

        return endpoint

    async def keys(self, asked: Asked) -> Response:
        async with self._reader() as connection:
            used = await groups.by_key(connection, asked.filters())
        states = [
            shown(key) | used.get((key["provider"], key["name"]), groups.NOTHING)
            for key in await self._present.keys()
            if key["provider"] in (asked.provider or [key["provider"]])
            and key["name"] in (asked.key or [key["name"]])
        ]
        return _slice(states, asked, _KEY | groups.NOTHING)

    async def timeseries(self, asked: Annotated[SeriesParameters, Query()]) -> Response:
        async with self._reader() as connection:
            try:
                points = await series.series(
                    connection, asked.filters(), asked.metric, asked.bucket
                )
            except series.TooManyPoints:
                most = f"makes more than {series.MOST_POINTS} points of this window"
                raise _bad("bucket", most) from None
        data = [point | {"timestamp": rfc3339(point["timestamp"])} for point in points]
        blank = series.blank(asked.metric)
        return Listing(data, None, blank, metric=asked.metric, bucket=asked.bucket)

    async def database(self) -> Response:
        async with self._reader() as connection:
            found = await sizes.sizes(connection)
        written = await self._present.recorder()
        return _json(
            {
                "location": self._store.location,
                **found,
                "queue_depth": written.get("queued"),
                "refused": self._store.refused,
                "recorder": written,
            }
        )

    def _reader(self) -> AbstractAsyncContextManager[Reader]:
        return reading(self._store)


@asynccontextmanager
async def reading(store: Store) -> AsyncIterator[Reader]:
    """A connection; what goes wrong with it is a GatewayError."""
    try:
        async with store.reader() as connection:
            yield connection
    except BadCursor:
        raise _bad("cursor", "is not one that this list gave") from None
    except StoreError as error:
        raise GatewayError(503, str(error), ErrorReason.INTERNAL) from error


def _slice(rows: Sequence[Record], asked: Parameters, blank: Record, **more: Any) -> Response:
    """A page of a list that is computed whole; its cursor is a place in it."""
    cursor = asked.cursor or "0"
    if not (cursor.isascii() and cursor.isdigit()):
        raise _bad("cursor", "is not one that this list gave")
    end = int(cursor) + asked.limit
    following = str(end) if end < len(rows) else None
    return Listing(rows[int(cursor) : end], following, blank, **more)


def window(filters: Filters) -> Record:
    """From when to when a question was."""
    return {"start": rfc3339(filters.start), "end": rfc3339(filters.end)}


def _json(content: Record) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _unknown(message: str) -> GatewayError:
    return GatewayError(404, message, ErrorReason.NOT_FOUND, param="request_id")


def _bad(name: str | None, what: str) -> GatewayError:
    return GatewayError(422, f"{name}: {what}", ErrorReason.INVALID_REQUEST, param=name)
