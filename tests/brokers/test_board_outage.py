"""Boards whose server goes away and comes back: each call has an answer, and nothing has to be opened again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import pytest

from sse_app.brokers.board import Board
from sse_app.errors import BrokerError, BrokerUnavailable
from tests.support.boards import boards_on, listening_to
from tests.support.broker_process import BrokerProcess
from tests.support.nats_server import NatsServer
from tests.support.peers import PATIENCE, until
from tests.support.redis_server import RedisServer
from tests.support.worlds import World

LONG = 3_600.0  # seconds
T = TypeVar("T")


@pytest.fixture(params=["redis", "nats"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer | NatsServer]:
    """A server that the test may stop. It keeps what it acknowledged."""
    settings = {"redis": ("--appendonly", "yes", "--appendfsync", "always"), "nats": ()}[request.param]
    request.getfixturevalue({"redis": "patient_redis", "nats": "impatient_nats"}[request.param])
    server: RedisServer | NatsServer = request.getfixturevalue(f"start_{request.param}")(*settings)
    yield server
    server.kill()


@pytest.fixture
def world(server: RedisServer | NatsServer) -> World:
    return World(server.url(), clocked=False)


def calls(board: Board) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: board.claim("a.b", b"y", LONG),
        lambda: board.put("a.b", b"y", LONG, durable=True),
        lambda: board.replace("a.b", b"x", b"y", LONG),
        lambda: board.get("a.b"),
        lambda: board.delete("a.b"),
        lambda: board.list("a"),
        lambda: board.send(b"x"),
    ]


async def answer(call: Callable[[], Awaitable[T]]) -> T:
    """Return the first answer that is no BrokerError."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await call()
            except BrokerError:
                await asyncio.sleep(0)


async def first_error(call: Callable[[], Awaitable[object]]) -> None:
    """Return once the answer is a BrokerError."""
    async with asyncio.timeout(PATIENCE):
        with suppress(BrokerError):
            while True:
                await call()


async def test_calls_fail_while_the_server_is_away_and_the_board_works_again_afterwards(
    server: BrokerProcess, world: World
) -> None:
    async with boards_on(world) as (one, two, _), listening_to(two, one) as inbox:
        assert await one.claim("a.b", b"x", LONG) is None
        server.kill()
        await first_error(lambda: one.get("a.b"))
        for call in calls(one):
            with pytest.raises(BrokerUnavailable, match=r"NATS|Redis"):
                await call()
        server.start()
        assert await answer(lambda: two.get("a.b")) == b"x"
        assert await answer(lambda: one.replace("a.b", b"x", b"y", LONG))
        await answer(lambda: one.send(b"mark: both are back"))
        await inbox.hears(one)
        await one.send(b"afterwards")
        assert await inbox.take(1) == [b"afterwards"]
        await until(lambda: two.name in one.nodes())


async def test_a_server_that_answers_nothing_is_given_up(
    server: BrokerProcess, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("redis", "nats"):
        monkeypatch.setattr(f"sse_app.brokers.{module}.board.DEADLINE", 0.5)
    monkeypatch.setattr("sse_app.brokers.nats.board.LISTING", 0.5)
    async with boards_on(world) as (one, two, _):
        assert await one.claim("a.b", b"x", LONG) is None
        server.freeze()
        try:
            async with asyncio.timeout(PATIENCE):
                for call in calls(one)[:-1]:  # whoever sends waits for no answer in NATS
                    with pytest.raises(BrokerUnavailable):
                        await call()
        finally:
            server.thaw()
        # What was asked may have been done, or is still to be done.
        assert await answer(lambda: two.get("a.b")) in (None, b"x", b"y")
        await answer(lambda: one.put("a.c", b"z", LONG))
        assert await answer(lambda: two.get("a.c")) == b"z"
