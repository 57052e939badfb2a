import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth import credentials as module
from sse_app.auth.credentials import Credentials
from sse_app.auth.jwks import RemoteKeys
from sse_app.auth.keys import new_key
from sse_app.auth.waiting import Waiting
from sse_app.auth.withdrawal import Withdrawal
from sse_app.config import Config
from sse_app.errors import ConfigError, InvalidToken, KeysUnavailable
from tests.auth.test_jwks import give, served
from tests.support.tokens import AUDIENCE, ISSUER, KINDS, SECRET, claims, jwks, pair, sign

RSA, EC, HMAC = pair("rsa"), pair("p-256"), pair("secret")
URL_SETTINGS: dict[str, Any] = {"token_issuer": ISSUER, "token_audience": AUDIENCE}

PATIENT = partial(Waiting, patience=40.0)  # a busy machine is not a slow issuer

virtual_time = pytest.mark.virtual_time


class File:
    """An auth_file with these keys, by name what their tables say beside the hash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._age = 1_000  # seconds since 1970: old files, which differ

    def write(self, text: str = "", **keys: str) -> None:
        for name in keys:
            if name not in self.secrets:
                self.secrets[name], self._hashes[name] = new_key(name)
        tables = [f'[keys.{name}]\nhash = "{self._hashes[name]}"\n{more}\n' for name, more in keys.items()]
        self.path.write_text("".join(tables) + text)
        self.path.chmod(0o600)
        self._age += 1
        os.utime(self.path, (self._age, self._age))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "hub.toml")


@asynccontextmanager
async def running(credentials: Credentials) -> AsyncIterator[list[Withdrawal]]:
    """What is withdrawn while these credentials are kept up to date."""
    told = list[Withdrawal]()
    credentials.on_withdrawal = told.append
    task = asyncio.ensure_future(credentials.run())
    for _ in range(2):  # until the tasks that it starts have begun
        await asyncio.sleep(0)
    try:
        yield told
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


def credentials_of(file: File, **changed: Any) -> Credentials:
    return Credentials(Config(auth_file=str(file.path), **changed), PATIENT())


# What settings describe


async def test_the_settings_of_a_hub_are_an_issuer(tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_text(RSA.public_pem)
    for changed, by in (
        ({"token_secret": SECRET.decode()}, HMAC),
        ({"token_secret": SECRET.decode(), "token_algorithms": ("HS512",)}, HMAC),
        ({"token_keys": RSA.public_pem, **URL_SETTINGS}, RSA),
        ({"token_keys": str(tmp_path / "keys.pem"), **URL_SETTINGS}, RSA),
    ):
        tokens = Credentials(Config(**changed)).tokens
        bound = "token_issuer" in changed
        made = claims(sse={"stats": "own"}, **({} if bound else {"iss": None, "aud": None}))
        grant = await tokens.verify(sign(made, by, "HS512" if by is HMAC else None))
        assert (grant.user, grant.source, grant.stats) == ("42", "default", "own")


async def test_sources_of_claims_and_the_longest_life_are_settings() -> None:
    config = Config(token_secret=SECRET.decode(), token_claims=("mercure",), token_max_age=60)
    tokens = Credentials(config).tokens
    made = claims(iss=None, aud=None, exp=claims()["iat"] + 50, mercure={"subscribe": ["a"]}, sse={"admin": True})
    grant = await tokens.verify(sign(made, HMAC))
    assert grant.subscribe is not None
    assert not grant.admin
    with pytest.raises(InvalidToken):
        await tokens.verify(sign(claims(iss=None, aud=None), HMAC))


async def test_with_keys_and_several_issuers(file: File) -> None:
    file.write(
        f'[[issuers]]\nname = "main"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nkeys = """{RSA.public_pem}"""\n',
        till='publish = ["orders/**"]',
    )
    credentials = credentials_of(file, token_secret=SECRET.decode(), token_issuer="own")
    found = credentials.keys.find(file.secrets["till"])
    assert found is not None
    assert found.source == "till"
    assert (await credentials.tokens.verify(sign(claims(), RSA))).user == "main:42"
    assert (await credentials.tokens.verify(sign(claims(iss="own", aud=None), HMAC))).user == "default:42"


async def test_without_any_there_is_nothing_to_do() -> None:
    credentials = Credentials(Config())
    assert len(credentials.keys) == 0
    await credentials.run()
    with pytest.raises(InvalidToken):
        await credentials.tokens.verify(sign(claims(), RSA))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"auth_file": "missing.toml"}, "auth_file"),
    ({"auth_file": "."}, "auth_file"),
    ({"token_keys": "missing.pem", **URL_SETTINGS}, "token_keys"),
    ({"token_keys": RSA.private_pem, **URL_SETTINGS}, "token_keys"),
    ({"token_keys": RSA.public_pem}, "token_issuer"),
    ({"token_keys": RSA.public_pem, "token_issuer": ISSUER}, "token_audience"),
    ({"token_keys": "https://login.example/jwks.json"}, "token_issuer"),
    ({"token_keys": "http://login.example/jwks.json", **URL_SETTINGS}, "token_keys"),
    ({"token_keys": "https://s3cret:s3cret@login.example/", **URL_SETTINGS}, "token_keys"),
    ({"token_keys": "ftp://login.example/", **URL_SETTINGS}, "token_keys"),
    ({"token_keys": RSA.public_pem, **URL_SETTINGS, "token_algorithms": ("HS256",)}, "token_algorithms"),
    ({"token_keys": RSA.public_pem, **URL_SETTINGS, "token_algorithms": ("none",)}, "token_algorithms"),
    ({"token_keys": RSA.public_pem, **URL_SETTINGS, "token_claims": ("roles",)}, "token_claims"),
    ({"token_secret": SECRET.decode(), "token_algorithms": ("RS256",)}, "token_algorithms"),
    ({"token_secret": "s3cret" * 6, "token_algorithms": ("HS512",)}, "token_algorithms"),
    ({"token_secret": RSA.public_pem}, "token_secret"),
]


@pytest.mark.parametrize(("changed", "setting"), BAD, ids=lambda value: str(value)[:60])
def test_settings_that_cannot_be_honoured_stop_the_start(changed: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Credentials(Config(**changed))
    text = str(caught.value)
    assert text.startswith(f"{setting} ")
    assert "\n" not in text
    assert "s3cret" not in text
    assert "MII" not in text


def test_issuers_of_the_file_and_of_the_settings_can_be_told_apart(file: File) -> None:
    file.write(f'[[issuers]]\nname = "other"\nissuer = "x"\nsecret = "{SECRET.decode()}"\n')
    with pytest.raises(ConfigError, match="an issuer of its own"):
        credentials_of(file, token_secret=SECRET.decode())


def test_without_pyjwt_tokens_are_refused_and_keys_are_not(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(till="")
    for name in [name for name in sys.modules if name.startswith("sse_app.auth.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jwt", None)
    assert len(credentials_of(file).keys) == 1
    with pytest.raises(ConfigError, match=r"pip install 'sse-app\[jwt\]'"):
        Credentials(Config(token_secret=SECRET.decode()))


def test_a_hub_without_tokens_imports_no_pyjwt() -> None:
    text = (
        "import sys; from sse_app.config import Config; from sse_app.auth.credentials import Credentials;"
        "Credentials(Config()); assert not {'jwt', 'cryptography', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)


# Changes of the files


@virtual_time
async def test_a_key_that_is_gone_or_changed_is_told_within_six_seconds(file: File) -> None:
    file.write(till="", web="", shop="")
    credentials = credentials_of(file)
    async with running(credentials) as told:
        file.write(web='stats = "own"', shop="")
        await asyncio.sleep(6)
        assert told == [
            Withdrawal(sources=frozenset({"till"})),
            Withdrawal(sources=frozenset({"web"}), changed=True),
        ]
        assert credentials.keys.find(file.secrets["till"]) is None
        assert credentials.keys.find(file.secrets["shop"])
        file.write(web='stats = "own"', shop="", till="")
        await asyncio.sleep(6)
        assert credentials.keys.find(file.secrets["till"])
        assert len(told) == 2


@virtual_time
async def test_a_broken_file_changes_nothing_and_is_one_line(file: File, caplog: pytest.LogCaptureFixture) -> None:
    file.write(till="")
    credentials = credentials_of(file)
    async with running(credentials) as told:
        file.write('[keys.web]\nhash = "s3cret"\n')
        await asyncio.sleep(60)
        assert credentials.keys.find(file.secrets["till"])
        assert credentials.failures == 1
        file.path.unlink()
        await asyncio.sleep(60)
        assert credentials.failures == 2
        assert credentials.keys.find(file.secrets["till"])
        assert told == []
        file.write(web="")
        await asyncio.sleep(6)
        assert told == [Withdrawal(sources=frozenset({"till"}))]
    first, second = caplog.messages
    assert first.startswith("keys and issuers from before stay in force: auth_file: keys.web.hash is sha256:")
    assert second.startswith("keys and issuers from before stay in force: auth_file names a file that cannot be read")
    assert "s3cret" not in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@virtual_time
async def test_a_file_that_does_not_change_is_not_read(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(till="")
    credentials = credentials_of(file)
    async with running(credentials):
        monkeypatch.setattr(module, "AuthFile", None)
        await asyncio.sleep(60)


@virtual_time
async def test_key_files_are_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(jwks(RSA.jwk(), EC.jwk("k2")))
    os.utime(path, (1_000, 1_000))
    credentials = Credentials(Config(token_keys=str(path), **URL_SETTINGS))
    old, new = (sign(claims(), by, header={"kid": kid}) for by, kid in ((RSA, "k1"), (EC, "k2")))
    await credentials.tokens.verify(old)
    await credentials.tokens.verify(new)
    async with running(credentials) as told:
        path.write_text(jwks(EC.jwk("k2")))
        os.utime(path, (1_001, 1_001))
        await asyncio.sleep(6)
        assert told == [Withdrawal(keys=frozenset({("default", "k1")}))]
    assert await credentials.tokens.verify(new)
    with pytest.raises(InvalidToken):
        await credentials.tokens.verify(old)


async def test_what_a_key_without_an_id_has_signed_counts_no_longer_than_the_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_text(RSA.public_pem)
    credentials = Credentials(Config(token_keys=str(path), **URL_SETTINGS))
    grant = await credentials.tokens.verify(sign(claims(), RSA))
    assert credentials.counts(grant)
    path.write_text(EC.public_pem)
    await credentials.reload()
    assert not credentials.counts(grant)


@virtual_time
async def test_another_issuer_in_the_file_counts_and_its_files_are_looked_at(file: File) -> None:
    file.write(till="")
    credentials = credentials_of(file)
    (file.path.parent / "keys.pem").write_text(RSA.public_pem)
    os.utime(file.path.parent / "keys.pem", (1_000, 1_000))
    token = sign(claims(), RSA)
    issuer = f'[[issuers]]\nname = "main"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nkeys = "keys.pem"\n'
    async with running(credentials) as told:
        file.write(issuer, till="")
        await asyncio.sleep(6)
        assert (await credentials.tokens.verify(token)).source == "main"
        (file.path.parent / "keys.pem").write_text(EC.public_pem)
        os.utime(file.path.parent / "keys.pem", (1_001, 1_001))
        await asyncio.sleep(6)
        with pytest.raises(InvalidToken):
            await credentials.tokens.verify(token)
        file.write(till="")
        await asyncio.sleep(6)
        assert [withdrawal.sources for withdrawal in told] == [frozenset(), frozenset({"main"})]


async def test_reading_again_may_be_asked_for(file: File) -> None:
    file.write(till="")
    credentials = credentials_of(file)
    told = list[Withdrawal]()
    credentials.on_withdrawal = told.append
    file.write(web="")
    await credentials.reload()
    assert told == [Withdrawal(sources=frozenset({"till"}))]


# Keys of a URL


async def test_keys_of_a_url_are_fetched_while_it_runs_and_dropped_with_their_issuer(file: File) -> None:
    asked = 0

    def answer(handler: Any) -> None:
        nonlocal asked
        asked += 1
        give(handler, jwks(RSA.jwk()).encode())

    token = sign(claims(), RSA, header={"kid": "k1"})
    with served(answer) as url:
        issuer = f'[[issuers]]\nname = "main"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nkeys = "{url}"\n'
        file.write(issuer, till="")
        credentials = credentials_of(file)
        with pytest.raises(KeysUnavailable):
            await credentials.tokens.verify(token)
        async with running(credentials) as told:
            assert (await credentials.tokens.verify(token)).key == "k1"  # waits for the first fetch
            file.write(issuer, till='stats = "own"')
            await credentials.reload()
            assert (await credentials.tokens.verify(token)).key == "k1"
            assert asked == 1
            file.write(till='stats = "own"')
            await credentials.reload()
            assert told[-1] == Withdrawal(sources=frozenset({"main"}))
            with pytest.raises(InvalidToken):
                await credentials.tokens.verify(token)


@virtual_time
async def test_only_keys_of_issuers_that_are_there_are_fetched(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = [], []

    async def run(keys: RemoteKeys) -> None:
        begun.append(keys)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(keys)

    monkeypatch.setattr(RemoteKeys, "run", run)
    issuer = f'[[issuers]]\nname = "main"\nissuer = "{ISSUER}"\naudience = "x"\nkeys = "https://login.example/"\n'
    file.write(issuer)
    async with running(credentials_of(file)):
        file.write(issuer, till="")
        await asyncio.sleep(12)
        assert (len(begun), len(ended)) == (1, 0)
        file.write(issuer.replace("login", "login2"))
        await asyncio.sleep(12)
        assert (len(begun), len(ended)) == (2, 1)
        file.write(till="")
        await asyncio.sleep(12)
        assert (len(begun), len(ended)) == (2, 2)


async def test_every_algorithm_of_public_keys_at_a_url_counts_and_none_of_a_secret() -> None:
    document = jwks(*(pair(kind).jwk(kind) for kind in KINDS)).encode()
    with served(lambda handler: give(handler, document)) as url:
        credentials = Credentials(Config(token_keys=url, **URL_SETTINGS), PATIENT())
        async with running(credentials):
            for kind in KINDS:
                for algorithm in pair(kind).algorithms:
                    token = sign(claims(), pair(kind), algorithm, {"kid": kind})
                    if kind != "secret":
                        assert (await credentials.tokens.verify(token)).key == kind
                        continue
                    with pytest.raises(InvalidToken):
                        await credentials.tokens.verify(token)


async def test_it_can_run_again_in_another_loop() -> None:
    def run(credentials: Credentials, token: str) -> str | None:
        async def main() -> str | None:
            async with running(credentials):
                return (await credentials.tokens.verify(token)).user

        return asyncio.run(main())

    def in_two_loops(url: str) -> list[str | None]:
        credentials = Credentials(Config(token_keys=url, **URL_SETTINGS), PATIENT())
        return [run(credentials, sign(claims(jti=jti), RSA, header={"kid": "k1"})) for jti in "ab"]

    with served(lambda handler: give(handler, jwks(RSA.jwk()).encode())) as url:
        assert await asyncio.to_thread(in_two_loops, url) == ["42", "42"]
