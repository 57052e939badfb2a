"""The promises of every board, whatever keeps it. Another one joins by the name of its world in ``BOARDS``."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import Random

import pytest

from sse_app.brokers import SCHEMES
from sse_app.brokers.board import MESSAGE_BYTES, MESSAGES, TTL, VALUE_BYTES, Board
from sse_app.errors import BrokerError
from tests.support.boards import boards_on, listening_to
from tests.support.peers import PATIENCE, turns, until
from tests.support.worlds import World

BOARDS = ("memory", "linked", "sqlite", "redis", "nats")
SHARED = tuple(name for name in BOARDS if name != "memory")  # by several nodes
KEPT = tuple(name for name in SHARED if name != "linked")  # on more than the memory of a process
LONG = 3_600.0  # seconds


@pytest.fixture(params=BOARDS)
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


kept = pytest.mark.parametrize("world", KEPT, indirect=True)
shared = pytest.mark.parametrize("world", SHARED, indirect=True)


@pytest.fixture
async def boards(world: World) -> AsyncIterator[list[Board]]:
    """The boards of three nodes."""
    async with boards_on(world) as boards:
        yield boards


@pytest.fixture
def board(boards: list[Board]) -> Board:
    return boards[0]


def test_the_suite_runs_over_every_board_there_is() -> None:
    assert {*BOARDS} - {"linked"} == {*SCHEMES}


def elapse(world: World, seconds: float) -> None:
    world.clock.now += seconds
    world.wall.now += seconds


async def values(boards: list[Board], key: str) -> set[bytes | None]:
    """What the nodes see at a key; all the same."""
    return {await board.get(key) for board in boards}


# --- entries ---


async def test_what_one_node_writes_all_nodes_read(boards: list[Board]) -> None:
    assert await values(boards, "a.b") == {None}
    for number, board in enumerate(boards):
        await board.put("a.b", b"%d" % number, LONG)
        assert await values(boards, "a.b") == {b"%d" % number}
    await boards[0].put("a.b", b"safe", LONG, durable=True)
    assert await values(boards, "a.b") == {b"safe"}
    await boards[1].delete("a.b")
    await boards[2].delete("a.b")
    assert await values(boards, "a.b") == {None}


async def test_any_bytes_are_a_value_up_to_16_kib(board: Board) -> None:
    for value in (b"", b"\0", bytes(range(256)), b"\xff" * VALUE_BYTES):
        await board.put("a.b", value, LONG)
        assert await board.get("a.b") == value
        assert await board.replace("a.b", value, value, LONG)
        assert await board.claim("a.b", b"another", LONG) == value
        assert await board.list("a") == {"a.b": value}


async def test_names_differ_in_every_character(board: Board) -> None:
    names = ["a", "A", "-", "_", "0", "a-b", "a_b", "x" * 127, "x" * 128, "x" * 127 + "y"]
    for name in names:
        assert await board.claim(f"kind.{name}", name.encode(), LONG) is None
    assert await board.list("kind") == {f"kind.{name}": name.encode() for name in names}


async def test_a_list_has_the_entries_of_its_kind_alone(boards: list[Board]) -> None:
    assert await boards[0].list("tick") == {}
    await boards[0].put("ticket.a", b"1", LONG)
    await boards[1].put("tick.a", b"2", LONG)
    await boards[1].put("tick.b", b"3", LONG)
    await boards[2].put("tick.c", b"4", LONG)
    await boards[0].delete("tick.b")
    for board in boards:
        assert await board.list("tick") == {"tick.a": b"2", "tick.c": b"4"}
        assert await board.list("ticket") == {"ticket.a": b"1"}
        assert await board.list("ti") == {}


async def test_a_long_list_is_complete(board: Board) -> None:
    expected = {f"many.{number}": b"%d" % number for number in range(2_500)}
    async with asyncio.timeout(PATIENCE):
        for key, value in expected.items():
            await board.put(key, value, LONG)
        assert await board.list("many") == expected


async def test_a_claim_is_won_once_and_the_others_learn_by_whom(boards: list[Board]) -> None:
    async def claim(number: int) -> bytes | None:
        await turns(number % 7)
        return await boards[number % 3].claim("lease.x", b"%d" % number, LONG)

    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*map(claim, range(100)))
    (winner,) = (number for number, answer in enumerate(answers) if answer is None)
    assert Counter(answers) == {None: 1, b"%d" % winner: 99}
    assert await values(boards, "lease.x") == {b"%d" % winner}


async def test_a_key_can_be_claimed_again_once_it_is_free(boards: list[Board]) -> None:
    assert await boards[0].claim("lease.x", b"one", LONG) is None
    assert await boards[1].claim("lease.x", b"two", LONG) == b"one"
    await boards[2].delete("lease.x")
    assert await boards[1].claim("lease.x", b"two", LONG) is None
    assert await boards[0].claim("lease.x", b"one", LONG) == b"two"


async def test_a_value_is_replaced_once(boards: list[Board]) -> None:
    async def replace(number: int) -> bool:
        await turns(number % 5)
        return await boards[number % 3].replace("lease.x", b"old", b"%d" % number, LONG)

    await boards[0].put("lease.x", b"old", LONG)
    async with asyncio.timeout(PATIENCE):
        done = await asyncio.gather(*map(replace, range(20)))
    assert sum(done) == 1
    assert await values(boards, "lease.x") == {b"%d" % done.index(True)}


async def test_only_what_stands_there_is_replaced(board: Board) -> None:
    assert not await board.replace("a.b", b"", b"new", LONG), "nothing is there"
    await board.put("a.b", b"old", LONG)
    for other in (b"", b"ol", b"old ", b"OLD"):
        assert not await board.replace("a.b", other, b"new", LONG)
    assert await board.get("a.b") == b"old"
    assert await board.replace("a.b", b"old", b"new", LONG)
    assert await board.get("a.b") == b"new"


# --- lifetimes ---


async def test_an_entry_ends_exact_to_a_second(boards: list[Board], world: World) -> None:
    for number, board in enumerate(boards):
        key = f"a.{number}"
        await board.put(key, b"x", 30)
        elapse(world, 29.5)
        assert await values(boards, key) == {b"x"}
        assert await boards[0].claim(key, b"y", 30) == b"x"
        assert key in await boards[0].list("a")
        elapse(world, 1)
        assert await values(boards, key) == {None}
        assert await boards[0].list("a") == {}
        assert not await boards[1].replace(key, b"x", b"y", 30)
        assert await boards[2].claim(key, b"y", 30) is None
        assert await values(boards, key) == {b"y"}


async def test_whoever_writes_an_entry_gives_it_a_new_lifetime(board: Board, world: World) -> None:
    await board.put("a.put", b"x", 10)
    await board.put("a.replaced", b"x", 10)
    await board.put("a.shortened", b"x", LONG)
    elapse(world, 5)
    await board.put("a.put", b"y", 10)
    assert await board.replace("a.replaced", b"x", b"y", 10)
    assert await board.claim("a.replaced", b"z", LONG) == b"y", "who loses a claim writes nothing"
    await board.put("a.shortened", b"y", 1)
    elapse(world, 9.5)
    assert await board.list("a") == {"a.put": b"y", "a.replaced": b"y"}
    elapse(world, 1)
    assert await board.list("a") == {}


async def test_the_longest_lifetime_is_31_days(board: Board, world: World) -> None:
    await board.put("a.b", b"x", TTL)
    elapse(world, TTL - 1)
    assert await board.get("a.b") == b"x"
    elapse(world, 2)
    assert await board.get("a.b") is None


async def test_an_entry_is_gone_after_its_lifetime_and_not_before(boards: list[Board], world: World) -> None:
    """On the board's own clock, which may be that of a server: so this waits a second there."""
    time = asyncio.get_running_loop().time
    begun = time()
    assert await boards[0].claim("a.b", b"x", 1) is None
    waited = 0.0
    async with asyncio.timeout(PATIENCE):
        while await boards[1].claim("a.b", b"y", LONG) is not None:
            waited += 0.01
            elapse(world, 0.01)
            await asyncio.sleep(0)
    assert max(waited, time() - begun) > 0.95
    assert await values(boards, "a.b") == {b"y"}


class Model:
    """Entries with lifetimes as anybody would write them: what every board has to equal."""

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: dict[str, tuple[bytes, float]] = {}

    def get(self, key: str) -> bytes | None:
        value, ends = self._entries.get(key, (None, 0.0))
        return value if ends > self.now else None

    def put(self, key: str, value: bytes, ttl: float) -> None:
        self._entries[key] = value, self.now + ttl

    def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        standing = self.get(key)
        if standing is None:
            self.put(key, value, ttl)
        return standing

    def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        fits = self.get(key) == old
        if fits:
            self.put(key, new, ttl)
        return fits

    def delete(self, key: str) -> None:
        self._entries.pop(key, None)

    def list(self, kind: str) -> dict[str, bytes]:
        standing = {key: self.get(key) for key in self._entries if key.startswith(f"{kind}.")}
        return {key: value for key, value in standing.items() if value is not None}


@pytest.mark.parametrize("seed", range(10))
async def test_the_boards_of_a_hub_are_one_dict_with_lifetimes(boards: list[Board], world: World, seed: int) -> None:
    random, model = Random(seed), Model()
    for step in range(200):
        key, value = f"{random.choice('ab')}.{random.randrange(3)}", b"%d" % step
        ttl = random.choice((5, 50, LONG))
        old = random.choice((model.get(key) or b"", b"other"))
        name, arguments = random.choice(
            (
                *(("claim", (key, value, ttl)), ("put", (key, value, ttl)), ("replace", (key, old, value, ttl))),
                *(("get", (key,)), ("delete", (key,)), ("list", (key[0],))),
            )
        )
        assert await getattr(random.choice(boards), name)(*arguments) == getattr(model, name)(*arguments)
        seconds = random.choice((0, 0, 0, 3, 30))
        elapse(world, seconds)
        model.now += seconds


# --- what no board takes ---


@pytest.mark.parametrize(
    "key", ["", "a", "a.", ".a", "A.b", "a1.b", "a.b.c", "a.b c", "a.é", "a." + "x" * 129, "a.b\n"]
)
async def test_a_key_that_no_board_takes_is_refused_and_not_repeated(board: Board, key: str) -> None:
    for work in (
        board.claim(key, b"", LONG),
        board.put(key, b"", LONG),
        board.replace(key, b"", b"", LONG),
        board.get(key),
        board.delete(key),
    ):
        with pytest.raises(ValueError, match="kind") as refused:
            await work
        assert "x" * 129 not in str(refused.value)


@pytest.mark.parametrize("ttl", [0, -1, TTL + 1, float("inf"), float("nan")])
async def test_a_lifetime_is_above_nothing_and_at_most_31_days(board: Board, ttl: float) -> None:
    for work in (board.claim("a.b", b"", ttl), board.put("a.b", b"", ttl), board.replace("a.b", b"", b"", ttl)):
        with pytest.raises(ValueError, match="31 days"):
            await work
    assert await board.get("a.b") is None


async def test_a_value_too_large_is_refused_and_what_was_there_stays(board: Board) -> None:
    await board.put("a.b", b"x", LONG)
    large = b"x" * (VALUE_BYTES + 1)
    for work in (
        board.claim("a.c", large, LONG),
        board.put("a.b", large, LONG),
        board.replace("a.b", b"x", large, LONG),
        board.replace("a.b", large, b"y", LONG),
    ):
        with pytest.raises(ValueError, match="16 KiB"):
            await work
    assert await board.list("a") == {"a.b": b"x"}


@pytest.mark.parametrize("kind", ["", "A", "a.", "a.b", "a1", "a\n", "%"])
async def test_a_kind_that_no_key_has_is_refused(board: Board, kind: str) -> None:
    with pytest.raises(ValueError, match="a-z"):
        await board.list(kind)


async def test_a_message_has_at_most_64_kib(board: Board) -> None:
    with pytest.raises(ValueError, match="64 KiB"):
        await board.send(bytes(MESSAGE_BYTES + 1))


# --- messages ---


@shared
async def test_a_message_reaches_all_other_nodes_and_not_its_sender(boards: list[Board]) -> None:
    one, two, three = boards
    async with (
        listening_to(one, two, three) as at_one,
        listening_to(two, one, three) as at_two,
        listening_to(three, one, two) as at_three,
    ):
        await one.send(b"from one")
        assert await at_two.take(1) == await at_three.take(1) == [b"from one"]
        await two.send(b"from two")
        assert await at_one.take(1) == await at_three.take(1) == [b"from two"]


@shared
async def test_every_reader_of_a_node_gets_every_message(boards: list[Board]) -> None:
    one, two, _ = boards
    async with listening_to(two, one) as first:
        async with listening_to(two, one) as second:
            await one.send(b"a")
            assert await first.take(1) == await second.take(1) == [b"a"]
        await one.send(b"b")
        assert await first.take(1) == [b"b"]


@shared
async def test_messages_are_any_bytes_up_to_64_kib(boards: list[Board]) -> None:
    one, two, _ = boards
    sent = [b"", b"\0\r\n", bytes(range(256)), b"\xff" * MESSAGE_BYTES, b"last"]
    async with listening_to(two, one) as inbox:
        for message in sent:
            await one.send(message)
        assert await inbox.take(len(sent)) == sent


@shared
async def test_the_messages_of_each_node_arrive_in_their_order(boards: list[Board]) -> None:
    one, two, three = boards

    async def send(board: Board, name: bytes) -> None:
        for number in range(200):
            await board.send(b"%s %d" % (name, number))

    async with listening_to(three, one, two) as inbox, asyncio.TaskGroup() as tasks:
        sending = [tasks.create_task(send(one, b"one")), tasks.create_task(send(two, b"two"))]
        found = await inbox.take(400)
        await asyncio.wait(sending)
    for name in (b"one", b"two"):
        assert [item for item in found if item.startswith(name)] == [b"%s %d" % (name, n) for n in range(200)]


@shared
async def test_a_reader_that_is_too_slow_loses_the_oldest(boards: list[Board]) -> None:
    one, two, _ = boards
    last = b"%d" % (MESSAGES + 499)
    async with listening_to(two, one) as inbox, listening_to(two, one) as quick:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            tasks.create_task(quick.take_until(last))  # then all have arrived at this node
            for number in range(MESSAGES + 500):
                await one.send(b"%d" % number)
        found = [int(message) for message in await inbox.take_until(last)]
        assert found == sorted(set(found)), "in order, and none twice"
        assert MESSAGES // 2 <= len(found) <= MESSAGES
        await one.send(b"and on")
        assert await inbox.take(1) == [b"and on"]


@shared
async def test_nobody_gets_what_was_sent_before_the_first_step(boards: list[Board]) -> None:
    one, two, _ = boards
    await one.send(b"before")
    async with listening_to(two, one) as inbox:
        await one.send(b"after")
        assert await inbox.take(1) == [b"after"]


@pytest.mark.parametrize("world", ["memory"], indirect=True)
async def test_a_log_in_memory_has_no_other_nodes(board: Board) -> None:
    await board.send(b"x" * MESSAGE_BYTES)
    assert list(board.nodes()) == []
    reading = asyncio.ensure_future(anext(board.messages()))
    await turns(10)
    assert not reading.done()
    reading.cancel()


# --- nodes ---


@shared
async def test_each_node_knows_the_others_by_name_until_they_leave(world: World) -> None:
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(world.open()) for _ in range(2)]
        for broker in brokers:
            broker.tail()
        one, two = (broker.board for broker in brokers)
        async with boards_on(world, 1) as (three,):
            names = {board.name for board in (one, two, three)}
            assert len(names) == 3
            assert {len(bytes.fromhex(name)) for name in names} == {6}
            for board in (one, two, three):
                await until(lambda board=board: {*board.nodes()} == names - {board.name}, clock=world.clock)  # type: ignore[misc]
        await until(lambda: list(one.nodes()) == [two.name], clock=world.clock)
        assert one.name not in one.nodes()


# --- life ---


@kept
async def test_entries_outlive_the_nodes(world: World) -> None:
    async with boards_on(world) as boards:
        await boards[0].put("a.b", b"x", LONG)
        await boards[1].put("a.c", b"y", LONG, durable=True)
        await boards[2].put("b.d", b"z", LONG)
    async with boards_on(world) as boards:
        assert await boards[0].list("a") == {"a.b": b"x", "a.c": b"y"}
        assert await boards[1].claim("b.d", b"new", LONG) == b"z"


@kept
async def test_a_board_that_is_not_open_answers_with_an_error_of_its_broker(world: World) -> None:
    broker = world.open()
    board = broker.board
    with pytest.raises(BrokerError):
        await board.get("a.b")
    async with broker:
        await board.put("a.b", b"x", LONG)
    for work in (board.get("a.b"), board.claim("a.b", b"", LONG), board.list("a"), board.send(b"x")):
        with pytest.raises(BrokerError):
            await work
    async with broker:
        assert await board.get("a.b") == b"x"
