from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from proxy.metering.segment import (
    MAGIC,
    Damage,
    Entry,
    Name,
    OtherVersion,
    count,
    entries,
    framed,
    listed,
    sealed,
)

PAYLOADS = [b"one", b"\x00" * 40, b"three" * 50, b"4"]
WHOLE = MAGIC + b"".join(map(framed, PAYLOADS))
OWNER = "1790000000000-4711-0badcafe"


def read(
    folder: Path, content: bytes, position: int = 0, *, over: bool = True
) -> list[Entry | Damage]:
    path = folder / "segment"
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(entries(file, position, over=over))


def payloads(found: list[Entry | Damage]) -> list[bytes]:
    return [entry.payload for entry in found if isinstance(entry, Entry)]


def damages(found: list[Entry | Damage]) -> list[Damage]:
    return [entry for entry in found if isinstance(entry, Damage)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    assert payloads(found) == PAYLOADS
    assert found[-1].end == len(WHOLE)
    assert not damages(found)


@pytest.mark.parametrize("over", [False, True])
def test_reading_goes_on_behind_each_entry(tmp_path: Path, over: bool) -> None:
    found = read(tmp_path, WHOLE)
    for place, entry in enumerate(found, 1):
        assert read(tmp_path, WHOLE, entry.end, over=over) == found[place:]


@pytest.mark.parametrize("over", [False, True])
def test_of_every_beginning_of_a_segment_its_whole_entries_are_read(
    tmp_path: Path, over: bool
) -> None:
    """A write that was torn by the end of its process, or is under way, at each of its bytes."""
    ends = [entry.end for entry in read(tmp_path, WHOLE)]
    for size in range(len(WHOLE)):
        found = read(tmp_path, WHOLE[:size], over=over)
        assert payloads(found) == PAYLOADS[: sum(end <= size for end in ends)], size
        begun = max((end for end in [len(MAGIC), *ends] if end <= size), default=0)
        torn = Damage(size - begun, size, torn=size > len(MAGIC))
        assert damages(found) == ([torn] if over and size not in (len(MAGIC), *ends) else [])


def test_each_damaged_byte_costs_one_entry_and_is_noticed(tmp_path: Path) -> None:
    content = MAGIC + b"".join(framed(payload) for payload in (b"aaaa", b"bbbb", b"cccc"))
    size = len(framed(b"aaaa"))
    for place in range(len(MAGIC), len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xA5
        lost = (place - len(MAGIC)) // size
        found = read(tmp_path, bytes(damaged))
        left = [b"aaaa", b"bbbb", b"cccc"]
        del left[lost]
        assert payloads(found) == left, place
        end = len(MAGIC) + (lost + 1) * size
        [damage] = damages(found)
        assert (damage.size, damage.end) == (size, end)
        # Of the last entry a length that grew says that it was torn.
        assert damage.torn == (place in range(len(content) - size, len(content) - size + 3))
        before = read(tmp_path, bytes(damaged), over=False)
        assert payloads(before) == left[:lost], "nobody looks behind what may still be written"


def test_pages_that_never_reached_the_disk_are_no_entries(tmp_path: Path) -> None:
    zeros = bytes(4096)
    found = read(tmp_path, MAGIC + framed(b"a") + zeros)
    assert payloads(found) == [b"a"]
    assert [(each.size, each.torn) for each in damages(found)] == [(4096, False)]
    found = read(tmp_path, MAGIC + framed(b"a") + zeros + framed(b"b"))
    assert payloads(found) == [b"a", b"b"]
    assert [(each.size, each.torn) for each in damages(found)] == [(4096, False)]
    assert read(tmp_path, zeros) == [Damage(4096, 4096, torn=False)]


def test_entries_are_counted_up_to_a_number(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    ends = [len(MAGIC), *(entry.end for entry in read(tmp_path, WHOLE))]
    path.write_bytes(WHOLE + framed(b"torn")[:5])
    with path.open("rb") as file:
        assert count(file, 0, 100, but=1) == (4, ends[-1])
        assert [count(file, end, 100, but=1)[0] for end in ends] == [4, 3, 2, 1, 0]
        assert count(file, 0, 3, but=1) == (3, ends[-2])
        assert count(file, ends[-1], 100, but=1) == (0, ends[-1])
        assert count(file, 0, 100, but=PAYLOADS[0][0])[0] == 3


def test_what_is_no_segment_has_no_entries_until_it_is_over(tmp_path: Path) -> None:
    of_another_form = b"tlkjrn1\x01" + framed(b"a")
    assert read(tmp_path, of_another_form, over=False) == []
    found = read(tmp_path, of_another_form)
    assert payloads(found) == [b"a"]
    assert damages(found) == [Damage(len(MAGIC), len(MAGIC), torn=False)]
    assert read(tmp_path, b"", over=False) == []
    assert read(tmp_path, b"") == [Damage(0, 0, torn=False)]


@pytest.mark.parametrize("over", [False, True])
def test_another_version_is_not_read(over: bool, tmp_path: Path) -> None:
    with pytest.raises(OtherVersion, match="version 99"):
        read(tmp_path, MAGIC[:-1] + b"\x63" + framed(b"a"), over=over)
    assert read(tmp_path, MAGIC[:-1], over=False) == []


@pytest.mark.parametrize("rest", [b"\xff" * 50, framed(b"x" * 50)[:20] + b"?" * 200, b"\x01" * 8])
def test_what_can_be_no_beginning_of_an_entry_is_damage(tmp_path: Path, rest: bytes) -> None:
    found = read(tmp_path, WHOLE + rest)
    assert payloads(found) == PAYLOADS
    assert damages(found) == [Damage(len(rest), len(WHOLE + rest), torn=False)]


def test_names_sort_as_the_segments_were_written(tmp_path: Path) -> None:
    older = Name("1789999999999-99999-ffffffff", 2)
    names = [older, older.next(), Name(OWNER, 1), Name(OWNER, 999_999), Name(OWNER, 1_000_000)]
    for name in reversed(names):
        (tmp_path / str(name)).touch()
    for other in ("shipper", f"{OWNER}.000001.damaged", f"{OWNER}.000002.new", "x.segment"):
        (tmp_path / other).touch()
    assert listed(tmp_path) == names
    assert listed(tmp_path / "nowhere") == []
    assert [Name.of(str(name)) for name in names] == names


def test_a_segment_is_sealed_once_nobody_has_it_locked(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    with path.open("wb") as owner, path.open("rb") as reader:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert not sealed(reader)
        fcntl.flock(owner, fcntl.LOCK_UN)
        assert sealed(reader)
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking has locked nothing
