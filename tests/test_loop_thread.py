"""An event loop in a thread of its own: opened by its first user, closed by any thread, never blocking the exit."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest

from sse_app.errors import Closed
from sse_app.loop_thread import LoopThread
from tests.support.peers import PATIENCE


class Counter:
    """A resource that records its thread and loop."""

    def __init__(self, failure: Exception | None = None, at_the_end: Exception | None = None) -> None:
        self.failure, self.at_the_end = failure, at_the_end
        self.threads: list[threading.Thread] = []
        self.called = threading.Event()
        self.cancelled = threading.Event()
        self.is_open = False

    async def __aenter__(self) -> Self:
        if self.failure is not None:
            raise self.failure
        self.threads.append(threading.current_thread())
        self.is_open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self.is_open = False
        if self.at_the_end is not None:
            raise self.at_the_end

    async def name(self) -> str:
        return threading.current_thread().name

    async def fail(self) -> None:
        raise ZeroDivisionError

    async def stay(self) -> None:
        self.called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
def made() -> list[Counter]:
    return []


@pytest.fixture
def thread(made: list[Counter]) -> Iterator[LoopThread[Counter]]:
    def make() -> Counter:
        made.append(Counter())
        return made[-1]

    thread = LoopThread("Counter", make, reopens=True)
    yield thread
    thread.close()


def test_the_first_call_opens_it_and_all_share_it(thread: LoopThread[Counter], made: list[Counter]) -> None:
    assert not made[0].threads
    with ThreadPoolExecutor(8) as threads:
        names = set(threads.map(lambda _: thread.call(Counter.name), range(100)))
    assert names == {"sse-app Counter"}
    assert len(made) == len(made[0].threads) == 1
    assert made[0].threads[0].daemon


def test_an_error_of_a_call_is_the_callers(thread: LoopThread[Counter]) -> None:
    with pytest.raises(ZeroDivisionError):
        thread.call(Counter.fail)
    assert thread.call(Counter.name)


def test_after_its_end_it_says_so_and_can_be_opened_anew(thread: LoopThread[Counter], made: list[Counter]) -> None:
    thread.open()
    for _ in range(2):
        thread.close()
    assert not made[0].is_open
    assert not made[0].threads[0].is_alive()
    with pytest.raises(Closed, match="This Counter is closed"):
        thread.call(Counter.name)
    thread.open()
    assert made[1].is_open
    assert thread.resource is made[1]


def test_what_was_never_opened_closes_and_makes_no_thread(made: list[Counter], thread: LoopThread[Counter]) -> None:
    before = set(threading.enumerate())
    thread.close()
    assert set(threading.enumerate()) <= before
    assert not made[0].threads


def test_who_waits_is_told_when_another_closes_it(thread: LoopThread[Counter], made: list[Counter]) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(thread.call, Counter.stay)
        assert made[0].called.wait(PATIENCE)
        thread.close()
        with pytest.raises(Closed):
            waiting.result(PATIENCE)
    assert made[0].cancelled.is_set()


def test_what_cannot_be_opened_says_why_each_time_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    failures = iter([OSError("one"), OSError("two"), None])
    thread = LoopThread("Counter", lambda: Counter(next(failures)), reopens=True)
    for text in ("one", "two"):
        with pytest.raises(OSError, match=text):
            thread.open()
        assert set(threading.enumerate()) <= before
        thread.close()  # the caller of open got the error
    thread.open()
    assert thread.call(Counter.name)
    thread.close()


def test_an_error_of_closing_is_told() -> None:
    thread = LoopThread("Counter", lambda: Counter(at_the_end=OSError("half")), reopens=True)
    thread.open()
    with pytest.raises(OSError, match="half"):
        thread.close()
    thread.close()


def test_a_call_from_its_own_loop_is_refused(thread: LoopThread[Counter]) -> None:
    async def again(counter: Counter) -> None:
        thread.call(Counter.name)

    with pytest.raises(RuntimeError, match="own event loop"):
        thread.call(again)


def test_what_nobody_has_any_more_ends() -> None:
    counter = Counter()
    thread = LoopThread("Counter", lambda: counter, reopens=True)
    thread.open()
    del thread
    gc.collect()
    counter.threads[0].join(PATIENCE)
    assert not counter.threads[0].is_alive()
    assert not counter.is_open


def test_a_handler_that_interrupts_the_opening_is_told_and_can_close_it() -> None:
    messages: list[str] = []
    counters: list[Counter] = []

    def make() -> Counter:
        if counters:  # as a signal's handler that runs while the thread is opened again
            with pytest.raises(RuntimeError, match="This Counter is being opened") as error:
                its.call(Counter.name)
            messages.append(str(error.value))
            its.close()
        counters.append(Counter())
        return counters[-1]

    its = LoopThread("Counter", make, reopens=True)
    its.open()
    its.close()
    opening = threading.Thread(target=its.open, daemon=True)  # a deadlock must not stop the test
    opening.start()
    opening.join(PATIENCE)
    assert not opening.is_alive()
    assert len(messages) == 1
    its.close()
    assert not counters[-1].is_open
