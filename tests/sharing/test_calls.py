"""Calls of scripts, and their replies."""

from __future__ import annotations

import msgspec

from proxy.sharing import scripts
from proxy.sharing.calls import Calls, denial, rests
from proxy.sharing.types import Rest, Settlement, WindowClaim

REST = Rest("place", 1_700_000_000_000, "r", "s", 1)
WINDOWS = [WindowClaim("w", 5, 60, 2), WindowClaim("d", 9, 86_400, 3, 7)]
CALLS = Calls("mine")


def test_all_keys_carry_the_prefix_in_braces_so_that_a_cluster_keeps_them_together() -> None:
    calls = [
        CALLS.claim(["a"], WINDOWS, "p", 1, "t"),
        CALLS.rest(REST),
        CALLS.lift(["a"]),
        CALLS.settle(Settlement("w", 60, None, 1, 1)),
        CALLS.refresh("n"),
        CALLS.leave("n"),
        CALLS.windows(),
    ]
    keys = [key for call in calls for key in call.keys]
    assert all(key.startswith("{mine}:") for key in [*keys, CALLS.channel])


def test_a_claim_carries_everything_that_is_decided_on() -> None:
    call = CALLS.claim(["a", "b"], WINDOWS, "p", 99, "token")
    assert call.script is scripts.CLAIM
    assert call.keys[2:] == ["{mine}:probe:p", "{mine}:sliding:60:w", "{mine}:fixed:7:d"]
    assert call.args == ["token", 99, 2, "a", "b", 5, 2, 60, "", 9, 3, 86_400, 7]
    assert CALLS.claim([], [], None, 99, "token").args[0] == ""


def test_a_settlement_finds_the_window_of_its_claim() -> None:
    claimed = CALLS.claim([], WINDOWS, None, 1, "t").keys[3:]
    settled = [
        CALLS.settle(Settlement(each.name, each.seconds, each.start, 1, 1)).keys[0]
        for each in WINDOWS
    ]
    assert settled == claimed


def test_windows_are_counted_by_their_kind_and_named_as_they_were_claimed() -> None:
    keys = ["{mine}:sliding:60:a:b", "{mine}:fixed:7:c"]
    assert CALLS.count(keys).args == ["60", ""]
    assert [CALLS.window_name(key) for key in keys] == ["a:b", "c"]


def test_a_reply_names_who_said_no() -> None:
    asked = (["a", "b"], WINDOWS, "p")
    assert denial([0, 1_700_000_000_000], *asked) is None
    place = denial([1, 2, 1500, msgspec.json.encode(REST)], *asked)
    assert place is not None
    assert (place.name, place.wait, place.rest) == ("b", 1.5, REST)
    window = denial([2, 1, 20], *asked)
    assert window is not None
    assert (window.name, window.wait, window.rest) == ("w", 0.02, None)
    probe = denial([3, 0, -2], *asked)
    assert probe is not None
    assert probe.name == "p"
    assert 0 < probe.wait < 1


def test_a_rest_that_cannot_be_read_is_passed_over() -> None:
    good = msgspec.json.encode(REST)
    assert list(rests([b"{}", good, b"\xff", b'{"place": 1}'])) == [REST]
