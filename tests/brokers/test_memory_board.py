"""The board in memory: it stays within its bounds."""

import asyncio
from random import Random

import pytest

from sse_app.brokers import memory_board
from sse_app.brokers.memory_board import SLOT, SWEPT_AT_ONCE, Entries, MemoryBoard
from sse_app.errors import LogFull
from tests.support.peers import Clock, turns

LONG = 3_600.0  # seconds


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
def board(clock: Clock) -> MemoryBoard:
    return MemoryBoard(clock)


async def test_beyond_100_000_entries_of_a_kind_new_ones_are_refused_until_some_have_ended(
    board: MemoryBoard, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_board.ENTRIES_MAX == 100_000
    monkeypatch.setattr(memory_board, "ENTRIES_MAX", 3)
    for name in "abc":
        await board.put(f"x.{name}", b"", 60)
    for work in (board.put("x.d", b"", LONG), board.claim("x.d", b"", LONG)):
        with pytest.raises(LogFull, match="Try again"):
            await work
    assert await board.claim("x.c", b"", LONG) == b"", "what is there can still be asked for"
    assert await board.replace("x.c", b"", b"new", LONG), "and written"
    clock.now += 60 + SLOT
    assert await board.claim("x.d", b"", LONG) is None
    assert await board.list("x") == {"x.c": b"new", "x.d": b""}


async def test_beyond_the_bytes_a_value_that_grows_is_refused_and_stays(
    board: MemoryBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_board, "BYTES_MAX", 2 * memory_board.OVERHEAD + 100)
    await board.put("x.a", b"x" * 40, LONG)
    await board.put("x.b", b"x" * 40, LONG)
    with pytest.raises(LogFull):
        await board.put("x.a", b"x" * 60, LONG)
    assert await board.get("x.a") == b"x" * 40
    await board.put("x.a", b"", LONG)
    await board.put("x.b", b"x" * 80, LONG)


@pytest.mark.parametrize("bound", ["ENTRIES_MAX", "BYTES_MAX"])
async def test_what_users_may_fill_leaves_room_for_revocations(
    board: MemoryBoard, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(memory_board, bound, 700 if bound == "BYTES_MAX" else 2)
    for kind in ("ticket", "lease"):
        await board.put(f"{kind}.1", b"", LONG)
        await board.put(f"{kind}.2", b"", LONG)
        with pytest.raises(LogFull):
            await board.put(f"{kind}.3", b"", LONG)
    await board.put("revoked.x", b"", LONG, durable=True)


async def test_what_has_ended_is_swept_by_what_is_written(clock: Clock) -> None:
    entries = Entries(clock)
    for number in range(100):
        entries.write(f"x.{number}", b"", 30)
    clock.now += 30 + SLOT
    for written in range(1, 20):
        entries.write(f"y.{written}", b"", LONG)
        assert len(entries) == max(0, 100 - written * SWEPT_AT_ONCE) + written, "a few each time"
    assert not entries.keys("x")


async def test_a_kind_of_which_all_has_ended_is_not_full(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_board, "ENTRIES_MAX", 100)
    entries = Entries(clock)
    for kind in ("lease", "ticket"):  # the leases end first, and there are more than one writing sweeps
        for number in range(100):
            entries.write(f"{kind}.{number}", b"", 30)
        clock.now += SLOT
    clock.now += 30 + SLOT
    entries.write("ticket.new", b"", LONG)
    assert entries.get("ticket.new") == b""


async def test_tickets_that_come_and_go_need_no_more_room_than_those_that_live(clock: Clock) -> None:
    entries = Entries(clock)
    for number in range(20_000):
        entries.write(f"ticket.{number}", b"", 30)
        clock.now += 0.1
        assert len(entries) <= (30 + 2 * SLOT) / 0.1
    tickets = entries._kinds["ticket"]
    assert len(tickets._ending) == len(tickets._slots) <= 30 / SLOT + 3


async def test_a_lease_that_is_renewed_is_one_entry(clock: Clock) -> None:
    entries = Entries(clock)
    for _ in range(1_000):
        entries.write("lease.x", b"", LONG)
        clock.now += 1
    assert len(entries) == 1
    leases = entries._kinds["lease"]
    assert sum(map(len, leases._ending.values())) == 1
    assert len(leases._slots) <= LONG / SLOT + 2


@pytest.mark.parametrize("seed", range(20))
def test_count_and_bytes_are_those_of_the_entries_held(clock: Clock, seed: int) -> None:
    random, entries = Random(seed), Entries(clock)
    for _ in range(300):
        key = f"x.{random.randrange(20)}"
        if random.random() < 0.8:
            entries.write(key, bytes(random.randrange(50)), random.choice((1, 15, 100)))
        else:
            entries.remove(key)
        clock.now += random.choice((0, 1, 20))
        held = entries._kinds["x"]
        assert len(entries) == len(held.entries) == sum(map(len, held._ending.values()))
        sizes = [len(key) + len(entry.value) + memory_board.OVERHEAD for key, entry in held.entries.items()]
        assert held.size == sum(sizes)
        assert {key for keys in held._ending.values() for key in keys} == held.entries.keys()


async def test_a_long_list_lets_the_loop_turn(board: MemoryBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_board, "LISTED_PER_STEP", 10)
    for number in range(95):
        await board.put(f"x.{number}", b"", LONG)
    turned, listing = 0, asyncio.ensure_future(board.list("x"))
    while not listing.done():
        await turns()
        turned += 1
    assert len(listing.result()) == 95
    assert turned >= 10
