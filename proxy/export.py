"""``tollkeeper export``: the rows of a table to a file, while gateways go on writing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from proxy.progress import Progress
from proxy.schema import Settings
from proxy.store import formats, spans
from proxy.store.formats import ExportError
from proxy.store.look import look
from proxy.store.spans import Span
from proxy.store.tables import metadata

TABLES = sorted(metadata.tables.keys() - {"client_secrets"})
"""All but the digests of clients' keys: whoever reads an export needs none of them."""

FORMATS = list(formats.FORMATS)


async def export(
    settings: Settings, table: str, since: int, until: int, form: str, output: str
) -> int:
    """Write the rows from ``since`` to before ``until``, UTC milliseconds; return how many.

    ``output`` is a file, which appears when it is whole, or ``-``. Raises StoreError if the
    database cannot be read, ExportError if the rows cannot be written.
    """
    span = Span(metadata.tables[table], since, until)
    async with look(settings.telemetry.database_url) as connection:
        total = await spans.count(connection, span) if sys.stderr.isatty() else 0
        progress = Progress(total, sys.stderr)
        done, last = 0, None
        with _opened(output, form) as stream:
            sink = formats.make(form, span.table, stream)
            while rows := await spans.page(connection, span, last):
                sink.write(rows)
                done, last = done + len(rows), rows[-1]
                progress.add(len(rows))
            sink.close()
        progress.close()
    return done


@contextmanager
def _opened(output: str, form: str) -> Iterator[BinaryIO]:
    try:
        if output == "-":
            with _standard_output(form) as stream:
                yield stream
        else:
            with _file(Path(output)) as stream:
                yield stream
    except OSError as error:
        name = "the output" if output == "-" else output
        raise ExportError(f"cannot write {name}: {error.strerror or error}") from error


@contextmanager
def _standard_output(form: str) -> Iterator[BinaryIO]:
    if form != "csv" and sys.stdout.isatty():
        raise ExportError(f"{form} is nothing for a terminal: name a file with --output")
    stream = sys.stdout.buffer
    try:
        yield stream
        stream.flush()
    except BrokenPipeError:
        # What is left would be flushed, and told to have failed, once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def _file(path: Path) -> Iterator[BinaryIO]:
    if path.exists() and not path.is_file():  # a device, a pipe
        with path.open("wb") as stream:
            yield stream
        return
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
