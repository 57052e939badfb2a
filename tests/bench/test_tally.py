"""The counts of lost and doubled events follow from their numbers."""

import asyncio

import pytest

from sse_app.bench.tally import Subscriber, Tally, percentile
from sse_app.bench.wire import event_data
from tests.bench.fake_hub import chunk


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ({}, 0.5, None),
        ({7: 1}, 0.5, 7),
        ({1: 1, 2: 1}, 0.5, 1),
        ({1: 1, 2: 1}, 0.51, 2),
        ({30: 1, 10: 98, 20: 1}, 0.98, 10),
        ({30: 1, 10: 98, 20: 1}, 0.99, 20),
        ({30: 1, 10: 98, 20: 1}, 1, 30),
        ({5: 3}, 0, 5),
    ],
)
def test_percentile_is_the_nearest_rank(counts: dict[int, int], share: float, value: int | None) -> None:
    assert percentile(counts, share) == value


def frames(*numbers: int) -> bytes:
    return b"".join(b"id: %d\ndata: %b\n\n" % (number, event_data("beef", number, 5, 60)) for number in numbers)


def take(stream: Subscriber, *numbers: int) -> bool:
    """Feed one read with these events, sent at 5 s and read at 9 s."""
    return stream.take(chunk(frames(*numbers)), now=9)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("warm", [False, True], ids=["first", "after another read the same"])
def test_events_are_found_wherever_the_stream_is_cut(warm: bool, chunked: bool) -> None:
    parts = [b"event: welcome\ndata: Welcome!\n\n", frames(1, 2), frames(3), b": idle\n\n"]
    wire = b"".join(chunk(part) if chunked else part for part in parts)
    for cut in range(len(wire) + 1):
        tally = Tally("beef")
        before, stream = tally.opened(chunked), tally.opened(chunked)
        tally.published = 3
        if warm:
            assert before.take(wire, now=9)
        for part in (wire[:cut], wire[cut:]):
            assert stream.take(part, now=9)
        assert (tally.deliveries, tally.lost(), tally.doubled) == ((6, 0, 0) if warm else (3, 3, 0)), cut


@pytest.mark.parametrize(
    ("chunks", "lost", "doubled"),
    [
        ([(1,), (2,), (3,), (4,)], 0, 0),
        ([(1, 2, 3, 4)], 0, 0),
        ([(2, 1), (4, 3)], 0, 0),
        ([(3,), (4,), (1,), (2,)], 0, 0),
        ([], 4, 0),
        ([(1,), (3,), (4,)], 1, 0),
        ([(4,)], 3, 0),
        ([(1, 2, 3)], 1, 0),
        ([(1,), (1,), (2, 3, 4)], 0, 1),
        ([(1, 2, 2, 3, 4, 4, 4)], 0, 3),
        ([(2, 2), (4,), (2,)], 2, 2),
        ([(1, 2, 3, 4), (1, 2, 3, 4)], 0, 4),
        ([(3,), (1,), (3,), (4,)], 1, 1),
    ],
)
def test_lost_and_doubled_are_counted_by_number(chunks: list[tuple[int, ...]], lost: int, doubled: int) -> None:
    tally = Tally("beef")
    stream = tally.opened(chunked=True)
    for _ in range(4):
        tally.publish()
    for numbers in chunks:
        assert take(stream, *numbers)
    assert (tally.lost(), tally.doubled, tally.deliveries) == (lost, doubled, 4 - lost)
    assert tally.owed == lost
    assert sum(tally.late.values()) == 4 - lost


def test_who_comes_back_is_owed_what_was_missed() -> None:
    tally = Tally("beef")
    for _ in range(5):
        tally.publish()
    back, new = tally.opened(chunked=True, behind=3), tally.opened(chunked=True)
    assert (tally.owed, tally.lost()) == (3, 3)
    take(back, 2, 3, 4)  # 2 was not missed
    assert (tally.owed, tally.lost(), tally.doubled) == (1, 1, 1)
    tally.publish()
    take(new, 6), take(back, 5, 6)
    assert (tally.owed, tally.lost(), tally.deliveries) == (0, 0, 5)


def test_nobody_has_to_get_what_the_server_refused() -> None:
    tally = Tally("beef")
    streams = [tally.opened(chunked=True) for _ in range(2)]
    first, second, third = (tally.publish() for _ in range(3))
    take(streams[0], second)  # delivered, though its POST then failed
    tally.fail([second], "POST answered 503")
    take(streams[1], first, second, third)
    assert (tally.lost(), tally.doubled, tally.owed) == (2, 0, 2)
    take(streams[0], first, third)
    assert (tally.lost(), tally.doubled, tally.owed) == (0, 0, 0)


def test_a_stream_that_ended_lost_what_was_published_until_then() -> None:
    tally = Tally("beef")
    stream = tally.opened(chunked=True)
    tally.publish(), tally.publish()
    assert not stream.take(chunk(frames(1)) + b"0\r\n\r\n", now=9)
    tally.closed(stream)
    tally.publish()
    assert (tally.lost(), tally.owed, len(tally.ended)) == (1, 0, 1)


def test_what_is_no_chunk_is_an_error() -> None:
    with pytest.raises(ValueError, match="chunk"):
        Tally("beef").opened(chunked=True).take(b"data: 1\r\n\r\n", now=9)


def test_measuring_begins_with_nothing_but_what_was_lost_and_doubled() -> None:
    tally = Tally("beef")
    stream = tally.opened(chunked=True)
    tally.publish(), tally.publish()
    take(stream, 2, 2)
    tally.begin()
    assert (tally.deliveries, tally.bytes, len(tally.late)) == (0, 0, 0)
    assert (tally.lost(), tally.doubled) == (1, 1)


async def test_waiting_gives_up_when_nothing_comes() -> None:
    tally = Tally("beef")
    tally.opened(chunked=True)
    assert await tally.until_owed(1, patience=0)
    tally.publish()
    assert await tally.until_owed(2, patience=0)
    assert not await tally.until_owed(1, patience=0)
    assert tally.first_error == "nothing came for 0 s"


async def test_waiting_ends_when_enough_has_come() -> None:
    tally = Tally("beef")
    stream = tally.opened(chunked=True)
    tally.publish()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(tally.until_owed(1, patience=30))
        group.create_task(asyncio.to_thread(int)).add_done_callback(lambda _: take(stream, 1))
    assert waiting.result()
