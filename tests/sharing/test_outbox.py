"""What waits to be sent: in which order, what is sent again, and that it stays bounded."""

from __future__ import annotations

from proxy.sharing import outbox as module
from proxy.sharing.outbox import Outbox, longer
from proxy.sharing.types import Rest, Settlement


def rest(place: str, until: int = 1000, count: int = 1) -> Rest:
    return Rest(place, until, "r", "s", count)


def off(difference: int) -> Settlement:
    return Settlement("w", 60, None, difference, 0)


def test_what_was_put_in_comes_out_once() -> None:
    box = Outbox()
    assert not box
    box.rest(rest("a"), 0)
    box.lift(["b"])
    box.settle(off(1))
    assert box
    assert box.urgent
    box.row(b"{}")
    box.free("s", "t")
    assert box.frees
    assert box.take() == (["b"], [rest("a")], [off(1)], [b"{}"], [("s", "t")])
    assert not box.frees
    assert not box


def test_a_settlement_alone_is_not_urgent() -> None:
    box = Outbox()
    box.settle(off(1))
    assert box
    assert not box.urgent


def test_a_lift_ends_the_rest_before_it_and_not_the_one_after() -> None:
    box = Outbox()
    box.rest(rest("a"), 0)
    box.lift(["a"])
    assert box.take() == (["a"], [], [], [], [])
    box.lift(["a"])
    box.rest(rest("a"), 0)
    assert box.take() == (["a"], [rest("a")], [], [], [])


def test_two_rests_of_one_place_become_the_longer() -> None:
    box = Outbox()
    box.rest(rest("a", 1000, 1), 0)
    box.rest(rest("a", 900, 2), 0)
    assert box.take().rests == [rest("a", 1000, 2)]
    box.rest(rest("a", 1900, 1), now=1000)  # the first is over
    assert box.take().rests == [rest("a", 1900, 1)]


def test_the_longer_rest_has_the_larger_count() -> None:
    assert longer(rest("a", 5, 1), rest("a", 4, 2)) == rest("a", 5, 2)
    assert longer(rest("a", 4, 3), rest("a", 5, 2)) == rest("a", 5, 3)


def test_what_comes_back_is_sent_again_but_for_settlements_and_rows() -> None:
    box = Outbox()
    box.rest(rest("a"), 0)
    box.rest(rest("b"), 0)
    box.lift(["c"])
    box.settle(off(1))
    box.row(b"{}")
    box.free("s", "t")
    batch = box.take()
    box.lift(["b"])
    box.put_back(batch)
    assert box.take() == (["c", "b"], [rest("a")], [], [], [("s", "t")])


def test_what_was_published_is_published_again_until_it_is_lifted_or_gone() -> None:
    box = Outbox()
    for place in "abc":
        box.rest(rest(place), 0)
    box.take()
    box.lift(["a"])
    box.forget(["c"])  # the server no longer knows of b
    box.again()
    assert box.take().rests == [rest("c")]


def test_what_is_not_sent_yet_is_not_forgotten() -> None:
    box = Outbox()
    box.rest(rest("a"), 0)
    box.forget([])
    assert box.take().rests == [rest("a")]


def test_what_waits_lies_over_what_the_server_knows() -> None:
    box = Outbox()
    box.rest(rest("a", 1000, 3), 0)
    box.rest(rest("new"), 0)
    box.lift(["b"])
    known = box.over([rest("a", 2000), rest("b"), rest("c")])
    assert known == {"a": rest("a", 2000, 3), "c": rest("c"), "new": rest("new")}


def test_it_is_bounded_and_the_oldest_goes() -> None:
    box = Outbox()
    for number in range(module.PLACES + 1):
        box.rest(rest(str(number)), 0)
        box.lift([f"l{number}"])
    for number in range(module.SETTLEMENTS + 1):
        box.settle(off(number))
    lifts, rests, offs, *_ = box.take()
    assert (lifts[0], len(lifts)) == ("l1", module.PLACES)
    assert (rests[0].place, len(rests)) == ("1", module.BATCH)
    assert (offs[0].difference, len(offs)) == (1, module.BATCH)
    sent = module.BATCH
    while box:
        sent += len(box.take().rests)
    assert sent == module.PLACES


def test_of_too_many_rows_the_oldest_is_left_out() -> None:
    box = Outbox()
    for number in range(module.ROWS + 1):
        box.row(b"%d" % number)
    rows: list[bytes] = []
    while batch := box.take().rows:
        assert len(batch) <= module.BATCH
        rows += batch
    assert (rows[0], len(rows)) == (b"1", module.ROWS)
