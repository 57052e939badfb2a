"""A client with tokens on a hub that takes them: what expires is renewed, what is revoked is not, nothing is lost."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
import pytest

from sse_app import Client, Hub
from sse_app.errors import Refused
from sse_app.testing import StreamingASGITransport
from tests.support.peers import PATIENCE

SECRET = "a secret of 32 bytes and a little more"


class Issuer:
    """Makes tokens for ann, and counts how often it is asked for a newer one."""

    def __init__(self) -> None:
        self.refreshed = 0
        self.issued = time.time() - 60  # before every revocation of the test

    def __call__(self, *, refresh: bool) -> str:
        self.refreshed += refresh
        sse = {"subscribe": ["news/*"], "publish": ["news/*"]}
        claims = {"sub": "ann", "iat": self.issued, "jti": str(self.refreshed), "exp": time.time() + 600, "sse": sse}
        return jwt.encode(claims, SECRET, "HS256")


@asynccontextmanager
async def listening(issuer: Issuer, **settings: Any) -> AsyncIterator[tuple[Hub, Any]]:
    hub = Hub(token_secret=SECRET, retry_min=0.01, retry_max=0.02, **settings)
    transport = StreamingASGITransport(hub.app)
    async with (
        hub,
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as http,
        Client("http://localhost", token=issuer, http=http) as client,
        client.listen("news/*", last=1) as stream,  # it connects when it is first read, after the first publication
    ):
        yield hub, stream


async def test_a_stream_whose_credential_is_asked_for_again_loses_nothing() -> None:
    issuer = Issuer()
    seen = list[int]()
    async with listening(issuer, auth_max_age=1) as (hub, stream):
        await hub.publish(0, topic="news/1")
        async for event in stream:
            seen.append(int(event.data))
            if issuer.refreshed == 2:
                break
            await hub.publish(len(seen), topic="news/1")
    assert seen == list(range(len(seen)))
    assert hub.node.totals.closed["expired"] == 2


async def test_a_user_that_was_revoked_is_refused_after_one_more_try() -> None:
    issuer = Issuer()
    async with listening(issuer) as (hub, stream):
        await hub.publish("before", topic="news/1")
        assert (await anext(stream)).data == "before"
        await hub.revoke(user="ann")
        await hub.publish("after", topic="news/1")
        with pytest.raises(Refused) as refused:
            await anext(stream)
    assert (refused.value.status, refused.value.code) == (401, "invalid_token")
    assert issuer.refreshed == 1


async def test_what_is_not_granted_is_refused_at_once_and_asks_for_no_newer_token() -> None:
    issuer = Issuer()
    async with listening(issuer) as (hub, stream):
        transport = StreamingASGITransport(hub.app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as http,
            Client("http://localhost", token=issuer, http=http) as client,
        ):
            with pytest.raises(Refused) as refused:
                await client.publish("x", topic="secret")
            assert refused.value.code == "insufficient_scope"
            with pytest.raises(Refused) as listened:
                async with client.listen("secret") as other:
                    await anext(other)
            assert listened.value.code == "insufficient_scope"
            receipt = await client.publish("x", topic="news/1")
            assert (await anext(stream)).id == receipt.id
    assert issuer.refreshed == 0
