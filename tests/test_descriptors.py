import asyncio

import pytest

from sse_app.config import Config
from sse_app.descriptors import ROOM, SPARE, Waiting, limit


class Connection(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def close(self) -> None:
        self.closed = True


def closed(connections: list[Connection]) -> list[int]:
    return [index for index, connection in enumerate(connections) if connection.closed]


def test_the_longest_waiting_goes_first_and_one_for_each_that_comes() -> None:
    waiting, connections = Waiting(3), [Connection() for _ in range(6)]
    for number, connection in enumerate(connections, 1):
        waiting.make_room(number)
        waiting.add(connection)
    assert closed(connections) == [0, 1, 2]


def test_who_has_a_request_stays_and_after_it_waits_anew() -> None:
    waiting, connections = Waiting(1), [Connection() for _ in range(4)]
    for connection in connections:
        waiting.add(connection)
    waiting.remove(connections[0])
    waiting.make_room(4)
    assert closed(connections) == [1]
    waiting.add(connections[0])
    for _ in range(3):
        waiting.make_room(4)
    assert closed(connections) == [0, 1, 2, 3]
    waiting.make_room(4)  # no connection is left to close


@pytest.mark.parametrize(("limit", "most"), [(1024, 1024 - SPARE), (256, 256 - SPARE), (64, 32), (2, 1)])
def test_what_is_spared_is_at_most_half(limit: int, most: int) -> None:
    waiting, connection = Waiting.within(limit), Connection()
    waiting.add(connection)
    waiting.make_room(most)
    assert not connection.closed
    waiting.make_room(most + 1)
    assert connection.closed


def test_streams_leave_more_than_is_spared() -> None:
    assert Config().max_subscribers == limit() - ROOM
    assert ROOM > SPARE
