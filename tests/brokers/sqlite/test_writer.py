"""The writing thread of a log in a file: whatever happens to a commit, everybody is answered and it goes on."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from sse_app.brokers.sqlite import writer as module
from sse_app.brokers.sqlite.log import Appended, Entries, Outcome, State
from sse_app.brokers.sqlite.writer import GROUP_BYTES, GROUP_MAX, Writer
from sse_app.errors import BrokerError, KeyReused, LogFull, LogUnavailable, OutcomeUnknown
from sse_app.publication import Position
from tests.support.peers import PATIENCE
from tests.support.sqlite_log import entry


def failure(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    return error


def one(text: str) -> Entries:
    """What the publisher of one publication submits."""
    return Entries((entry(text),))


class Disk:
    """A disk for the writer, which can be held up, and raises the failures that it is given."""

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []  # of each commit
        self.failures: list[Exception] = []
        self.tries = self.top = 0
        self.began, self.free = threading.Event(), threading.Event()
        self.free.set()

    def append(self, waiting: list[Entries]) -> Appended:
        self.began.set()
        assert self.free.wait(PATIENCE)
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        outcomes: list[Outcome] = []
        before = self.top
        for entries in waiting:
            if entries == one("reused"):
                outcomes.append(KeyReused("again"))
            else:
                self.top += len(entries.items)
                outcomes.append([Position("e", self.top - index) for index in reversed(range(len(entries.items)))])
        self.groups.append([item.body for entries in waiting for item in entries.items])
        return Appended(Position("e", before), State("e", self.top, 0, 0, 0.0, 0.0, 0.0), [], outcomes)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def writer(disk: Disk) -> AsyncIterator[Writer]:
    writer = Writer(asyncio.get_running_loop(), disk.append, lambda appended: None)
    async with asyncio.timeout(PATIENCE):
        yield writer
    disk.free.set()
    await asyncio.to_thread(writer.stop)


async def held_up(writer: Writer, disk: Disk) -> asyncio.Future[Sequence[Position]]:
    """A commit is under way; who comes now waits for the next."""
    disk.free.clear()
    disk.began.clear()
    first = writer.submit(one("first"))
    await asyncio.to_thread(disk.began.wait, PATIENCE)
    return first


async def test_who_waits_at_the_same_time_shares_a_commit(writer: Writer, disk: Disk) -> None:
    first = await held_up(writer, disk)
    others = [writer.submit(one(str(number))) for number in range(100)]
    disk.free.set()
    assert [position.offset for (position,) in await asyncio.gather(first, *others)] == list(range(1, 102))
    assert list(map(len, disk.groups)) == [1, 100]


async def test_a_commit_wakes_the_loop_once(writer: Writer, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, called = await held_up(writer, disk), list[Any]()
    call = writer._call_on_loop

    def counting(*what: Any) -> None:
        called.append(what)  # before the call: the test may go on in the loop at once
        call(*what)

    monkeypatch.setattr(writer, "_call_on_loop", counting)
    others = [writer.submit(one(str(number))) for number in range(100)]
    disk.free.set()
    await asyncio.gather(first, *others)
    assert len(called) == len(disk.groups) == 2


async def test_a_commit_takes_so_many_and_so_many_bytes(writer: Writer, disk: Disk) -> None:
    waiting = [await held_up(writer, disk)]
    waiting += [writer.submit(one("x")) for _ in range(GROUP_MAX + 1)]
    waiting += [writer.submit(one("x" * (GROUP_BYTES // 2))) for _ in range(3)]
    disk.free.set()
    await asyncio.gather(*waiting)
    assert list(map(len, disk.groups)) == [1, GROUP_MAX, 1 + 2, 1]


async def test_a_batch_goes_into_one_commit_and_its_publications_and_bytes_count(writer: Writer, disk: Disk) -> None:
    waiting = [await held_up(writer, disk)]
    many, large = Entries((entry("x"),) * (GROUP_MAX - 1)), Entries((entry("x" * (GROUP_BYTES // 2)),) * 2)
    waiting += [writer.submit(entries) for entries in (one("a"), many, one("b"), large, large, one("c"))]
    disk.free.set()
    positions = [position.offset for found in await asyncio.gather(*waiting) for position in found]
    assert positions == list(range(1, disk.top + 1))
    assert list(map(len, disk.groups)) == [1, GROUP_MAX, 1 + 2, 2, 1]


async def test_each_gets_its_own_answer(writer: Writer, disk: Disk) -> None:
    waiting = [await held_up(writer, disk)]
    waiting += [writer.submit(made) for made in (one("a"), one("reused"), None, one("b"))]
    disk.free.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers.pop(2), KeyReused)
    assert answers == [[Position("e", 1)], [Position("e", 2)], (), [Position("e", 3)]]


async def test_a_commit_is_announced_before_its_publishers_are_answered(disk: Disk) -> None:
    answered: list[bool] = []
    writer = Writer(asyncio.get_running_loop(), disk.append, lambda appended: answered.append(answer.done()))
    async with asyncio.timeout(PATIENCE):
        answer = writer.submit(one("a"))
        await answer
        await asyncio.to_thread(writer.stop)
    assert answered == [False]


@pytest.mark.parametrize(
    ("failed", "raised"),
    [
        (failure(sqlite3.SQLITE_FULL), LogFull),
        (failure(sqlite3.SQLITE_IOERR_WRITE), LogUnavailable),
        (sqlite3.DatabaseError("damaged"), LogUnavailable),
        (sqlite3.OperationalError("not from SQLite itself: it has no code"), LogUnavailable),
        (OutcomeUnknown("it may be there"), OutcomeUnknown),
        (ValueError("our mistake"), LogUnavailable),
        (OSError(24, "too many open files"), LogUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
async def test_a_commit_that_fails_is_told_to_its_publishers_and_the_next_one_is_made(
    writer: Writer, disk: Disk, failed: Exception, raised: type[BrokerError]
) -> None:
    waiting = [await held_up(writer, disk)]
    waiting += [writer.submit(one(text)) for text in "ab"]
    disk.failures.append(failed)
    disk.free.set()
    with pytest.raises(raised):
        await waiting[0]
    assert [position.offset for (position,) in await asyncio.gather(*waiting[1:])] == [1, 2]


async def test_each_publisher_gets_an_error_of_its_own(writer: Writer, disk: Disk) -> None:
    first = await held_up(writer, disk)
    others = [writer.submit(one(text)) for text in "ab"]
    disk.failures += [LogFull("full"), LogFull("full")]
    disk.free.set()
    errors = await asyncio.gather(first, *others, return_exceptions=True)
    assert [(type(error), str(error)) for error in errors] == [(LogFull, "full")] * 3
    assert len(set(map(id, errors))) == 3, "a traceback grows with each raise"


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_BUSY_SNAPSHOT])
async def test_a_locked_file_is_tried_again_and_who_comes_meanwhile_joins(
    writer: Writer, disk: Disk, code: int
) -> None:
    disk.failures += [failure(code)] * 3
    waiting = [await held_up(writer, disk)]
    waiting += [writer.submit(one(text)) for text in "abc"]
    disk.free.set()
    await asyncio.gather(*waiting)
    assert (disk.tries, list(map(len, disk.groups))) == (4, [4])


async def test_who_has_waited_too_long_for_a_locked_file_is_told(
    writer: Writer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.0)
    first = await held_up(writer, disk)
    monkeypatch.setattr(module, "LOCK_PATIENCE", 60.0)
    patient = writer.submit(one("patient"))
    disk.failures += [failure(sqlite3.SQLITE_BUSY)] * 2
    disk.free.set()
    with pytest.raises(LogUnavailable, match="locked"):
        await first
    assert await patient == [Position("e", 1)]


async def test_a_publisher_that_is_cancelled_holds_up_nobody(writer: Writer, disk: Disk) -> None:
    first = await held_up(writer, disk)
    gone, stays = writer.submit(one("gone")), writer.submit(one("stays"))
    gone.cancel()
    first.cancel()
    disk.free.set()
    assert await stays == [Position("e", 3)], "what was submitted is appended"
    refused = await held_up(writer, disk)
    next_one = writer.submit(one("next"))
    refused.cancel()
    disk.failures.append(LogFull("full"))
    disk.free.set()
    assert await next_one == [Position("e", 4)]


@pytest.mark.parametrize("trouble", [None, sqlite3.SQLITE_BUSY], ids=["at once", "locked for a moment"])
async def test_stopping_finishes_what_was_submitted(disk: Disk, trouble: int | None) -> None:
    writer = Writer(asyncio.get_running_loop(), disk.append, lambda appended: None)
    async with asyncio.timeout(PATIENCE):
        waiting = [await held_up(writer, disk)]
        waiting += [writer.submit(one("x")) for _ in range(GROUP_MAX + 10)]
        stopping = asyncio.create_task(asyncio.to_thread(writer.stop))
        disk.failures += [failure(trouble)] * 5 if trouble else []
        disk.free.set()
        await stopping
        await asyncio.gather(*waiting)
    assert disk.top == GROUP_MAX + 11


async def test_after_the_end_a_publisher_is_refused_and_does_not_wait(disk: Disk) -> None:
    writer = Writer(asyncio.get_running_loop(), disk.append, lambda appended: None)
    await asyncio.to_thread(writer.stop)
    with pytest.raises(LogUnavailable, match="closed"):
        writer.submit(one("late"))


async def test_a_locked_file_does_not_keep_the_loop_busy(
    writer: Writer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    call = writer._call_on_loop

    def calling(what: Any, *rest: object) -> None:
        calls.append(what)
        call(what, *rest)

    monkeypatch.setattr(writer, "_call_on_loop", calling)
    first = await held_up(writer, disk)
    disk.failures += [failure(sqlite3.SQLITE_BUSY)] * 20
    disk.free.set()
    await first
    assert calls == [writer._accept]
