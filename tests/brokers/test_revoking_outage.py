"""Revocations while the broker is away, or its file locked: refused, and good when they are repeated."""

from pathlib import Path

import pytest

from sse_app import Hub
from sse_app.brokers.sqlite import board_file, writer
from sse_app.errors import BrokerUnavailable, InvalidToken
from sse_app.publication import Draft, Position
from tests.brokers.test_board_outage import answer, first_error, server, world
from tests.support.broker_process import BrokerProcess
from tests.support.endpoints import payload
from tests.support.nodes import data_of
from tests.support.peers import datas, read_events
from tests.support.revoking import join, nodes_on, revocation, to_the_end
from tests.support.sqlite_log import locked
from tests.support.web import code_of, web
from tests.support.worlds import World
from tests.web.test_credentials import ANN, SECRET, bearer, token

__all__ = ["server", "world"]


async def test_a_revocation_that_meets_an_outage_is_repeated_and_then_holds(
    server: BrokerProcess, world: World
) -> None:
    async with nodes_on(world, 2) as (one, two):
        streams = [await join(node, "42") for node in (one, two)]
        other = await join(two, "43")
        await one.publish(Draft.compose("before"))
        await read_events(other, lambda events: "before" in datas(events))
        server.kill()
        await first_error(lambda: one.broker.board.get("a.b"))
        asked = revocation(user="42")
        with pytest.raises(BrokerUnavailable):
            await one.revoke(asked)
        assert not any(stream.is_over for stream in streams)
        server.start()
        position, _ = await answer(lambda: one.revoke(asked))
        assert isinstance(position, Position)
        await answer(lambda: two.publish(Draft.compose("after")))
        for stream in streams:
            events = await to_the_end(stream)
            assert data_of(events[-1])["reason"] == "revoked"
            assert set(datas(events)) <= {"before"}
        await read_events(other, lambda events: "after" in datas(events))
        for node in (one, two):
            with pytest.raises(InvalidToken):
                await answer(lambda node=node: join(node, "42"))  # type: ignore[misc]


@pytest.mark.parametrize("which", ["hub.db", "hub.db-board"])
async def test_a_revocation_that_meets_a_locked_file_is_a_503_and_holds_when_it_is_repeated(
    sqlite_world: World, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (board_file, writer):
        monkeypatch.setattr(module, "LOCK_PATIENCE", 0.02)
    ann, bob = (bearer(token(ANN, sub=user)) for user in ("ann", "bob"))
    admin = bearer(token({"admin": True}, sub="admin"))
    async with (
        web(Hub(sqlite_world.open(), token_secret=SECRET)) as one,
        web(Hub(sqlite_world.open(), token_secret=SECRET)) as two,
        one.stream(headers=ann) as here,
        two.stream(headers=ann) as there,
        two.stream(headers=bob) as other,
    ):
        for stream in (here, there, other):
            assert (await anext(stream)).type == "welcome"
        with locked(tmp_path / which):
            for _ in range(2):
                refused = await one.client.post("/revoke", json={"user": "ann"}, headers=admin)
                assert code_of(refused) == (503, "log_unavailable")
                assert int(refused.headers["retry-after"]) > 0
        answer = await one.client.post("/revoke", json={"user": "ann"}, headers=admin)
        assert answer.status_code == 200
        await one.hub.publish("after", topic="news/1")
        assert (await anext(other)).data == "after"
        for stream in (here, there):
            (bye,) = [event async for event in stream]
            assert (bye.type, payload(bye)["reason"]) == ("bye", "revoked")
        for hub in (one, two):
            assert code_of(await hub.client.get("/events", headers=ann)) == (401, "invalid_token")
