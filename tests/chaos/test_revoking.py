"""Revocations on three nodes of which one is cut off for a while: nothing that is published after a revocation was
acknowledged reaches a stream that it names, on any node.
"""

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest

from sse_app.brokers import open_broker
from sse_app.publication import Draft
from tests.chaos.conftest import count
from tests.chaos.proxy import proxy_to
from tests.support.nats_server import NatsServer
from tests.support.nodes import node_on
from tests.support.peers import read_events, turns
from tests.support.redis_server import RedisServer
from tests.support.revoking import LAST, assert_none_was_sent_after_its_revocation, is_complete, join, revocation

USERS = [str(number) for number in range(40)]


@pytest.fixture(params=["redis", "nats"])
def server(request: pytest.FixtureRequest) -> RedisServer | NatsServer:
    server = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(server, RedisServer | NatsServer)
    return server


@pytest.mark.parametrize("seed", range(count(ci=1, full=10)))
async def test_a_node_that_is_cut_off_sends_revoked_streams_nothing_published_later(
    server: RedisServer | NatsServer, seed: int
) -> None:
    chance, total = Random(seed), count(ci=200, full=1_000)
    url, revoked_at = server.url(), dict[str, int]()
    async with proxy_to(server.port) as proxy, AsyncExitStack() as stack:
        far_url = url.replace(f":{server.port}", f":{proxy.port}")
        nodes = [await stack.enter_async_context(node_on(open_broker(each))) for each in (url, url, far_url)]
        streams = [(user, await join(node, user)) for user in USERS for node in nodes]
        reading = [asyncio.create_task(read_events(stream, is_complete)) for _, stream in streams]
        for number in range(1, total + 1):
            if number == total // 4:
                assert proxy.tasks, "the far node is connected through it"
                proxy.hold()
            elif number == total // 2:
                proxy.cut()
                proxy.release()
            if number % (total // 20) == 0:
                user = chance.choice(USERS)
                await chance.choice(nodes[:2]).revoke(revocation(user=user))
                revoked_at.setdefault(user, number - 1)
            await chance.choice(nodes[:2]).publish(Draft.compose(str(number)))
            await turns(chance.randrange(5))
        await nodes[0].publish(Draft.compose(LAST))
        received = zip((user for user, _ in streams), await asyncio.gather(*reading), strict=True)
        assert_none_was_sent_after_its_revocation(received, revoked_at, total)
