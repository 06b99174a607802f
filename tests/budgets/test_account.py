from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.budget import Budget
from proxy.budgets.account import SLICES, Account, Lease, Reservation
from proxy.periods import HOUR_MS

NOON = 1_735_732_800_000
LEASE = 60


def account(limit: int = 1000, period: str = "day") -> Account:
    return Account(Budget("b", "b", limit, period))


def with_lease(amount: int, **more: int) -> Account:
    made = account(**more)
    made.lease = Lease("l", made.starts(NOON))
    made.lease.amount, made.lease.until = amount, 100.0
    return made


def test_what_is_leased_can_be_reserved_and_no_more() -> None:
    made = with_lease(10)
    assert made.reserve(6, NOON, 0.0) is not None
    assert made.reserve(6, NOON, 0.0) is None
    held = made.reserve(4, NOON, 0.0)
    assert held is not None
    held.release()
    assert made.reserve(4, NOON, 0.0) is not None


def test_what_is_used_comes_not_back() -> None:
    made = with_lease(10)
    held = made.reserve(6, NOON, 0.0)
    assert held is not None
    held.use(8)
    held.release()
    assert made.lease is not None
    assert made.lease.free == 2


def test_a_lease_ends_with_its_time_and_with_its_window() -> None:
    assert with_lease(10).reserve(1, NOON, 100.0) is None
    assert with_lease(10).reserve(1, NOON + 24 * HOUR_MS, 0.0) is None
    assert with_lease(10).reserve(1, NOON - 24 * HOUR_MS, 0.0) is None  # a clock set back
    rolling = Account(Budget("b", "b", 10, "24h"))
    rolling.lease = Lease("l", rolling.starts(NOON))
    rolling.lease.amount, rolling.lease.until = 10, 100.0
    assert rolling.reserve(1, NOON + 24 * HOUR_MS, 0.0) is not None


def test_a_window_is_the_present_one() -> None:
    day, rolling = account(), Account(Budget("b", "b", 10, "24h"))
    assert day.window(NOON + HOUR_MS) == day.window(NOON)
    assert day.window(NOON).start == NOON - NOON % (24 * HOUR_MS)
    assert rolling.window(NOON).end == NOON + HOUR_MS
    assert rolling.window(NOON + HOUR_MS).end == NOON + 2 * HOUR_MS
    assert rolling.window(NOON - HOUR_MS).end == NOON


def test_what_is_leased_beyond_need_shrinks_towards_the_limit() -> None:
    made = account(limit=100_000)
    spare = [made.grant(left, 100) - 100 for left in (100_000, 8_000, 4_000, 700)]
    assert spare == [1000, 1000, 500, 0]
    assert made.grant(100, 100) == 100
    assert made.grant(99, 100) == 0


def test_all_that_wait_are_served_at_once_as_far_as_it_goes() -> None:
    made = account(limit=1000)
    made.wanted = 5000
    assert made.grant(1000, 50) == 1000


def test_what_is_known_to_be_short_needs_no_question() -> None:
    made = with_lease(10)
    assert not made.short(50, NOON, 0.0)
    made.hear(5, 0, made.starts(NOON), 1.0)
    assert made.short(50, NOON, 0.5)
    assert not made.short(15, NOON, 0.5)  # with what is leased it is enough
    assert not made.short(50, NOON, 1.0)  # nobody knows any more
    assert not made.short(50, NOON + 24 * HOUR_MS, 0.5)  # nor of the next window
    made.adopt(Budget("b", "b", 5, "day"))
    assert not made.short(50, NOON, 0.5)  # nor after the limit has changed


def test_what_calls_let_go_is_for_others_where_little_is_left() -> None:
    made = with_lease(400, limit=1000)
    held = made.reserve(300, NOON, 0.0)
    assert held is not None
    made.left = 80
    assert made.hoards  # 100 of what was leased is free
    made.trim(idle=False)
    assert made.lease is not None
    assert (made.lease.amount, made.left) == (300 + 1000 // SLICES, 170)
    assert not made.hoards
    held.use(20)
    held.release()
    assert made.hoards
    made.trim(idle=True)
    assert (made.lease.amount, made.lease.free, made.left) == (20, 0, 460)
    made.lease.used += 50  # a call cost more than was thought
    made.trim(idle=True)
    assert made.lease.amount == 20


def test_what_is_reserved_is_not_spent_yet() -> None:
    made = with_lease(400, limit=1000)
    made.hear(0, 500, made.starts(NOON), 1.0)
    held = made.reserve(300, NOON, 0.0)
    assert held is not None
    assert made.unspent == 500
    held.use(120)
    assert made.unspent == 380


class World:
    """Processes, and the ledger as the database keeps it: what is spent, and who holds what until
    when. Rows are written after the calls, in any order with everything else."""

    def __init__(self, limit: int, processes: int) -> None:
        self.limit = limit
        self.now = 0
        self.spent = 0
        self.leases: dict[str, list[int]] = {}  # amount, spent, until
        self.budget = Budget("b", "b", limit, "day")
        self.accounts = [Account(self.budget) for _ in range(processes)]
        self.open: list[tuple[int, Reservation, int]] = []
        self.unwritten: list[tuple[str, int]] = []
        self.late = 0  # spent by leases whose time was over when the row came
        self.beyond = 0  # what calls cost beyond their estimate
        self.made = 0

    @property
    def leased(self) -> int:
        return sum(max(a - s, 0) for a, s, until in self.leases.values() if until > self.now)

    def reserve(self, process: int, amount: int) -> None:
        one = self.accounts[process]
        held = one.reserve(amount, NOON, self.now)
        if held is None:
            lease = one.current(NOON, self.now)
            if lease is None:
                self.made += 1
                lease = Lease(f"l{self.made}", one.starts(NOON))
            left = self.limit - self.spent - self.leased
            granted = one.grant(left, amount)
            one.hear(left - granted, self.spent, lease.start, self.now + 1)
            if not granted:
                return
            of_lease = self.leases.setdefault(lease.id, [0, 0, 0])
            of_lease[0] += granted
            of_lease[2] = self.now + LEASE
            lease.amount += granted
            lease.until = self.now + LEASE
            one.lease = lease
            held = one.reserve(amount, NOON, self.now)
            assert held is not None
        assert self.leases[held.lease.id][2] > self.now  # nobody else has it
        self.open.append((process, held, amount))

    def burst(self, process: int, amount: int) -> None:
        """Many want as much at once, of which some give up."""
        self.accounts[process].wanted = 10 * amount
        for _ in range(3):
            self.reserve(process, amount)
        self.accounts[process].wanted = 0

    def settle(self, place: int, extra: int) -> None:
        """A call is over, at its estimate or beyond; 0 or less is a part of it."""
        if self.open:
            _, held, amount = self.open.pop(place % len(self.open))
            cost = max(0, amount + extra)
            self.beyond += max(0, extra)
            held.use(cost)
            held.release()
            self.unwritten.append((held.lease.id, cost))

    def write(self, place: int) -> None:
        if self.unwritten:
            lease, cost = self.unwritten.pop(place % len(self.unwritten))
            of_lease = self.leases[lease]
            if of_lease[2] <= self.now:
                self.late += cost
            of_lease[1] += cost
            self.spent += cost

    def crash(self, process: int) -> None:
        """Its calls are gone, its journal is not."""
        self.accounts[process] = Account(self.budget)
        self.open = [each for each in self.open if each[0] != process]

    def renew(self, process: int, idle: int) -> None:
        account = self.accounts[process]
        lease = account.current(NOON, self.now)
        if lease is not None:
            account.trim(idle=bool(idle))
            assert lease.free <= (0 if idle else self.limit // SLICES)
            self.leases[lease.id][0] = lease.amount
            self.leases[lease.id][2] = self.now + LEASE
            lease.until = self.now + LEASE


STEPS = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 2), st.integers(1, 60)),
    st.tuples(st.just("burst"), st.integers(0, 2), st.integers(1, 60)),
    st.tuples(st.just("settle"), st.integers(0, 50), st.integers(-30, 10)),
    st.tuples(st.just("write"), st.integers(0, 50), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("renew"), st.integers(0, 2), st.integers(0, 1)),
    st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(limit=st.integers(10, 5000), steps=st.lists(STEPS, max_size=120))
def test_any_interleaving_keeps_the_limit_and_ends_with_nothing_reserved(
    limit: int, steps: list[tuple[str, int, int]]
) -> None:
    world = World(limit, 3)
    for step, first, second in steps:
        match step:
            case "reserve":
                world.reserve(first, second)
            case "burst":
                world.burst(first, second)
            case "settle":
                world.settle(first, second)
            case "write":
                world.write(first)
            case "crash":
                world.crash(first)
            case "renew":
                world.renew(first, second)
            case _:
                world.now += first
        assert world.spent + world.leased <= limit + world.late + world.beyond
    while world.open:
        world.settle(0, 0)
    while world.unwritten:
        world.write(0)
    assert world.spent <= limit + world.late + world.beyond
    assert all(one.lease is None or one.lease.reserved == 0 for one in world.accounts)
    world.now += LEASE
    assert world.leased == 0
