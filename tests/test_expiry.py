"""Expiry: streams whose grants end, by a wall clock that may jump."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers.memory import MemoryBroker
from sse_app.expiry import Expiry
from sse_app.grants import Grant
from sse_app.metrics import Totals
from sse_app.subscriber import Subscriber
from sse_app.topics import TopicFilter
from tests.support.peers import Clock

BEGIN = 1_700_000_000.0  # Unix time
BROKER, TOTALS = MemoryBroker(), Totals()


def stream(expires: float | None) -> Subscriber:
    grant = Grant(subscribe=TopicFilter(), expires=expires)
    return Subscriber(BROKER, TOTALS, TopicFilter(), "c", 10, 1_000, grant=grant)


class Wheel:
    """An Expiry on a clock of its own; ``ended`` has the subscribers in the order of their ends."""

    def __init__(self, max_age: float | None = None) -> None:
        self.clock = Clock(BEGIN)
        self.expiry = Expiry(lambda subscriber: None, max_age=max_age, wall=self.clock)

    def add(self, expires: float | None) -> Subscriber:
        subscriber = stream(expires)
        self.expiry.add(subscriber)
        return subscriber

    def at(self, seconds: float) -> list[Subscriber]:
        self.clock.now = BEGIN + seconds
        return self.expiry.take_due()


@pytest.mark.parametrize(("expires", "before", "then"), [(5.0, 4.99, 5.0), (5.01, 5.99, 6.0), (4.5, 4.9, 5.1)])
def test_a_stream_ends_within_a_second_after_its_grant_and_not_before(
    expires: float, before: float, then: float
) -> None:
    wheel = Wheel()
    subscriber = wheel.add(BEGIN + expires)
    assert wheel.at(before) == []
    assert wheel.at(then) == [subscriber]
    assert wheel.at(then + 1) == []
    assert len(wheel.expiry) == 0


def test_a_stream_that_has_left_is_not_ended() -> None:
    wheel = Wheel()
    gone, there, never = wheel.add(BEGIN + 5), wheel.add(BEGIN + 5), wheel.add(None)
    for subscriber in (gone, never, gone):
        wheel.expiry.remove(subscriber)
    assert wheel.at(10) == [there]
    wheel.expiry.remove(there)
    assert len(wheel.expiry) == 0


@pytest.mark.parametrize(("expires", "ends"), [(None, 100), (50.0, 50), (1_000.0, 100)])
def test_no_stream_is_older_than_the_longest_age(expires: float | None, ends: float) -> None:
    wheel = Wheel(max_age=100)
    subscriber = wheel.add(None if expires is None else BEGIN + expires)
    assert wheel.at(ends - 1) == []
    assert wheel.at(ends) == [subscriber]


def test_a_clock_that_is_set_forward_ends_all_that_has_expired_by_it() -> None:
    wheel = Wheel()
    first, second, third = wheel.add(BEGIN + 5), wheel.add(BEGIN + 86_400), wheel.add(BEGIN + 90_000)
    assert wheel.at(86_401) == [first, second]
    assert wheel.at(90_001) == [third]


def test_a_clock_that_is_set_back_is_followed() -> None:
    wheel = Wheel()
    wheel.at(1_000)
    early = wheel.add(BEGIN + 1_500)
    wheel.clock.now = BEGIN + 100
    added_before_it_is_read = wheel.add(BEGIN + 150)
    assert wheel.at(100) == []
    added_after = wheel.add(BEGIN + 120)
    assert wheel.at(121) == [added_after]
    assert wheel.at(151) == [added_before_it_is_read]
    assert wheel.at(1_499) == []
    assert wheel.at(1_500) == [early]


def test_a_grant_that_has_expired_when_its_stream_begins_ends_it_in_the_next_second() -> None:
    wheel = Wheel()
    wheel.at(10.5)
    late = wheel.add(BEGIN + 3)
    assert wheel.at(10.9) == []
    assert wheel.at(11) == [late]


class CountedDict(dict[int, set[Subscriber]]):
    """A dict that counts look-ups by which seconds are taken."""

    look_ups = 0

    def pop(self, key: int, default: object = None) -> set[Subscriber]:
        self.look_ups += 1
        return super().pop(key, set())


def test_a_look_takes_as_many_steps_as_seconds_have_passed_or_are_held() -> None:
    wheel = Wheel()
    due = wheel.expiry._due = CountedDict()
    for number in range(1, 1_001):
        wheel.add(BEGIN + 1_000_000 + number)
    wheel.at(1)
    assert due.look_ups == 1
    wheel.at(1_000_000)
    assert due.look_ups == 1  # all that is held was looked through, and nothing of it taken
    assert len(wheel.at(2_000_000)) == 1_000
    assert due.look_ups == 1_001


steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 60)),
    st.tuples(st.just("jump"), st.integers(-50, 50)),
    st.tuples(st.just("remove"), st.integers(0, 100)),
)


@given(st.lists(steps, max_size=40))
def test_whatever_the_clock_does_each_stream_ends_once_in_the_first_look_after_its_grant(
    story: list[tuple[str, int]],
) -> None:
    wheel = Wheel()
    open_ones = dict[Subscriber, float]()
    for what, number in story:
        if what == "add":
            open_ones[wheel.add(wheel.clock.now + number)] = wheel.clock.now + number
        elif what == "remove" and open_ones:
            subscriber = list(open_ones)[number % len(open_ones)]
            del open_ones[subscriber]
            wheel.expiry.remove(subscriber)
        else:
            taken = wheel.at(wheel.clock.now - BEGIN + number)
            assert len(set(taken)) == len(taken)
            # One that had expired when it was added, or when the clock was set back, may have a second more.
            assert {one for one, expires in open_ones.items() if expires <= wheel.clock.now - 1} <= set(taken)
            assert all(open_ones.pop(one) <= wheel.clock.now for one in taken)
        assert len(wheel.expiry) == len(open_ones)
