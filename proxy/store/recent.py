"""The newest calls, in memory: they are shown at once, before their rows are written.

They stand in the order in which they ended. A call is encoded when it is first shown: most never
are, and a busy second has thousands of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store.filters import Filters, admits
from proxy.store.pages import Row, newest, shown
from proxy.store.rows import COLUMNS, row
from proxy.store.salvage import mend
from proxy.store.tables import api_calls
from proxy.types import CallRecord

MOST = 1000
"""How many are held; the ones before them are in the database."""


class Recent:
    """Up to ``most`` rows of ``api_calls``. ``id`` is None in those that came since the start: it
    is the database's to give."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._calls: OrderedDict[tuple[str, int], CallRecord | msgspec.Raw] = OrderedDict()

    async def load(self, connection: AsyncConnection) -> None:
        """Begin with the newest rows that the database has."""
        found, _ = await newest(
            connection, api_calls, ("timestamp", "id"), None, self._most, cursor=None
        )
        # Within a millisecond the rows tell: they are written in the order in which calls ended.
        for each in sorted(found, key=lambda each: (each["finished_at"], each["id"])):
            self._put((each["request_id"], each["attempt"]), _encoded(each))

    def add(self, call: CallRecord) -> None:
        """An attempt has ended."""
        self._put((call.request_id, call.attempt), call)

    def amend(self, call: CallRecord) -> None:
        """More is known of an attempt, such as its price; nothing happens if it is not held."""
        if (call.request_id, call.attempt) in self._calls:
            self.add(call)

    def newest(self, filters: Filters, limit: int) -> list[msgspec.Raw]:
        """The last that ended first, as JSON. The window of the filters does not apply."""
        return chosen(self._shown(), filters, limit)

    def _shown(self) -> Iterator[msgspec.Raw]:
        for key in reversed(list(self._calls)):
            call = self._calls[key]
            if isinstance(call, CallRecord):
                call = self._calls[key] = encoded(call)
            yield call

    def _put(self, key: tuple[str, int], call: CallRecord | msgspec.Raw) -> None:
        self._calls[key] = call
        if len(self._calls) > self._most:
            self._calls.popitem(last=False)


def chosen(calls: Iterable[msgspec.Raw], filters: Filters, limit: int) -> list[msgspec.Raw]:
    """The first of the calls that the filters let through, whatever their window."""
    if filters != Filters(start=filters.start, end=filters.end):
        calls = (call for call in calls if admits(filters, msgspec.json.decode(call)))
    return list(islice(calls, limit))


def encoded(call: CallRecord) -> msgspec.Raw:
    """As the database would tell it."""
    values = dict(zip(COLUMNS, row(call), strict=True))
    try:
        return _encoded({"id": None, **values, "success": call.status == "success"})
    except UnicodeEncodeError:  # half a character, which a client or a provider may send
        return encoded(mend(call))


def _encoded(call: Row) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(shown(api_calls, call)))
