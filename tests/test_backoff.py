"""The waits between attempts: their growth, their bounds, and their randomness."""

import pytest

from sse_app.backoff import DOUBLINGS, Backoff


def test_each_wait_is_in_the_upper_half_of_twice_the_one_before() -> None:
    backoff = Backoff(0.5, 30)
    for ceiling in (0.5, 1, 2, 4, 8, 16, 30, 30):
        assert ceiling / 2 <= backoff.next() <= ceiling
    assert backoff.failures == 8


def test_after_a_success_it_begins_anew() -> None:
    backoff = Backoff(1, 60)
    for _ in range(5):
        backoff.next()
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() <= 1


def test_a_server_may_name_another_first_wait_in_between() -> None:
    backoff = Backoff(1, 60)
    backoff.next()
    assert 10 <= backoff.next(10) <= 20
    assert 2 <= backoff.next(0.1) <= 4, "but not a shorter one"


@pytest.mark.parametrize("failures", [0, 1, 5, DOUBLINGS, 10_000])  # 2.0 ** 1024 is an OverflowError
def test_however_often_it_fails_the_wait_is_bounded_and_at_random(failures: int) -> None:
    backoff, waits = Backoff(0.5, 30), set()
    for _ in range(20):
        backoff.failures = failures
        waits.add(backoff.next())
    ceiling = min(30, 0.5 * 2 ** min(failures, 100))
    assert len(waits) > 1
    assert ceiling / 2 <= min(waits) <= max(waits) <= ceiling
