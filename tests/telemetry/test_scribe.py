from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.store.address import StoreError
from proxy.store.engine import Store
from proxy.telemetry import scribe
from proxy.telemetry.scribe import Scribe


class Book(Store):
    """A store that keeps what it is given, unless it is ``away``."""

    def __init__(self) -> None:
        super().__init__(None)
        self.batches: list[list[object]] = []
        self.away = False
        self.tried = threading.Event()
        self.closed = False

    async def write(self, items: Sequence[object]) -> None:
        self.tried.set()
        if self.away:
            raise StoreError("the database is locked")
        self.batches.append(list(items))

    async def close(self) -> None:
        self.closed = True
        await super().close()

    @property
    def rows(self) -> list[object]:
        return [row for batch in self.batches for row in batch]


async def read(store: Store) -> list[object]:
    assert isinstance(store, Book)
    return list(store.rows)


def test_rows_are_written_in_order_and_in_batches() -> None:
    book = Book()
    writing = Scribe(book)
    for number in range(scribe.BATCH + 10):
        writing.put(number)
    assert writing.flush(5)
    assert book.rows == list(range(scribe.BATCH + 10))
    assert max(map(len, book.batches)) <= scribe.BATCH
    assert len(book.batches) < 100
    writing.close(1)
    assert book.closed


def test_who_asks_finds_what_was_put_before() -> None:
    writing = Scribe(Book())
    writing.put("a")
    assert writing.ask(read) == ["a"]
    writing.close(1)


def test_what_a_question_raises_comes_back_and_the_next_is_answered() -> None:
    async def wrong(_: Store) -> None:
        raise KeyError("x")

    writing = Scribe(Book())
    with pytest.raises(KeyError):
        writing.ask(wrong)
    assert writing.ask(read) == []
    writing.close(1)


def test_rows_wait_for_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scribe, "BACKOFF", (0.01,) * 4)
    book = Book()
    book.away = True
    writing = Scribe(book)
    writing.put("a")
    assert not writing.flush(0.05)
    assert writing.ask(read) == []
    waiting = {"recorded": 0, "queued": 1, "dropped": 0, "last_error": "the database is locked"}
    assert writing.status() == waiting
    book.away = False
    assert writing.flush(5)
    assert book.rows == ["a"]
    assert writing.status()["last_error"] is None
    writing.close(1)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["rows wait to be written: the database is locked"]


def test_closing_writes_what_is_left() -> None:
    book = Book()
    writing = Scribe(book)
    writing.put("a")
    writing.close(1)
    assert book.rows == ["a"]


def test_what_cannot_be_written_at_the_end_is_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book = Book()
    book.away = True
    writing = Scribe(book)
    writing.put("a")
    writing.close(0.05)
    assert writing.status()["dropped"] == 1
    assert "1 rows are lost: the database is locked" in caplog.messages


def test_beyond_its_capacity_rows_are_lost_counted_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    book = Book()
    book.away = True
    writing = Scribe(book, capacity=2)
    for row in "abcd":
        writing.put(row)
    book.away = False
    assert writing.flush(5)
    assert (book.rows, writing.status()["dropped"]) == (["a", "b"], 2)
    assert caplog.messages.count("rows are lost: 2 wait already") == 1
    writing.close(1)


def test_after_the_end_a_row_is_counted_as_lost_and_a_question_is_refused() -> None:
    writing = Scribe(Book())
    writing.close(1)
    writing.put("a")
    assert writing.status()["dropped"] == 1
    with pytest.raises(StoreError, match="closed"):
        writing.ask(read)
    writing.close(1)


def test_many_threads_lose_nothing() -> None:
    book = Book()
    writing = Scribe(book)

    def work(name: int) -> None:
        for number in range(200):
            writing.put((name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writing.close(5)
    rows: list[Any] = book.rows
    assert sorted(rows) == [(name, number) for name in range(8) for number in range(200)]
    for name in range(8):  # and keep each thread's order
        assert [number for who, number in rows if who == name] == list(range(200))
