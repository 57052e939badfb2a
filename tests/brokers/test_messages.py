"""Messages of a board at the node that receives them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sse_app.brokers.board import MESSAGES
from sse_app.brokers.messages import Messages
from tests.support.peers import PATIENCE, turns

HERE, THERE = Messages("00000000000a"), Messages("00000000000b")


@pytest.fixture
def messages() -> Messages:
    return Messages("00000000000a")


async def take(reader: AsyncIterator[bytes], count: int) -> list[bytes]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(reader) for _ in range(count)]


async def test_each_reader_gets_all_from_its_first_step_on(messages: Messages) -> None:
    early, late = messages.read(), messages.read()
    reading = asyncio.create_task(take(early, 2))
    await turns()
    messages.on_frame(THERE.frame(b"1"))
    other = asyncio.create_task(take(late, 1))
    await turns()
    messages.on_frame(THERE.frame(b"2"))
    assert await reading == [b"1", b"2"]
    assert await other == [b"2"]


async def test_a_message_is_any_bytes(messages: Messages) -> None:
    odd = [b"", b"\n", b"v1 00000000000a x", bytes(range(256))]
    reading = asyncio.create_task(take(messages.read(), len(odd)))
    await turns()
    for message in odd:
        messages.on_frame(THERE.frame(message))
    assert await reading == odd


@pytest.mark.parametrize(
    "frame",
    [
        HERE.frame(b"our own"),
        b"",
        b"v1",
        b"v1 00000000000b",
        b"v2 00000000000b from a newer version",
        b"v1 a-name-so-long a stranger's",
        b"\xff" * 20,
    ],
)
async def test_our_own_messages_and_those_that_are_not_understood_are_dropped(messages: Messages, frame: bytes) -> None:
    reading = asyncio.create_task(take(messages.read(), 1))
    await turns()
    messages.on_frame(frame)
    messages.on_frame(THERE.frame(b"x"))
    assert await reading == [b"x"]


async def test_a_reader_that_falls_behind_loses_the_oldest(messages: Messages) -> None:
    slow, quick = messages.read(), messages.read()
    both = [asyncio.create_task(take(reader, 1)) for reader in (slow, quick)]
    await turns()
    messages.on_frame(THERE.frame(b"0"))
    assert await asyncio.gather(*both) == [[b"0"], [b"0"]]
    numbers = [str(number).encode() for number in range(1, MESSAGES + 3)]
    for number in numbers[:2]:
        messages.on_frame(THERE.frame(number))
    assert await take(quick, 2) == numbers[:2]
    for number in numbers[2:]:
        messages.on_frame(THERE.frame(number))
    assert await take(slow, MESSAGES) == numbers[2:]
    assert await take(quick, MESSAGES) == numbers[2:]


async def test_nothing_is_kept_for_a_reader_that_ended(messages: Messages) -> None:
    reading = asyncio.create_task(take(messages.read(), 1))
    await turns()
    assert messages._queues
    reading.cancel()
    await asyncio.wait([reading])
    assert not messages._queues
