"""Rates, the table that counts them, and the limit on credentials that do not count."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.errors import TooManyRequests
from sse_app.limits import COUNT_MAX, KEYS_MAX, SLACK, STEPS, Failures, Limiter, Rate
from tests.support.peers import Clock

PUBLIC = "9.9.9.9"


# Rates


@pytest.mark.parametrize(
    ("text", "rate"),
    [("30/m", Rate(30, "m", 30)), ("20/s", Rate(20, "s", 20)), ("10/s:50", Rate(10, "s", 50)), ("1/h", Rate(1, "h", 1)),
     ("1000000/s:1", Rate(1_000_000, "s", 1)), ("0", Rate(0))],
)  # fmt: skip
def test_a_rate_is_read_and_written(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert str(rate) == text
    assert bool(rate) == (text != "0")


@pytest.mark.parametrize(
    "text",
    ["", "30", "0/m", "0/m:5", "00", "-1/s", "30/", "/m", "30/d", "30/M", "30 /m", "30/m ", "30/m:", "30/m:0",
     "30/min", "1.5/s", "٣/m", "1000001/s", "1/s:1000001", "30/m:5:5", "1_0/s", "off", "9" * 5000 + "/s"],
    ids=lambda text: ascii(text[:10]),
)  # fmt: skip
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a rate such as"):
        Rate.parse(text)


@pytest.mark.parametrize("wrong", [(-1,), (1, "d"), (1, "s", 0), (COUNT_MAX + 1,), (1, "s", COUNT_MAX + 1)])
def test_a_rate_that_is_none_cannot_be_made(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="a rate such as"):
        Rate(*wrong)


def test_a_rate_is_evenly_spread() -> None:
    assert (Rate.parse("30/m").interval, Rate.parse("20/s:1").interval, Rate.parse("1/h").interval) == (2, 0.05, 3600)


# The table


def test_after_its_burst_a_key_waits_from_one_time_to_the_next() -> None:
    clock, rate = Clock(1_000.0), Rate.parse("30/m")
    limiter = Limiter(clock=clock)
    assert [limiter.take("a", rate) for _ in range(30)] == [0] * 30
    assert limiter.take("a", rate) == limiter.wait("a", rate) == pytest.approx(2)
    clock.now += 1
    assert limiter.take("a", rate) == pytest.approx(1)
    clock.now += 1
    assert limiter.wait("a", rate) == limiter.take("a", rate) == 0
    assert limiter.take("a", rate) == pytest.approx(2)
    clock.now += 60
    assert [limiter.take("a", rate) for _ in range(30)] == [0] * 30
    assert limiter.take("a", rate) > 0


def test_asking_how_long_counts_nothing() -> None:
    limiter, rate = Limiter(clock=Clock()), Rate.parse("1/s")
    assert [limiter.wait("a", rate) for _ in range(9)] == [0] * 9
    assert len(limiter) == 0


def test_one_table_serves_several_limits() -> None:
    limiter = Limiter(clock=Clock())
    slow, fast = Rate.parse("1/h"), Rate.parse("5/s")
    assert limiter.take(("slow", "a"), slow) == 0
    assert limiter.take(("slow", "a"), slow) == pytest.approx(3600)
    assert [limiter.take(("fast", "a"), fast) for _ in range(5)] == [0] * 5
    assert limiter.take(("fast", "a"), fast) == pytest.approx(0.2)


STEP = st.tuples(st.floats(0, 3), st.sampled_from("abcdefgh"))


@given(st.lists(STEP, max_size=200), st.integers(1, 20), st.integers(1, 8))
def test_no_key_gets_more_than_its_rate_nor_waits_longer_than_told(
    steps: list[tuple[float, str]], count: int, burst: int
) -> None:
    clock, rate = Clock(50_000.0), Rate(count, "s", burst)
    limiter = Limiter(clock=clock)
    taken: dict[str, list[float]] = {}
    for pause, key in steps:
        clock.now += pause
        wait = limiter.take(key, rate)
        if not wait:
            taken.setdefault(key, []).append(clock.now)
            continue
        assert wait <= rate.interval + SLACK
        clock.now += wait
        assert limiter.wait(key, rate) == 0
    for times in taken.values():
        for first, start in enumerate(times):
            for more, end in enumerate(times[first:], 1):
                assert more <= burst + (end - start + SLACK) / rate.interval + 1e-6


@given(st.lists(STEP, max_size=200), st.integers(1, 4))
def test_a_full_table_refuses_nobody_that_an_endless_one_lets_pass(steps: list[tuple[float, str]], keys: int) -> None:
    clock, rate = Clock(), Rate(1, "s", 2)
    small, endless = Limiter(keys, clock), Limiter(clock=clock)
    for pause, key in steps:
        clock.now += pause
        passed = small.take(key, rate) == 0
        assert passed or endless.take(key, rate) > 0
        if passed:
            endless.take(key, rate)
        assert len(small) <= keys


def test_of_a_full_table_spent_keys_go_before_those_that_are_in_use() -> None:
    clock, rate = Clock(), Rate(1, "s", 60)
    limiter = Limiter(keys=100, clock=clock)
    for _ in range(60):
        limiter.take("busy", rate)
    for number in range(99):
        limiter.take(number, rate)
    clock.now += 2  # all but one are spent
    for number in range(500, 1_000):
        limiter.take(number, rate)
        clock.now += 0.01
    assert limiter.wait("busy", Rate(1, "s", 1)) > 0


def test_spent_keys_do_not_stay() -> None:
    clock, rate = Clock(), Rate(1, "s", 1)
    limiter = Limiter(clock=clock)
    for number in range(1_000):
        limiter.take(number, rate)
    clock.now += 10
    for number in range(1_000, 1_000 + 1_000 // STEPS + 1):
        limiter.take(number, rate)
    assert len(limiter) <= 1_000 // STEPS + 1


def test_a_flood_of_addresses_fills_no_memory() -> None:
    limiter, rate = Limiter(clock=Clock()), Rate.parse("30/m")
    for number in range(KEYS_MAX + 10_000):
        assert limiter.take(number, rate) == 0
    assert len(limiter) == KEYS_MAX


# Credentials that do not count


def failures(rate: str = "3/m", proxies: bool = False) -> tuple[Failures, Clock]:
    clock = Clock()
    return Failures(Rate.parse(rate), proxies=proxies, limiter=Limiter(clock=clock)), clock


def test_who_guesses_is_refused_without_a_look_until_the_time_told() -> None:
    limit, clock = failures()
    for _ in range(3):
        limit.check(PUBLIC)
        limit.count(PUBLIC)
    limit.check("9.9.9.10")
    with pytest.raises(TooManyRequests, match="failed_credentials") as caught:
        limit.check(PUBLIC)
    assert caught.value.wait == pytest.approx(20)
    limit.count(PUBLIC)  # of a request that was checked earlier
    clock.now += caught.value.wait
    limit.check(PUBLIC)


def test_whose_credentials_are_good_is_never_refused() -> None:
    limit, _ = failures()
    for _ in range(100):
        limit.check(PUBLIC)


def test_the_addresses_of_one_customer_are_one() -> None:
    limit, _ = failures()
    for number in range(3):
        limit.count(f"2620:fe::{number}")
    with pytest.raises(TooManyRequests):
        limit.check("2620:fe::ffff:9")
    limit.check("2620:fe:0:1::1")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.0.1", "fd00::1", "100.64.0.1", "unix"])
def test_behind_a_proxy_that_nobody_named_there_is_no_limit_for_all(address: str) -> None:
    limit, _ = failures()
    for _ in range(100):
        limit.count(address)
        limit.check(address)


def test_behind_one_that_is_named_every_address_has_its_limit() -> None:
    limit, _ = failures(proxies=True)
    for _ in range(3):
        limit.count("10.0.0.1")
    with pytest.raises(TooManyRequests):
        limit.check("10.0.0.1")
    limit.check("10.0.0.2")


def test_the_limit_may_be_off() -> None:
    limit, _ = failures("0")
    for _ in range(100):
        limit.count(PUBLIC)
        limit.check(PUBLIC)
