"""Credentials of a whole hub on virtual time: keys that come, go, and cannot be fetched; and tokens that do not count,
at a door.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app import Event
from sse_app.auth.jwks import LOOK_AGAIN, RemoteKeys
from tests.auth.test_credentials import File, file
from tests.auth.test_jwks import Login
from tests.auth.test_tokens import BAD, EC, NOW, RSA, good
from tests.support.endpoints import payload
from tests.support.tokens import AUDIENCE, ISSUER, claims, jwks, pair, sign
from tests.support.web import Web, code_of, web

__all__ = ["file"]  # a fixture

EVENT_SOURCE = {"Accept": "text/event-stream"}
NEW = pair("p-384")
SETTINGS: dict[str, Any] = {"token_issuer": ISSUER, "token_audience": AUDIENCE}

virtual_time = pytest.mark.virtual_time


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def token(by: Any, kid: str) -> dict[str, str]:
    return bearer(sign(claims(sse={"subscribe": ["**"]}, sub=kid), by, header={"kid": kid}))


async def end_of(stream: AsyncIterator[Event]) -> tuple[str, float]:
    """The reason for which a stream ends, and after how many seconds from now."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    bye = [event async for event in stream][-1]
    return payload(bye)["reason"], loop.time() - begun


@virtual_time
async def test_the_streams_of_a_key_that_is_removed_end_within_six_seconds(file: File) -> None:
    file.write(till='subscribe = ["**"]', shop='subscribe = ["**"]')
    async with web(auth_file=str(file.path)) as opened:
        async with (
            opened.stream(headers=bearer(file.secrets["till"])) as till,
            opened.stream(headers=bearer(file.secrets["shop"])) as shop,
        ):
            await anext(till), await anext(shop)
            file.write("[keys", shop='subscribe = ["**"]')  # broken: what was there before stays in force
            await asyncio.sleep(30)
            assert (await opened.client.get("/grant", headers=bearer(file.secrets["till"]))).status_code == 200
            file.write(shop='subscribe = ["**"]')
            reason, seconds = await end_of(till)
            assert (reason, seconds <= 6) == ("revoked", True)
            await opened.hub.publish("on")
            assert (await anext(shop)).data == "on"
        refused = await opened.client.get("/events", headers=bearer(file.secrets["till"]))
        assert code_of(refused) == (401, "invalid_token")


@asynccontextmanager
async def behind(login: Login, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Web]:
    """A hub that fetches its keys from this issuer."""
    monkeypatch.setattr(RemoteKeys, "_default_client", lambda keys: login.client())
    async with web(token_keys="https://login.example/jwks.json", **SETTINGS) as opened:
        await asyncio.sleep(1)  # until they have been asked for
        yield opened


@virtual_time
async def test_the_streams_of_a_key_that_its_issuer_takes_back_end_within_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = Login()
    login.answer = login.set_of(RSA.jwk("old"), NEW.jwk("new"), **{"cache-control": "max-age=1"})
    async with behind(login, monkeypatch) as opened:
        async with opened.stream(headers=token(RSA, "old")) as old, opened.stream(headers=token(NEW, "new")) as new:
            await anext(old), await anext(new)
            login.answer = httpx.Response(503)
            await asyncio.sleep(600)  # an outage takes nothing back
            assert len(opened.hub) == 2
            login.answer = login.set_of(NEW.jwk("new"))
            reason, seconds = await end_of(old)
            assert (reason, seconds <= 60) == ("revoked", True)
            await opened.hub.publish("on")
            assert (await anext(new)).data == "on"
        assert code_of(await opened.client.get("/events", headers=token(RSA, "old"))) == (401, "invalid_token")


@virtual_time
async def test_an_outage_of_the_issuer_is_none_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    login = Login(RSA.jwk("old"))
    async with behind(login, monkeypatch) as opened:
        assert (await opened.client.get("/grant", headers=token(RSA, "old"))).status_code == 200
        login.answer = None
        for minute in range(60):
            await asyncio.sleep(60)
            sub = sign(claims(sub=str(minute)), RSA, header={"kid": "old"})  # not one that is kept
            assert (await opened.client.get("/grant", headers=bearer(sub))).status_code == 200
        # It may be one of a key that is new: nobody can tell.
        assert code_of(await opened.client.get("/grant", headers=token(NEW, "new"))) == (503, "keys_unavailable")
        login.answer = login.set_of(RSA.jwk("old"), NEW.jwk("new"))
        await asyncio.sleep(LOOK_AGAIN)
        assert (await opened.client.get("/grant", headers=token(NEW, "new"))).status_code == 200


@virtual_time
async def test_a_hub_starts_without_its_issuer_and_tells_who_comes_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = Login(RSA.jwk("old"))
    answer, login.answer = login.answer, None
    async with behind(login, monkeypatch) as opened:
        for _ in range(100):
            refused = await opened.client.get("/events", headers=token(RSA, "old"))
            assert code_of(refused) == (503, "keys_unavailable")
            assert refused.headers["retry-after"] == "5"
        stream = await opened.client.get("/events", headers=token(RSA, "old") | EVENT_SOURCE)
        assert (stream.status_code, stream.text[:7]) == (200, "retry: ")
        assert len(login.asked) == 1
        assert (await opened.client.get("/healthz")).status_code == 200
        login.answer = answer
        await asyncio.sleep(LOOK_AGAIN)
        assert (await opened.client.get("/grant", headers=token(RSA, "old"))).status_code == 200


async def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = tmp_path / "keys.json"
    keys.write_text(jwks(RSA.jwk(), EC.jwk("k2")))
    async with web(token_keys=str(keys), **SETTINGS) as opened:
        assert opened.hub._credentials is not None
        opened.hub._credentials.tokens._clock = lambda: NOW
        assert (await opened.client.get("/grant", headers=bearer(good()))).json()["user"] == "42"
        seen = set()
        for name, make in BAD.items():
            given = make()
            sent = {b"Authorization": b"Bearer " + given.encode(errors="replace")}
            answer = await opened.client.get("/events", headers={**sent, b"Accept": b"text/event-stream"})
            assert code_of(answer) == (401, "invalid_token"), name
            seen.add((answer.content, answer.headers["www-authenticate"]))
            if len(given) > 10:
                assert given not in answer.text + str(answer.headers) + caplog.text
        assert len(seen) == 1
        counted = opened.hub.node.totals.auth
        assert (counted["ok"], counted["invalid"] + counted["expired"]) == (1, len(BAD))
