"""Revocations on three nodes of which one is cut off, or stands still, for a while: nothing that is published after a
revocation was acknowledged reaches a stream that it names, on any node.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import jwt
import pytest

from sse_app.brokers import open_broker
from sse_app.publication import Draft
from tests.chaos.client import BEGIN, Connection, Stream, until_notified
from tests.chaos.conftest import Server, count
from tests.chaos.launch import launched
from tests.chaos.proxy import proxy_to
from tests.support.nats_server import NatsServer
from tests.support.nodes import node_on
from tests.support.peers import read_events, turns
from tests.support.redis_server import RedisServer
from tests.support.revoking import LAST, assert_none_was_sent_after_its_revocation, is_complete, join, revocation

USERS = [str(number) for number in range(40)]
SECRET = "a secret of 32 bytes and a little more"


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


# A process that stands still, whatever its log is: a partition of a log in a file, which has no network to cut


@pytest.fixture(params=["sqlite", "redis", "nats"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Server]]:
    """Three servers of one hub; the last one is to stand still."""
    kind, log = request.param, tmp_path / "log"
    shared = kind != "sqlite"
    url = request.getfixturevalue(f"{kind}_server").url() if shared else f"sqlite:///{tmp_path}/hub.db"
    with ExitStack() as stack:
        flags = ("--broker", url, "--token-secret", SECRET)
        yield [stack.enter_context(launched(log, *flags)) for _ in range(3)]


def token_of(user: str, **grants: object) -> str:
    now = time.time()
    sse = {"subscribe": ["**"], **grants}
    return jwt.encode({"sub": user, "iat": now - 60, "exp": now + 600, "sse": sse}, SECRET, "HS256")


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@asynccontextmanager
async def asked(port: int, user: str, cursor: str = "") -> AsyncIterator[Stream]:
    """A stream that a user has asked for. The server may not have answered yet."""
    async with await Connection.open(port) as connection:
        headers = bearer(token_of(user)) | ({"last_event_id": cursor} if cursor else {})
        await connection.send_head("GET", "/events", **headers)
        yield Stream(connection, cursor)


async def read(stream: Stream) -> int:
    """Read a stream until it is complete. Return the status of its answer."""
    head = await stream.connection.receive_head()
    while head.status == 200 and not is_complete(stream.events):
        assert not stream.over, "without a bye"
        await stream.read()
    return head.status


async def revoke(node: Connection, user: str, **headers: str) -> None:
    answer = await node.request("POST", "/revoke", json.dumps({"user": user}).encode(), **headers)
    assert answer.status == 200, answer


@pytest.mark.parametrize("seed", range(count(ci=1, full=5)))
async def test_a_process_that_stood_still_sends_revoked_streams_nothing_published_later(
    servers: list[Server], seed: int
) -> None:
    chance, total, revoked_at = Random(seed), count(ci=200, full=1_000), dict[str, int]()
    far, admin = servers[-1], bearer(token_of("admin", admin=True, publish=["**"]))
    async with AsyncExitStack() as stack:
        near = [await stack.enter_async_context(await Connection.open(server.port)) for server in servers[:-1]]
        first = await near[0].publish("1", **admin)
        begin = first.rpartition("-")[0] + BEGIN
        users = USERS[:16]
        opened = [
            (user, await stack.enter_async_context(asked(server.port, user, begin)))
            for user in users
            for server in servers
        ]
        reading = [asyncio.create_task(read(stream)) for _, stream in opened]
        await until_notified(lambda: all(stream.events for _, stream in opened))
        late = list[tuple[str, Stream]]()  # asked for while their server stood still, and their users were out
        for number in range(2, total + 1):
            if number == total // 4:
                far.process.send_signal(signal.SIGSTOP)
            elif number == total * 3 // 4:
                late += [(user, await stack.enter_async_context(asked(far.port, user, begin))) for user in revoked_at]
                reading += [asyncio.create_task(read(stream)) for _, stream in late]
                far.process.send_signal(signal.SIGCONT)
            if number % (total // 20) == 0:
                user = chance.choice(users)
                await revoke(chance.choice(near), user, **admin)
                revoked_at.setdefault(user, number - 1)
            await chance.choice(near).publish(str(number), **admin)
        await near[0].publish(LAST, **admin)
        statuses = await asyncio.gather(*reading)
        assert set(statuses[: len(opened)]) == {200}
        assert set(statuses[len(opened) :]) <= {200, 401}
        let_in = [(user, stream.events) for user, stream in (*opened, *late) if stream.events]
        assert_none_was_sent_after_its_revocation(let_in, revoked_at, total)
        assert late
        assert len(revoked_at) > 5
