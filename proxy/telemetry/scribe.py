"""The one thread in which everything of the database happens, for callers in any thread.

Rows are written behind the caller's back, in batches, and again until they are written. A question
waits for the rows that were there before it, so that who logs and asks finds what was logged.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from proxy.clock import monotonic
from proxy.content import MAX_WAITING, ContentRecord
from proxy.store.address import StoreError
from proxy.store.engine import Store

CAPACITY = 100_000
BATCH = 2_000
INTERVAL = 0.1
"""Seconds that a row waits for others."""
BACKOFF = (0.5, 1.0, 2.0, 5.0)
"""Seconds until the next try, by failures in a row."""

_AGAIN = 0.1  # the same, where somebody waits
_log = logging.getLogger("tollkeeper.telemetry")
_T = TypeVar("_T")
Question = Callable[[Store], Coroutine[Any, Any, Any]]


class Scribe:
    """Keeps a store; the thread is a daemon, so ``close`` it before the program ends."""

    def __init__(self, store: Store, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._capacity = capacity
        self._rows: deque[object] = deque()
        self._questions: deque[tuple[Question, Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._hurry = False
        self._deadline: float | None = None  # set when it is closing
        self._held = 0  # bytes of contents that wait
        self._taken = self._done = self._recorded = self._dropped = self._failures = 0
        self._last_error: str | None = None
        self._thread = threading.Thread(target=self._work, name="tollkeeper", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """``recorded``, ``queued`` and ``dropped`` rows, and the last error."""
        with self._changed:
            return {
                "recorded": self._recorded,
                "queued": len(self._rows),
                "dropped": self._dropped + self._store.refused,
                "last_error": self._last_error,
            }

    def put(self, row: object) -> None:
        """Have a row written; never waits and never raises. Beyond ``capacity`` it is lost,
        counted and told in the log."""
        size = row.size if isinstance(row, ContentRecord) else 0
        with self._changed:
            full = len(self._rows) >= self._capacity or self._held + size > MAX_WAITING
            if self._closing or full:
                if not self._dropped:
                    why = "it is closed" if self._closing else f"{len(self._rows)} wait already"
                    _log.error("rows are lost: %s", why)
                self._dropped += 1
                return
            self._rows.append(row)
            self._held += size
            self._taken += 1
            self._changed.notify_all()

    def ask(self, question: Callable[[Store], Coroutine[Any, Any, _T]]) -> _T:
        """What the question makes of the store, once it is open; raises what the question raises,
        and StoreError if the scribe is closed."""
        answer: Future[_T] = Future()
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise StoreError("the logger is closed")
            self._questions.append((question, answer))
            self._changed.notify_all()
        return answer.result()

    def flush(self, seconds: float | None) -> bool:
        """Wait until all rows so far are written; False if ``seconds`` were not enough."""
        with self._changed:
            until = self._taken
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done >= until, seconds)

    def close(self, seconds: float) -> None:
        """Write what is left and let go of the database. After ``seconds`` of failures what is
        left is lost, counted and told in the log."""
        with self._changed:
            if self._deadline is None:
                self._deadline = monotonic() + seconds
            self._changed.notify_all()
        self._thread.join(seconds + 2 * BACKOFF[-1])

    # In the thread.

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while self._wait():
                with self._changed:
                    until, questions = self._taken, list(self._questions)
                    self._questions.clear()
                while self._done < until and self._write(runner):
                    pass
                for question, answer in questions:
                    self._answer(runner, question, answer)
            runner.run(self._store.close())

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._changed:
            if self._failures and self._rows:
                # Who waits is not kept waiting, but a database that fails at once is let breathe.
                self._changed.wait_for(lambda: self._questions, _AGAIN)
                self._changed.wait_for(self._pressed, BACKOFF[min(self._failures, 4) - 1])
            else:
                self._hurry = False
                self._changed.wait_for(lambda: self._rows or self._pressed())
                self._changed.wait_for(self._pressed, INTERVAL)
            if not self._closing or self._questions:
                return True
            assert self._deadline is not None
            if self._rows and monotonic() > self._deadline and self._failures:
                self._give_up()
            return bool(self._rows)

    @property
    def _closing(self) -> bool:
        return self._deadline is not None

    def _pressed(self) -> bool:
        return bool(self._questions) or self._hurry or self._closing

    def _give_up(self) -> None:
        _log.error("%d rows are lost: %s", len(self._rows), self._last_error)
        self._dropped += len(self._rows)
        self._rows.clear()
        self._held = 0
        self._done = self._taken
        self._changed.notify_all()

    def _write(self, runner: asyncio.Runner) -> bool:
        """Write a batch; False if it has to come again."""
        with self._changed:
            batch = [self._rows[place] for place in range(min(BATCH, len(self._rows)))]
        refused = self._store.refused
        try:
            runner.run(self._store.write(batch))
        except Exception as error:
            self._failures += 1
            self._last_error = str(error) or type(error).__name__
            if self._failures == 1:
                _log.warning("rows wait to be written: %s", self._last_error)
            return False
        if self._failures:
            _log.info("the database can be written again")
        self._failures, self._last_error = 0, None
        with self._changed:
            for _ in batch:
                self._rows.popleft()
            self._done += len(batch)
            contents = [item.size for item in batch if isinstance(item, ContentRecord)]
            self._held -= sum(contents)
            self._recorded += len(batch) - len(contents) - (self._store.refused - refused)
            self._changed.notify_all()
        return True

    def _answer(self, runner: asyncio.Runner, question: Question, answer: Future[Any]) -> None:
        async def opened() -> Any:
            await self._store.open()
            return await question(self._store)

        try:
            answer.set_result(runner.run(opened()))
        except Exception as error:
            answer.set_exception(error)
