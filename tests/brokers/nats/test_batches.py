"""Batches on NATS, which knows none: one message after the other, in their order, and completed after an outage."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from nats.js import JetStreamContext, api

from sse_app.brokers import open_broker
from sse_app.brokers.nats import NatsBroker, batches, log
from sse_app.drafts import Drafts
from sse_app.errors import KeyReused, LogFull, OutcomeUnknown, TooLarge
from sse_app.publication import Position
from tests.brokers.test_brokers import batch, keyed, publish, replayed, texts
from tests.chaos.proxy import proxy_to
from tests.support.nats_server import NatsServer
from tests.support.peers import until

pytestmark = pytest.mark.usefixtures("impatient_nats")

either_key = pytest.mark.parametrize(
    "drafts", [batch(*"abcde", key="k"), keyed(*zip("12345", "abcde", strict=True))], ids=["of all", "of each"]
)


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[NatsBroker]:
    async with opened(nats_server.url()) as broker:
        yield broker


def opened(url: str) -> NatsBroker:
    broker = open_broker(url)
    assert isinstance(broker, NatsBroker)
    return broker


def before(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
    """Do something once, before the message of this number is sent."""
    send, sent = log.Log._append, 0

    async def sends(self: log.Log, *given: Any) -> tuple[Position, bool]:
        nonlocal sent
        sent += 1
        if sent == number and (awaited := act()) is not None:
            await awaited
        return await send(self, *given)

    monkeypatch.setattr(log.Log, "_append", sends)


@either_key
async def test_what_another_publishes_in_between_changes_no_order(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch, drafts: Drafts
) -> None:
    before(monkeypatch, 3, lambda: publish(broker, "another's"))
    positions = await broker.publish_many(drafts)
    assert texts(await replayed(broker)) == ["a", "b", "another's", "c", "d", "e"]
    assert [position.offset for position in positions] == [1, 2, 4, 5, 6]
    assert await broker.publish_many(drafts) == positions
    assert (await broker.top(fresh=True)).offset == 6


async def test_batches_of_several_windows_are_in_their_order(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "WINDOW", 2)
    before(monkeypatch, 4, lambda: publish(broker, "another's"))
    await broker.publish_many(batch(*"abcdefg"))
    assert "".join(filter(None, texts(await replayed(broker)))).replace("another's", "") == "abcdefg"


@either_key
async def test_a_batch_that_an_outage_interrupts_is_completed_by_the_same_keys(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, drafts: Drafts
) -> None:
    monkeypatch.setattr(log, "WINDOW", 2)
    async with proxy_to(nats_server.port) as proxy, opened(nats_server.url(port=proxy.port)) as broker:
        with monkeypatch.context() as patch:
            before(patch, 3, proxy.cut)
            with pytest.raises(OutcomeUnknown, match="a part of the batch"):
                await broker.publish_many(drafts)
        await until(lambda: broker._log is not None)
        assert texts(await replayed(broker)) == ["a", "b"]
        await publish(broker, "in between")
        positions = await broker.publish_many(drafts)
        assert texts(await replayed(broker)) == ["a", "b", "in between", "c", "d", "e"]
        assert [position.offset for position in positions] == [1, 2, 4, 5, 6]
        assert await broker.publish_many(drafts) == positions


async def test_a_batch_with_what_is_too_large_claims_nothing(broker: NatsBroker) -> None:
    large = "x" * 1_048_000
    for drafts in (batch("a", large), batch("a", large, key="k"), keyed(("k", "a"), ("l", large))):
        with pytest.raises(TooLarge, match="at most 1,047,552 bytes"):
            await broker.publish_many(drafts)
    assert (await broker.top(fresh=True)).offset == 0
    await broker.publish_many(keyed(("k", "b"), ("l", "c")))


@pytest.mark.parametrize(("room", "error"), [(1, LogFull), (2, OutcomeUnknown)])
async def test_a_stream_that_is_full_in_the_middle_leaves_the_outcome_open(
    broker: NatsBroker, nats_server: NatsServer, room: int, error: type[Exception]
) -> None:
    await publish(broker, "old")
    assert broker._log is not None
    js: JetStreamContext = broker._log._js
    config = (await js.stream_info(broker._log._stream)).config
    await js.update_stream(config, discard=api.DiscardPolicy.NEW, max_msgs=room)
    with pytest.raises(error):
        await broker.publish_many(batch("a", "b", key="k"))
    await js.update_stream(config, discard=api.DiscardPolicy.OLD, max_msgs=1_000)
    await broker.top(fresh=True)
    await broker.publish_many(batch("a", "b", key="k"))
    assert texts(await replayed(broker)) == ["old", "a", "b"]


async def test_a_refusal_gives_the_keys_back_that_it_had_claimed(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(broker, "x", idempotency_key="known")
    with pytest.raises(KeyReused):
        await broker.publish_many(keyed(("a", "a"), ("known", "y")))
    await publish(broker, "not a", idempotency_key="a")
    with pytest.raises(KeyReused):
        await broker.publish_many(keyed(("known", "x"), ("a", "a")))


@pytest.mark.parametrize("offsets", [[1], [1, 2, 3], [1, 2, 5, 4, 9, 10], [3, 3, 4]], ids=str)
def test_positions_are_remembered_as_they_were(offsets: list[int]) -> None:
    positions = [Position("e", offset) for offset in offsets]
    assert batches._positions(batches._places(positions).encode()) == positions


@pytest.mark.parametrize("places", [b"", b"e-1", b"e-1*0", b"e-1*2,", b"x*2", b"e-1*99999"])
def test_what_is_remembered_of_no_batch_are_no_positions(places: bytes) -> None:
    assert batches._positions(places) == ()


def test_an_id_is_one_place_of_one_batch() -> None:
    ids = {batches.message_id(key, digest, index) for key in "kl" for digest in "de" for index in (None, 0, 1)}
    assert len(ids) == 12
