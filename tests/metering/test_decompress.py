from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering import decompress
from proxy.metering.decompress import Decompressor

TEXT = b"data: something to say\n\n" * 50


def inflate(encoding: str, *reads: bytes) -> bytes:
    decompressor = Decompressor(encoding)
    return b"".join(decompressor.feed(read) for read in reads)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", " x-gzip "])
def test_gzip_in_pieces(encoding: str) -> None:
    packed = gzip.compress(TEXT)
    for cut in range(len(packed)):
        assert inflate(encoding, packed[:cut], packed[cut:]) == TEXT
    assert inflate(encoding, *(packed[i : i + 1] for i in range(len(packed)))) == TEXT


def test_deflate() -> None:
    assert inflate("deflate", zlib.compress(TEXT)) == TEXT


def test_what_has_been_flushed_is_there_at_once() -> None:
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    decompressor = Decompressor("gzip")
    for event in (b"data: a\n\n", b"data: b\n\n"):
        assert decompressor.feed(packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)) == event


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "", "identity"])
def test_an_encoding_that_is_not_known_gives_nothing(encoding: str) -> None:
    assert inflate(encoding, gzip.compress(TEXT), b"more") == b""


def test_broken_data_gives_what_came_before_and_then_nothing() -> None:
    packed = gzip.compress(TEXT)
    broken = packed[:15] + b"\xff" * 20 + packed[35:]
    assert TEXT.startswith(inflate("gzip", broken, packed))
    assert inflate("gzip", b"not gzip", packed) == b""
    assert TEXT.startswith(inflate("gzip", packed[:30]))


def test_what_follows_the_end_is_neither_read_nor_gathered() -> None:
    decompressor = Decompressor("gzip")
    assert decompressor.feed(gzip.compress(TEXT) + b"junk") == TEXT
    assert decompressor.feed(gzip.compress(TEXT)) == b""
    assert decompressor._inflate is None


def test_a_bomb_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "MAX_OUTPUT", 100_000)
    bomb = gzip.compress(b"\0" * 10_000_000)
    assert len(inflate("gzip", bomb)) == 100_000
    assert len(inflate("gzip", *(bomb[i : i + 100] for i in range(0, len(bomb), 100)))) == 100_000
    decompressor = Decompressor("gzip")
    decompressor.feed(bomb)
    assert decompressor.feed(bomb) == b""
    assert decompressor._inflate is None


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_no_bytes_are_a_surprise(reads: list[bytes]) -> None:
    inflate("gzip", *reads)
    inflate("gzip", gzip.compress(b"x")[:12], *reads)
    inflate("deflate", *reads)
