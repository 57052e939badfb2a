"""A hub that takes keys and tokens: each door, cookies, anonymous callers, and credentials that are taken back."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from sse_app import Config, Hub
from sse_app.auth.keys import new_key
from sse_app.errors import ConfigError
from sse_app.events import EventDecoder
from sse_app.grants import Grant
from sse_app.revocations import Revocation
from tests.support.endpoints import payload
from tests.support.web import Web, code_of, web

SECRET = "a secret of 32 bytes and a little more"
SSE = {"Accept": "text/event-stream"}


def token(sse: Mapping[str, object], *, secret: str = SECRET, lasts: float = 600, **claims: Any) -> str:
    return jwt.encode({"exp": time.time() + lasts, "sse": sse, **claims}, secret, "HS256")


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


ANN = {"subscribe": ["news/*", "users/ann"], "publish": ["news/*"]}


class KeyFile:
    """An auth_file with keys that grant what they are given."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "hub.toml"
        self._tables: dict[str, str] = {}
        self.write()

    def add(self, name: str, grants: str) -> str:
        """Add a key, and return its secret."""
        secret, digest = new_key(name)
        self._tables[name] = f'[keys.{name}]\nhash = "{digest}"\n{grants}\n'
        self.write()
        return secret

    def remove(self, name: str) -> None:
        del self._tables[name]
        self.write()

    def write(self) -> None:
        self.path.touch(0o600)
        self.path.write_text("".join(self._tables.values()))


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path)


async def test_a_token_opens_what_it_grants_and_no_more() -> None:
    async with web(token_secret=SECRET) as opened:
        ann = bearer(token(ANN, sub="ann"))
        async with opened.stream("/events", headers=ann) as stream:
            welcome = payload(await anext(stream))
            assert (welcome["topics"], welcome["user"], welcome["subscribers"]) == (
                ["news/*", "users/ann"],
                "ann",
                None,
            )
            assert 595 <= welcome["expires_in"] <= 600
        assert (await opened.client.post("/broadcast?topic=news/1", content="x", headers=ann)).status_code == 200
        assert code_of(await opened.client.post("/broadcast?topic=users/ann", content="x", headers=ann))[0] == 403
        assert code_of(await opened.client.get("/stats", headers=ann)) == (403, "insufficient_scope")
        assert code_of(await opened.client.get("/events")) == (401, "unauthorized")


async def test_every_failure_of_a_credential_has_one_answer() -> None:
    wrong = [
        token(ANN, secret="another secret of 32 bytes, and more"),
        token(ANN, lasts=-1),
        token({"subscribe": "news/*"}),
        "a.b.c",
        "x" * 43,
        f"ssk_till_{'x' * 43}",
        "",
        token(ANN, sub="revoked"),
    ]
    async with web(token_secret=SECRET) as opened:
        await _revoke(opened, user="revoked")
        answers = [await opened.client.get("/events", headers=bearer(each) | SSE) for each in wrong]
        assert {code_of(answer) for answer in answers} == {(401, "invalid_token")}
        assert len({answer.content for answer in answers}) == 1
        assert {answer.headers["www-authenticate"] for answer in answers} == {'Bearer error="invalid_token"'}
        assert opened.hub.node.totals.auth == {"invalid": len(wrong) - 1, "expired": 1}


async def test_a_key_is_found_in_the_file(key_file: KeyFile) -> None:
    till = key_file.add("till", 'publish = ["orders/**"]\nsubscribe = ["orders/**"]\nstats = "all"')
    async with web(auth_file=str(key_file.path)) as opened:
        answer = await opened.client.post("/broadcast?topic=orders/1", content="x", headers=bearer(till))
        assert answer.status_code == 200
        assert (await opened.client.get("/metrics", headers=bearer(till))).status_code == 200
        assert code_of(await opened.client.get("/stats", headers=bearer(till[:-1] + "!"))) == (401, "invalid_token")


async def test_a_publish_key_publishes_and_nothing_else_where_everyone_needs_a_credential() -> None:
    key = "k" * 32
    async with web(token_secret=SECRET, publish_key=key) as opened:
        assert (await opened.client.post("/broadcast", content="x", headers=bearer(key))).status_code == 200
        assert code_of(await opened.client.get("/events", headers=bearer(key))) == (403, "insufficient_scope")


async def test_a_header_is_stronger_than_a_cookie() -> None:
    async with web(token_secret=SECRET, auth_cookies=("session",)) as opened:
        ann, bob = token(ANN, sub="ann"), token(ANN, sub="bob")
        opened.client.cookies.set("session", bob)
        assert (await opened.client.get("/grant", headers=bearer(ann))).json()["user"] == "ann"
        assert (await opened.client.get("/grant")).json()["user"] == "bob"
        assert code_of(await opened.client.get("/grant", headers=bearer("x"))) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("cookies", "answer"),
    [
        (["session=ANN"], (200, "ann")),
        (["a=b; session=ANN; c"], (200, "ann")),
        (['session="ANN"'], (200, "ann")),
        (["session=ANN; session=ANN"], (200, "ann")),
        (["session=; session=ANN"], (200, "ann")),
        (["session=ANN; other=BOB"], (200, "ann")),  # in the order of the setting
        (["other=BOB; session=ANN"], (200, "ann")),
        (["other=BOB; session="], (200, "bob")),
        (["session=x; other=BOB"], (401, "invalid_token")),
        (["Session=ANN"], (401, "unauthorized")),
        (["session=Bearer ANN"], (401, "invalid_token")),
        (["session=ENCODED"], (401, "invalid_token")),  # percent-encoded, which no cookie is
        (["session=\xe9"], (401, "invalid_token")),
        (["session=ANN; session=BOB"], (400, "repeated_header")),
        (["session=x; session=ANN"], (400, "repeated_header")),
        (["session=ANN", "session=BOB"], (400, "repeated_header")),
    ],
    ids=str,
)
async def test_a_cookie_says_who_asks_unless_two_do(cookies: list[str], answer: tuple[int, str]) -> None:
    tokens = {"ANN": token(ANN, sub="ann"), "BOB": token(ANN, sub="bob")}
    tokens["ENCODED"] = tokens["ANN"].replace(".", "%2E")
    for name, given in tokens.items():
        cookies = [cookie.replace(name, given) for cookie in cookies]
    async with web(token_secret=SECRET, auth_cookies=("session", "other")) as opened:
        headers = [(b"Cookie", cookie.encode("latin-1")) for cookie in cookies]
        got = await opened.client.get("/grant", headers=headers)
        assert (got.status_code, got.json().get("user") or got.json()["code"]) == answer
        for given in tokens.values():
            assert given not in got.text


async def test_a_cookie_administrates_nothing() -> None:
    admin = token({"subscribe": ["**"], "admin": True, "stats": "all"}, sub="root")
    async with web(token_secret=SECRET, auth_cookies=("session",)) as opened:
        assert (await opened.client.get("/grant", headers=bearer(admin))).json()["admin"] is True
        opened.client.cookies.set("session", admin)
        assert (await opened.client.get("/grant")).json()["admin"] is False


async def test_who_is_nobody_gets_what_everyone_may_have_and_no_broadcasts() -> None:
    async with web(token_secret=SECRET, anonymous_subscribe=("news/*",)) as opened:
        async with opened.stream("/events") as stream:
            assert payload(await anext(stream))["topics"] == ["news/*"]
            await opened.hub.publish("for everyone who may see everything")
            await opened.hub.publish("news", topic="news/1")
            assert (await anext(stream)).data == "news"
        assert code_of(await opened.client.get("/events?topic=users/ann")) == (403, "insufficient_scope")
        assert code_of(await opened.post("x", topic="news/1")) == (403, "insufficient_scope")
        assert code_of(await opened.client.get("/events", headers=bearer("x"))) == (401, "invalid_token")
        assert opened.hub.node.totals.auth["anonymous"] == 3


@pytest.mark.parametrize(
    "settings",
    [{"anonymous_subscribe": ("news/*",)}, {"auth_cookies": ("session",)}],
    ids=["anonymous", "cookies"],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Hub(**settings)
    Hub(token_secret=SECRET, **settings)


def test_a_server_with_keys_or_tokens_may_listen_beyond_loopback() -> None:
    with pytest.raises(ConfigError, match="publish_key, keys or tokens"):
        Config(host="0.0.0.0")
    Config(host="0.0.0.0", token_secret=SECRET)


# Guessed


def from_address(address: str, credential: str | None = None) -> dict[str, str]:
    return {"X-Forwarded-For": address, **({} if credential is None else bearer(credential))}


@asynccontextmanager
async def guarded(**settings: Any) -> AsyncIterator[Web]:
    """A hub behind a proxy that it trusts, where three credentials of an address may fail in a minute."""
    proxy: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "forwarded_header": "x-forwarded-for"}
    async with web(token_secret=SECRET, failed_credentials="3/m", **proxy, **settings) as opened:
        yield opened


async def test_who_guesses_waits_and_nobody_else_does() -> None:
    async with guarded() as opened:
        get, good = opened.client.get, token(ANN, sub="ann")
        assert (await get("/grant", headers=from_address("192.0.2.1", good))).status_code == 200
        for _ in range(4):
            assert code_of(await get("/grant", headers=from_address("192.0.2.1")))[0] == 401  # no credential, no guess
        for _ in range(3):
            assert code_of(await get("/grant", headers=from_address("192.0.2.1", "x")))[0] == 401
        for credential in ("x", f"ssk_till_{'x' * 43}", token(ANN, sub="bob")):  # the last one is not even looked at
            refused = await get("/grant", headers=from_address("192.0.2.1", credential))
            assert code_of(refused) == (429, "too_many_requests")
            assert 1 <= int(refused.headers["retry-after"]) <= 20
        post = await opened.client.post("/broadcast?topic=news/1", content="x", headers=from_address("192.0.2.1", "x"))
        assert code_of(post) == (429, "too_many_requests")
        assert code_of(await get("/events?ticket=x", headers=from_address("192.0.2.1")))[0] == 429
        assert (await get("/grant", headers=from_address("192.0.2.1", good))).status_code == 200  # it is kept
        assert code_of(await get("/grant", headers=from_address("192.0.2.2", "x")))[0] == 401


async def test_who_tries_a_credential_that_was_taken_back_waits_too() -> None:
    async with guarded() as opened:
        revoked = from_address("192.0.2.1", token(ANN, jti="one"))
        await opened.hub.revoke(token="one")
        for _ in range(3):
            assert code_of(await opened.client.get("/grant", headers=revoked)) == (401, "invalid_token")
        for credential in ("x", token(ANN, sub="bob")):
            refused = await opened.client.get("/grant", headers=from_address("192.0.2.1", credential))
            assert code_of(refused) == (429, "too_many_requests")


async def test_a_network_of_ipv6_is_one_address_and_a_proxy_that_nobody_named_is_none() -> None:
    async with guarded() as opened:
        answers = [
            await opened.client.get("/grant", headers=from_address(f"2001:db8:1:2::{number:x}", "x"))
            for number in range(200)
        ]
        assert [answer.status_code for answer in answers].count(401) == 3
    async with web(token_secret=SECRET, failed_credentials="3/m") as opened:
        answers = [await opened.client.get("/grant", headers=from_address("192.0.2.1", "x")) for _ in range(10)]
        assert {answer.status_code for answer in answers} == {401}


async def test_an_event_source_comes_back_when_others_behind_its_address_have_guessed() -> None:
    async with guarded() as opened:
        for _ in range(3):
            await opened.client.get("/events?ticket=x", headers=from_address("192.0.2.1"))
        answer = await opened.client.get("/events?ticket=x", headers=from_address("192.0.2.1") | SSE)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        (bye,) = EventDecoder().feed(answer.content)
        assert (bye.type, payload(bye)["reason"], bye.retry) == ("bye", "limit", payload(bye)["retry"])
        assert 10_000 <= payload(bye)["retry"] <= 30_000


# Taken back


async def test_a_stream_of_a_key_that_is_gone_ends_and_one_that_changed_comes_back(key_file: KeyFile) -> None:
    till = key_file.add("till", 'subscribe = ["orders/**"]')
    shop = key_file.add("shop", 'subscribe = ["orders/**", "news/*"]')
    async with web(auth_file=str(key_file.path)) as opened, AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened.stream("/events", headers=bearer(till)))
        second = await stack.enter_async_context(opened.stream("/events", headers=bearer(shop)))
        await anext(first), await anext(second)
        key_file.remove("till")
        key_file._tables["shop"] = key_file._tables["shop"].replace(', "news/*"', "")
        key_file.write()
        assert opened.hub._credentials is not None
        await opened.hub._credentials.reload()
        assert payload(await anext(first))["reason"] == "revoked"
        assert payload(await anext(second))["reason"] == "changed"
        assert code_of(await opened.client.get("/events", headers=bearer(till))) == (401, "invalid_token")
        async with opened.stream("/events", headers=bearer(shop)) as again:
            assert payload(await anext(again))["topics"] == ["orders/**"]


async def test_a_ticket_of_a_key_that_is_gone_opens_nothing(key_file: KeyFile) -> None:
    till = key_file.add("till", 'subscribe = ["orders/**"]')
    async with web(auth_file=str(key_file.path)) as opened:
        url = (await opened.client.post("/tickets", headers=bearer(till))).json()["url"]
        async with opened.stream(url) as stream:
            await anext(stream)
            key_file.remove("till")
            assert opened.hub._credentials is not None
            await opened.hub._credentials.reload()
            assert payload(await anext(stream))["reason"] == "revoked"
        assert (await opened.client.head(url)).status_code == 401
        assert code_of(await opened.client.get(url)) == (401, "invalid_ticket")
        assert (await opened.client.head(url)).status_code == 401


async def _revoke(opened: Web, **named: Any) -> int:
    _, ended = await opened.hub.node.revoke(Revocation.of(lasts=600, **named))
    return ended


async def test_a_revoked_user_is_out_everywhere_and_a_new_login_is_in() -> None:
    async with web(token_secret=SECRET) as opened:
        old = bearer(token(ANN, sub="ann", iat=time.time() - 60))
        ticket = (await opened.client.post("/tickets", headers=old)).json()["url"]
        async with opened.stream("/events", headers=old) as stream, opened.stream(ticket) as by_ticket:
            await anext(stream), await anext(by_ticket)
            assert await _revoke(opened, user="ann") == 2
            assert payload(await anext(stream))["reason"] == "revoked"
            assert payload(await anext(by_ticket))["reason"] == "revoked"
        assert code_of(await opened.client.get("/events", headers=old)) == (401, "invalid_token")
        assert code_of(await opened.client.get("/grant", headers=old)) == (401, "invalid_token")
        assert code_of(await opened.client.post("/broadcast?topic=news/1", content="x", headers=old))[0] == 401
        assert (await opened.client.get(ticket)).status_code == 401
        new = bearer(token(ANN, sub="ann", iat=time.time() + 2))
        assert (await opened.client.get("/grant", headers=new)).json()["user"] == "ann"


async def test_topics_that_are_taken_back_leave_the_rest() -> None:
    async with web(token_secret=SECRET) as opened:
        ann = bearer(token(ANN, sub="ann"))
        async with opened.stream("/events", headers=ann) as stream:
            await anext(stream)
            await _revoke(opened, user="ann", topics=["news/*"])
            bye = payload(await anext(stream))
            assert bye["reason"] == "changed"
            assert bye["retry"] <= 1_000
        assert (await opened.client.get("/grant", headers=ann)).json()["subscribe"] == ["users/ann"]
        async with opened.stream("/events", headers=ann) as stream:
            await anext(stream)
            await opened.hub.publish("taken back", topic="news/1")
            await opened.hub.publish("left", topic="users/ann")
            assert (await anext(stream)).data == "left"


# Leaks


@pytest.mark.parametrize("path", ["/events", "/stats", "/grant", "/metrics", "/broadcast", "/tickets"])
async def test_no_answer_and_no_line_of_the_log_has_the_credential(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    given = token(ANN, secret="another secret of 32 bytes, and more")
    method = "POST" if path in ("/broadcast", "/tickets") else "GET"
    async with web(token_secret=SECRET) as opened:
        for credential in (given, f"ssk_till_{'s' * 43}"):
            answer = await opened.client.request(
                method, path, headers=bearer(credential), content=b"x" * (method == "POST")
            )
            assert answer.status_code == 401
            assert credential not in answer.text + str(answer.headers)
            assert credential not in caplog.text
    assert given not in json.dumps(opened.hub.node.totals.as_dict())


def test_no_secret_is_in_what_a_hub_or_a_config_shows() -> None:
    hub = Hub(token_secret=SECRET, publish_key="k" * 32)
    assert SECRET not in repr(hub.config) + repr(hub) + repr(vars(hub))
    assert "k" * 32 not in repr(hub.config)


async def test_a_grant_that_an_app_returns_is_taken_back_by_its_user() -> None:
    def who(request: Any) -> Grant:
        return Grant.of(user="ann", subscribe=["**"])

    async with web(authorize=who) as opened, opened.stream() as stream:
        await anext(stream)
        assert await _revoke(opened, user="ann") == 1
        assert payload(await anext(stream))["reason"] == "revoked"
        async with opened.stream() as again:  # the app knows her still
            assert payload(await anext(again))["user"] == "ann"


async def test_a_token_in_the_url_is_told_before_anything_else() -> None:
    async with web(token_secret=SECRET) as opened:
        for path in ("/events", "/stats", "/grant", "/metrics"):
            assert code_of(await opened.client.get(f"{path}?access_token=x")) == (400, "token_in_url")
            ann = bearer(token(ANN, sub="ann"))
            assert code_of(await opened.client.get(f"{path}?access_token=x", headers=ann)) == (400, "token_in_url")


async def test_metrics_tell_of_keys_and_files(key_file: KeyFile) -> None:
    operator = key_file.add("operator", 'stats = "all"')
    async with web(auth_file=str(key_file.path)) as opened:
        text = (await opened.client.get("/metrics", headers=bearer(operator))).text
        assert "sse_app_auth_file_failures 0.0" in text
        assert 'sse_app_auth_total{outcome="ok"} 1.0' in text
        assert "operator" not in text


@pytest.mark.virtual_time
async def test_credentials_that_fail_are_one_line_a_reason_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    async with web(token_secret=SECRET) as opened:
        for _ in range(50):
            await opened.client.get("/events", headers=bearer(token(ANN, lasts=-1)))
            await opened.client.get("/events?ticket=x")
        revoked = bearer(token(ANN, jti="one"))
        await opened.hub.revoke(token="one")
        for _ in range(50):
            await opened.client.get("/events", headers=revoked)
        lines = [record.getMessage() for record in caplog.records if record.name == "sse_app"]
        assert lines == [
            "refused a request from 127.0.0.1: credential: expired",
            "refused a request from 127.0.0.1: ticket",
            "refused a request from 127.0.0.1: credential: revoked",
        ]
