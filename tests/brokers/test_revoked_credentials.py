"""Tokens and keys that were revoked, at the doors of hubs over each broker: at every hub, and after a restart."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from sse_app import Event, Hub
from tests.support.endpoints import payload
from tests.support.tokens import AUDIENCE, ISSUER, claims, jwks, pair, sign
from tests.support.web import Web, code_of, web
from tests.support.worlds import World
from tests.web.test_credentials import KeyFile, bearer

PAIRS = {"k1": pair("rsa"), "k2": pair("p-256")}
NEWS = 'subscribe = ["news/*"]'


@pytest.fixture(params=("memory", "sqlite", "redis", "nats"))
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


@dataclass
class Caller:
    """A caller whom a revocation names. ``renew`` makes its next credential, which counts if the caller is ``back``."""

    revocation: dict[str, Any]
    credential: str
    renew: Callable[[], str]
    back: bool = True


def token(user: str, *, kid: str = "k1", **changed: Any) -> str:
    """A token of an hour ago. All its ids have the user's name."""
    usual = {"iat": time.time() - 3_600, "jti": f"jti-{user}", "sid": f"sid-{user}", "sse": {"subscribe": ["news/*"]}}
    return sign(claims(sub=user, **{**usual, **changed}), PAIRS[kid], header={"kid": kid})


class Site:
    """Hubs on one log, with the same keys; who is revoked there, and who never is."""

    def __init__(self, world: World, directory: Path) -> None:
        keys, self._world = KeyFile(directory), world
        (directory / "keys.json").write_text(jwks(*(by.jwk(kid) for kid, by in PAIRS.items())))
        self._settings: dict[str, Any] = {
            "auth_file": str(keys.path),
            "token_keys": str(directory / "keys.json"),
            "token_issuer": ISSUER,
            "token_audience": AUDIENCE,
        }
        self.admin, self.bystander = bearer(keys.add("admin", "admin = true")), token("e")
        till, next_till = keys.add("till", NEWS), keys.add("till-2", NEWS)
        self.callers = [
            Caller({"token": "jti-a"}, token("a"), lambda: token("a", jti="another")),
            Caller({"session": "sid-b"}, token("b"), lambda: token("b", sid="another")),
            Caller({"user": "c"}, token("c"), lambda: token("c", iat=time.time())),
            Caller({"kid": "k2"}, token("d", kid="k2"), lambda: token("d", kid="k2", iat=time.time()), back=False),
            Caller({"key": "till"}, till, lambda: next_till),
        ]

    @asynccontextmanager
    async def hubs(self, count: int) -> AsyncIterator[list[Web]]:
        """So many hubs; one on a log in memory."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.hub()) for _ in range(count if self._world.kept else 1)]

    def hub(self) -> AbstractAsyncContextManager[Web]:
        return web(Hub(self._world.open(), **self._settings))

    async def check(self, hub: Web) -> None:
        """Check that at this hub all that was revoked is refused, and all else is let in."""
        for caller in self.callers:
            refused = await hub.client.get("/events", headers=bearer(caller.credential))
            assert code_of(refused) == (401, "invalid_token"), caller
        renewed = {caller.renew(): caller.back for caller in self.callers}
        for credential, counts in (renewed | {self.bystander: True}).items():
            answer = await hub.client.head("/events", headers=bearer(credential))
            assert answer.status_code == (200 if counts else 401), credential


async def test_what_was_revoked_opens_nothing_at_any_hub_and_after_a_restart(world: World, tmp_path: Path) -> None:
    site = Site(world, tmp_path)
    async with site.hubs(2) as hubs, AsyncExitStack() as stack:

        async def connected(credential: str) -> list[AsyncIterator[Event]]:
            opened = [hub.stream(headers=bearer(credential)) for hub in hubs]
            streams = [await stack.enter_async_context(stream) for stream in opened]
            assert [(await anext(stream)).type for stream in streams] == ["welcome"] * len(hubs)
            return streams

        streams = [await connected(caller.credential) for caller in site.callers]
        others = await connected(site.bystander)
        for number, caller in enumerate(site.callers):
            hub = hubs[number % len(hubs)]
            answer = await hub.client.post("/revoke", json=caller.revocation, headers=site.admin)
            assert (answer.status_code, answer.json()["closed"]) == (200, 1), caller
            await hub.hub.publish(str(number), topic="news/1")
            for stream in chain(others, *streams[number + 1 :]):  # before the next end, which drops what waits
                assert (await anext(stream)).data == str(number)
        for stream in chain(*streams):
            (bye,) = [event async for event in stream]
            assert (bye.type, payload(bye)["reason"]) == ("bye", "revoked")
        for hub in hubs:
            await site.check(hub)
        if world.kept:
            async with site.hub() as newcomer:
                await site.check(newcomer)
    if world.kept:
        async with site.hub() as restarted:
            await site.check(restarted)


async def test_topics_that_were_taken_back_stay_so_at_any_hub_and_after_a_restart(world: World, tmp_path: Path) -> None:
    site, ann = Site(world, tmp_path), bearer(token("ann"))

    async def check(hub: Web) -> None:
        async with hub.stream("/events?last=10", headers=ann) as stream:
            await anext(stream)
            assert (await anext(stream)).data == "granted"

    async with site.hubs(2) as hubs:
        async with hubs[-1].stream(headers=ann) as stream:
            await anext(stream)
            body = {"user": "ann", "topics": ["news/1"]}
            answer = await hubs[0].client.post("/revoke", json=body, headers=site.admin)
            assert answer.status_code == 200
            await hubs[0].hub.publish("denied", topic="news/1")
            await hubs[0].hub.publish("granted", topic="news/2")
            await hubs[0].hub.publish("denied", topic="news/1")
            (bye,) = [event async for event in stream]
            assert (bye.type, payload(bye)["reason"]) == ("bye", "changed")
        for hub in hubs:
            await check(hub)
    if world.kept:
        async with site.hub() as restarted:
            await check(restarted)
