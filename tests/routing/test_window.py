from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.window import BUCKETS, Window


def test_an_event_counts_until_the_window_has_passed() -> None:
    window = Window(10)
    window.add(100.5)
    assert window.total(109.9) == 1
    assert window.total(110) == 0


def test_a_long_silence_empties_it() -> None:
    window = Window(10)
    for now in range(10):
        window.add(now)
    assert window.total(1e9) == 0
    window.add(1e9)
    assert window.total(1e9) == 1


def test_clearing_forgets_all() -> None:
    window = Window(10)
    window.add(1)
    window.clear()
    assert window.total(1) == 0
    window.add(2)
    assert window.total(2) == 1


@given(
    st.sampled_from([0.3, 1.0, 10.0, 30.0]),
    st.lists(st.tuples(st.floats(0, 12), st.booleans()), max_size=60),
)
def test_the_sum_is_that_of_the_last_ten_buckets(
    seconds: float, events: list[tuple[float, bool]]
) -> None:
    window, now, seen = Window(seconds), 1000.0, []
    for wait, counted in events:
        now += wait * seconds / 10
        bucket = now // (seconds / BUCKETS)
        if counted:
            window.add(now)
            seen.append(bucket)
        assert window.total(now) == sum(1 for each in seen if each > bucket - BUCKETS)
