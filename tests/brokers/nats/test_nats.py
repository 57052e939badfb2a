"""Special to the log in NATS: what its server measures, other logs under its name, strangers in its stream,
servers that refuse."""

import asyncio
import base64
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import nats
import nkeys  # type: ignore[import-untyped]
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from sse_app.brokers import open_broker
from sse_app.brokers.nats import REFRESH, NatsBroker, feed, log
from sse_app.brokers.nats.connection import connected
from sse_app.brokers.nats.consumers import Consumers
from sse_app.brokers.nats.entries import Message, envelope, publication_of
from sse_app.brokers.nats.log import ANSWER
from sse_app.brokers.nats.url import Address, parse
from sse_app.errors import BrokerError, BrokerUnavailable, ConfigError, KeyReused, LogFull, OutcomeUnknown, TooLarge
from sse_app.events import Event
from sse_app.hub import Hub
from sse_app.publication import Audience, Draft, Position
from sse_app.publisher import AsyncPublisher
from sse_app.topics import TopicFilter
from tests.brokers.test_brokers import publish, replayed, take, texts
from tests.chaos.proxy import proxy_to
from tests.support.broker_process import HOST
from tests.support.nats_server import NatsServer, StartNats
from tests.support.peers import PATIENCE, Clock, listening, read_events, turns, until

pytestmark = pytest.mark.usefixtures("impatient_nats")
EVERYTHING = TopicFilter()


def opened(url: str, **settings: Any) -> NatsBroker:
    broker = open_broker(url, **settings)
    assert isinstance(broker, NatsBroker)
    return broker


@pytest.fixture
def url(nats_server: NatsServer) -> str:
    return nats_server.url()


@pytest.fixture
async def broker(url: str) -> AsyncIterator[NatsBroker]:
    async with opened(url) as broker:
        yield broker


@pytest.fixture
async def js(nats_server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """The server's administrator."""
    client = await nats.connect(f"nats://{HOST}:{nats_server.port}", allow_reconnect=False)
    yield client.jetstream()
    await client.close()


@pytest.fixture(scope="module")
def own_server(start_nats: StartNats) -> NatsServer:
    """One that may be stopped, and whose data may be changed."""
    return start_nats()


def log_of(broker: NatsBroker) -> str:
    return f"SSE_LOG_{broker._address.name}"


async def subject_of(js: JetStreamContext, broker: NatsBroker) -> str:
    subjects = (await js.stream_info(log_of(broker))).config.subjects
    assert subjects is not None
    return subjects[0]


def reason_of(gap: Event) -> str:
    assert gap.type == "gap"
    return str(json.loads(gap.data)["reason"])


# --- URLs ---


def address(**changes: Any) -> Address:
    plain = Address([f"nats://{HOST}:4222"], "hub", None, None, None, None, None, False, 1)
    return plain._replace(**changes)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://127.0.0.1", address()),
        ("nats://127.0.0.1/", address()),
        ("nats://127.0.0.1:4333/My_hub-2", address(servers=["nats://127.0.0.1:4333"], name="My_hub-2")),
        ("nats://a:1,b,[::1]:2/x", address(servers=["nats://a:1", "nats://b:4222", "nats://[::1]:2"], name="x")),
        ("nats://us%40er:p%3Aw@127.0.0.1", address(user="us@er", password="p:w")),
        ("nats://t%2Fk@127.0.0.1", address(token="t/k")),
        ("nats://127.0.0.1/hub?replicas=3", address(replicas=3)),
        (f"nats://127.0.0.1/hub?creds={__file__}", address(creds=__file__)),
    ],
)
def test_a_url_says_where_the_log_is(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "nats://",
        "nats://:s3cret@",
        "nats://:s3cret@host:port",
        "nats://:s3cret@host:99999",
        "nats://:s3cret@host,,other",
        "nats://:s3cret@host/a b",
        "nats://:s3cret@host/a.b",
        "nats://:s3cret@host/" + "x" * 65,
        "nats://:s3cret@host/hub?replicas=0",
        "nats://:s3cret@host/hub?replicas=x",
        "nats://:s3cret@host/hub?replicas=３",
        "nats://:s3cret@host/hub?replicas=%203",
        "nats://:s3cret@host/hub?no_such_option=1",
        "nats://:s3cret@host/hub?a&b",
        "nats://:s3cret@[host/hub",
        "nats://:s3cret@host/hub?creds=/no/such/file",
        "nats://:s3cret@host/hub?ca=/no/such/file",
        f"nats://:s3cret@host/hub?ca={__file__}",
    ],
)
def test_a_url_that_is_wrong_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^broker: ") as refusal:
        open_broker(url)
    assert "s3cret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_driver_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sse_app.brokers.nats")
    monkeypatch.delitem(sys.modules, "sse_app.brokers.nats.connection")
    monkeypatch.setitem(sys.modules, "nats.errors", None)
    with pytest.raises(ConfigError, match=r"tls:// .* pip install 'sse-app\[nats\]'"):
        open_broker("tls://localhost")


def test_creds_without_their_package_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_app.brokers.nats.url.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sse-app\[nats\]'"):
        open_broker(f"nats://localhost?creds={__file__}")


async def test_hubs_with_other_names_have_other_logs(nats_server: NatsServer) -> None:
    async with opened(nats_server.url()) as one, opened(nats_server.url()) as other:
        await publish(one, "a")
        assert (await other.top(fresh=True)).offset == 0
        assert (await one.top()).epoch != (await other.top()).epoch


async def test_the_next_of_several_servers_is_taken(nats_server: NatsServer) -> None:
    url = nats_server.url().replace("//", f"//{HOST}:1,")
    async with opened(url) as broker:
        await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]


# --- who we are, whom we trust ---


@pytest.mark.parametrize(
    ("setting", "right", "wrong"),
    [
        ("authorization: {user: ours, password: s3cret}", "ours:s3cret@", "ours:s3cret2@"),
        ("authorization: {token: s3cret}", "s3cret@", "s3cret2@"),
    ],
)
async def test_a_server_that_asks_who_we_are_is_told(
    start_nats: StartNats, setting: str, right: str, wrong: str
) -> None:
    server = start_nats(setting)
    async with opened(server.url("x").replace("//", f"//{right}")) as broker:
        await publish(broker, "a")
    for userinfo in (wrong, ""):
        with pytest.raises(BrokerUnavailable, match=r"cannot be used: .*Authorization Violation") as refusal:
            async with opened(server.url("x").replace("//", f"//{userinfo}")):
                pass
        assert "s3cret" not in str(refusal.value)
    server.kill()


def part(value: bytes) -> bytes:
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def signed(claims: dict[str, Any], issuer: nkeys.KeyPair) -> str:
    """A JWT of NATS: Ed25519, and its own name for that."""
    whole = {"jti": "x", "iat": int(time.time()), "iss": name_of(issuer), **claims}
    head = part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    body = head + b"." + part(json.dumps(whole).encode())
    return (body + b"." + part(issuer.sign(body))).decode()


def name_of(pair: nkeys.KeyPair) -> str:
    return str(pair.public_key.decode())


def key_pair(kind: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(random.randbytes(32), kind))


async def test_a_creds_file_signs_and_tells_no_secret(start_nats: StartNats, tmp_path: Path) -> None:
    account_kind = nkeys.PREFIX_BYTE_ACCOUNT
    kinds = (nkeys.PREFIX_BYTE_OPERATOR, account_kind, account_kind, nkeys.PREFIX_BYTE_USER)
    operator, system, account, user = map(key_pair, kinds)
    common = {"version": 2, "subs": -1, "data": -1, "payload": -1}
    limits = {
        **dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf", "consumer"), -1),
        "wildcards": True,
        "mem_storage": -1,
        "disk_storage": -1,
        "streams": -1,
    }
    its_operator = signed({"sub": name_of(operator), "nats": {"type": "operator", "version": 2}}, operator)
    system_account = signed({"sub": name_of(system), "nats": {"type": "account", "version": 2}}, operator)
    its_account = signed(
        {"sub": name_of(account), "nats": {"type": "account", "version": 2, "limits": limits}}, operator
    )
    its_user = signed({"sub": name_of(user), "nats": {"type": "user", **common}}, account)
    server = start_nats(
        f"operator: {its_operator}",
        f"system_account: {name_of(system)}",
        "resolver: MEMORY",
        f"resolver_preload: {{{name_of(system)}: {system_account}, {name_of(account)}: {its_account}}}",
    )
    creds = tmp_path / "hub.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{its_user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    async with opened(server.url("x") + f"?creds={creds}") as broker:
        await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]
    for junk in ("", "junk", creds.read_text().replace(user.seed.decode(), "SUAjunk")):
        creds.write_text(junk)
        with pytest.raises(BrokerUnavailable, match="the file that creds names holds no credentials"):
            async with opened(server.url("x") + f"?creds={creds}"):
                pass
    server.kill()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of our own, for loopback; and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    files = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName=IP:{HOST}"]
    command += ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return files


async def test_tls_is_spoken_where_the_server_wants_it_and_it_is_whom_we_trust(
    start_nats: StartNats, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    server = start_nats(f'tls: {{cert_file: "{cert}", key_file: "{key}"}}', "authorization: {user: a, password: b}")
    url = server.url("x").replace("//", "//a:b@")
    for mine in (f"{url}?ca={cert}", f"{url}?ca={cert}".replace("nats:", "tls:")):
        async with opened(mine) as broker:
            await publish(broker, "a")
    with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        async with opened(url):
            pass
    server.kill()


async def test_a_tls_url_tells_no_secret_to_a_server_without_it() -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.0","max_payload":1048576,"auth_required":true}\r\n')
        said = b""
        with suppress(ConnectionError):
            said = await reader.read()
        received.put_nowait(said)

    async with listening(impostor) as port:
        for userinfo in ("ours:s3cret", "s3cret"):
            with pytest.raises(BrokerUnavailable, match="it does not offer TLS"):
                async with opened(f"tls://{userinfo}@{HOST}:{port}"):
                    pass
            async with asyncio.timeout(PATIENCE):
                assert b"s3cret" not in await received.get()


async def test_these_subjects_are_all_that_it_needs(start_nats: StartNats) -> None:
    api_subjects = [
        *(f"STREAM.{what}.SSE_{kind}_x" for what in ("INFO", "CREATE", "UPDATE") for kind in ("LOG", "KEYS")),
        *(f"STREAM.MSG.GET.SSE_{kind}_x" for kind in ("LOG", "KEYS")),
        *(f"CONSUMER.{what}.SSE_LOG_x.*" for what in ("CREATE", "MSG.NEXT", "DELETE")),
    ]
    allowed = json.dumps(["sse-app.x.>", "$JS.FC.SSE_LOG_x.>", *(f"$JS.API.{name}" for name in api_subjects)])
    permissions = f'permissions: {{publish: {allowed}, subscribe: ["sse-app.x.nodes", "_INBOX.>"]}}'
    server = start_nats(f"authorization: {{users: [{{user: a, password: b, {permissions}}}]}}")
    async with opened(server.url("x").replace("//", "//a:b@")) as broker:
        tail = broker.tail()
        await publish(broker, *"abc", idempotency_key=None)
        await publish(broker, "k", idempotency_key="k")
        await publish(broker, "k", idempotency_key="k")
        assert texts(await take(tail, 4)) == ["a", "b", "c", "k"]
        broker._known.recent.restart(4)
        assert texts(await replayed(broker)) == ["a", "b", "c", "k"]
        assert (await broker.since(0))[1]
    server.kill()


# --- servers that cannot be used ---


async def test_a_server_that_is_not_there_ends_the_start_in_one_line() -> None:
    tasks = asyncio.all_tasks()
    with pytest.raises(BrokerUnavailable, match="broker: the NATS server cannot be used: it cannot be reached"):
        async with opened(f"nats://ours:s3cret@{HOST}:1"):
            pass
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO junk\r\n", b"INFO []\r\n", b"\xff" * 100_000],
    ids=["HTTP", "a", "b", "c"],
)
async def test_what_is_no_nats_server_ends_the_start_in_one_line(said: bytes) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()

    async with listening(stranger) as port:
        with pytest.raises(BrokerUnavailable, match="broker: the NATS server cannot be used: ") as refusal:
            async with opened(f"nats://{HOST}:{port}"):
                pass
    assert "\n" not in str(refusal.value)


async def test_a_server_without_jetstream_ends_the_start_in_one_line(start_nats: StartNats) -> None:
    server = start_nats(jetstream=False)
    with pytest.raises(BrokerUnavailable, match="is it enabled"):
        async with opened(server.url()):
            pass
    server.kill()


async def test_a_publisher_opens_the_same_url(broker: NatsBroker, url: str) -> None:
    tail = broker.tail()
    async with AsyncPublisher(url) as publisher:
        receipt = await publisher.publish({"n": 1}, topic="t")
    (publication,) = await take(tail, 1)
    assert (publication.position, publication.event.data) == (receipt.position, '{"n":1}')


# --- limits, durability ---


async def limits_of(js: JetStreamContext, broker: NatsBroker) -> tuple[object, ...]:
    """Of the two streams."""
    names = log_of(broker), f"SSE_KEYS_{broker._address.name}"
    its_log, keys = [(await js.stream_info(name)).config for name in names]
    return its_log.max_msgs, its_log.max_bytes, its_log.max_age, its_log.duplicate_window, keys.max_age


async def test_limits_are_those_of_who_named_some_last(js: JetStreamContext, url: str) -> None:
    async with opened(url) as broker:
        assert await limits_of(js, broker) == (10_000 + log.SLACK, 64 * 1024**2, 86_400, 300, 300)
        async with opened(url, history=5, history_bytes=10_000, history_age=60, idempotency_window=90):
            assert await limits_of(js, broker) == (5 + log.SLACK, 10_000, 60, 60, 90)
        async with opened(url, history_age=100):
            assert await limits_of(js, broker) == (5 + log.SLACK, 10_000, 100, 90, 90)
        async with opened(url, history=7, idempotency_window=30):
            assert await limits_of(js, broker) == (7 + log.SLACK, 10_000, 100, 30, 30)


async def test_a_publisher_that_names_no_limits_leaves_those_of_the_hub(js: JetStreamContext, url: str) -> None:
    async with opened(url, history=3) as hub, AsyncPublisher(url) as publisher:
        for text in "abcde":
            await publisher.publish(text)
        await hub.top(fresh=True)
        assert texts(await replayed(hub)) == ["c", "d", "e"]
        async with hub._refreshing:
            await js.delete_stream(log_of(hub))
            await publisher._broker.top(fresh=True)
            assert (await limits_of(js, hub))[0] == 10_000 + log.SLACK
        await hub.top(fresh=True)
        assert (await limits_of(js, hub))[0] == 3 + log.SLACK


async def test_a_node_that_may_not_set_limits_serves_with_those_there_are(
    start_nats: StartNats, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_nats(
        "authorization: {users: [{user: a, password: b}, "
        '{user: c, password: d, permissions: {publish: {deny: ["$JS.API.STREAM.UPDATE.>"]}}}]}'
    )
    async with opened(server.url("x").replace("//", "//a:b@"), history=5):
        pass
    monkeypatch.setattr(log, "ANSWER", ANSWER)  # what is forbidden is not answered
    async with opened(server.url("x").replace("//", "//c:d@"), history=7) as broker:
        await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]
    assert [text for text in caplog.messages if "keeps its limits" in text]
    server.kill()


async def test_a_stream_that_an_administrator_made_is_used_as_it_is(
    js: JetStreamContext, nats_server: NatsServer
) -> None:
    url = nats_server.url()
    name = parse(url).name
    await js.add_stream(
        name=f"SSE_LOG_{name}", subjects=[f"sse-app.{name}.log.>"], storage=api.StorageType.MEMORY, description="theirs"
    )
    async with opened(url) as broker:
        assert broker.durability == "none"
        await publish(broker, "a", idempotency_key="k")
        assert texts(await replayed(broker)) == ["a"]
        assert (await js.stream_info(log_of(broker))).config.description == "theirs"
    async with opened(nats_server.url()) as other:
        assert other.durability == "log"


async def test_what_is_larger_than_the_server_takes_is_refused_and_the_connection_stays(broker: NatsBroker) -> None:
    with pytest.raises(TooLarge, match="at most 1,047,552 bytes"):
        await publish(broker, "x" * 1_048_000)
    with pytest.raises(TooLarge):
        await publish(broker, "x" * 1_048_000, idempotency_key="k")
    await publish(broker, "x" * 1_040_000)
    assert (await broker.top()).offset == 1
    broker.check()


@pytest.mark.parametrize("limit", [{"max_msgs": 1}, {"max_bytes": 400}], ids=str)
async def test_a_stream_that_discards_what_is_new_is_full_at_last(
    broker: NatsBroker, js: JetStreamContext, limit: dict[str, int]
) -> None:
    await publish(broker, "a")
    config = (await js.stream_info(log_of(broker))).config
    await js.update_stream(config, discard=api.DiscardPolicy.NEW, **limit)
    await broker.top(fresh=True)
    with pytest.raises(LogFull, match="nothing was published"):
        await publish(broker, "x" * 300)
    broker.check()
    assert texts(await replayed(broker)) == ["a"]


async def test_a_server_that_takes_no_publications_is_one_that_is_away(
    broker: NatsBroker, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    config = (await js.stream_info(log_of(broker))).config
    await js.update_stream(config, max_msg_size=100)
    with pytest.raises(TooLarge, match="nothing was published"):
        await publish(broker, "x" * 300)
    assert not caplog.messages
    await js.update_stream(config, sealed=True)
    with pytest.raises(BrokerUnavailable, match="Our log says why"):
        await publish(broker, "a")
    assert [text for text in caplog.messages if "NATS refused a publication" in text]


# --- what the server measures ---


async def restart(server: NatsServer, *brokers: NatsBroker) -> None:
    """Restart a server, and wait until all brokers have noticed both its end and its return."""
    server.kill()
    await until(lambda: all(broker._log is None for broker in brokers))
    server.start()
    await until(lambda: all(broker._log is not None for broker in brokers))


async def set_limits(url: str, **limits: float) -> None:
    """Set the limits of the log, which nodes take over within a second: call it when what they end was checked."""
    async with opened(url, **limits):
        pass


async def until_trimmed(broker: NatsBroker) -> Position:
    """Until the server has trimmed everything. Returns the top."""
    async with asyncio.timeout(PATIENCE):
        while await broker.top(fresh=True) != await broker.oldest():
            pass  # each asking is a request, which is the wait
    return await broker.top()


async def test_the_oldest_are_trimmed_by_age_on_the_servers_clock(url: str) -> None:
    async with opened(url) as broker:
        tail = broker.tail()
        (position,) = await publish(broker, "a")
        assert texts(await replayed(broker)) == ["a"]
        assert texts(await take(tail, 1)) == ["a"]
        await set_limits(url, history_age=1)
        assert await until_trimmed(broker) == position
        assert await replayed(broker) == []
        assert not await broker.newest(5, EVERYTHING, Audience(("c",)))
        await set_limits(url, history_age=60)
        assert await publish(broker, "b") == [position.next()]
        assert texts(await take(tail, 1)) == ["b"]


async def test_after_the_window_a_key_is_new(url: str) -> None:
    async with opened(url) as broker:
        (first,) = await publish(broker, "a", idempotency_key="k")
        assert await publish(broker, "a", idempotency_key="k") == [first]
        await set_limits(url, idempotency_window=1)
        position = None
        async with asyncio.timeout(PATIENCE):
            while position is None:
                with suppress(KeyReused):
                    (position,) = await publish(broker, "b", idempotency_key="k")
        assert position == first.next()


async def test_a_key_outlives_its_publication_and_the_server(own_server: NatsServer) -> None:
    async with opened(own_server.url(), history_age=1, idempotency_window=300) as broker:
        (first,) = await publish(broker, "a", idempotency_key="k")
        await until_trimmed(broker)
        assert await publish(broker, "a", idempotency_key="k") == [first]
        await restart(own_server, broker)
        assert await publish(broker, "a", idempotency_key="k") == [first]
        with pytest.raises(KeyReused):
            await publish(broker, "b", idempotency_key="k")


async def test_a_key_that_was_claimed_and_never_used_is_used_by_the_next(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: Any) -> Any:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "append", dies)
        with pytest.raises(asyncio.CancelledError):
            await publish(broker, "a", idempotency_key="k")
    with pytest.raises(KeyReused):
        await publish(broker, "b", idempotency_key="k")
    (first,) = await publish(broker, "a", idempotency_key="k")
    assert await publish(broker, "a", idempotency_key="k") == [first]
    assert texts(await replayed(broker)) == ["a"]


async def test_keys_that_somebody_deletes_are_new_and_their_stream_is_made_anew(
    broker: NatsBroker, js: JetStreamContext
) -> None:
    (first,) = await publish(broker, "a", idempotency_key="k")
    await js.delete_stream(f"SSE_KEYS_{broker._address.name}")
    assert await publish(broker, "a", idempotency_key="k") == [first], "the log itself knows it for a while"
    assert await publish(broker, "b", idempotency_key="l") == [first.next()]
    with pytest.raises(KeyReused):
        await publish(broker, "c", idempotency_key="k")


async def test_times_are_the_servers_and_since_finds_each(url: str) -> None:
    async with opened(url, history=3) as broker:
        begun = time.time()
        positions = await publish(broker, *"abc")
        times = [item.time for item in await replayed(broker)]
        assert begun - 1 < times[0] < times[1] < times[2] < time.time() + 1
        before = (await broker.oldest(), *positions)
        for index, moment in enumerate(times):
            assert await broker.since(moment) == (before[index], True)
            assert await broker.since(moment + 0.000_002) == (before[index + 1], True)
        for moment, position in ((-1e12, before[0]), (0, before[0]), (begun - 60, before[0]), (1e12, before[3])):
            assert await broker.since(moment) == (position, True)
        await publish(broker, "d")
        assert await broker.since(times[0]) == (positions[0], False), "one of those is trimmed"
        assert await broker.since(times[1]) == (positions[0], True)


async def test_since_of_a_log_that_is_all_trimmed_says_what_it_cannot_know(url: str) -> None:
    async with opened(url) as broker:
        tail = broker.tail()
        await publish(broker, "a")
        (publication,) = await take(tail, 1)
        await set_limits(url, history_age=1)
        top = await until_trimmed(broker)
        assert await broker.since(publication.time) == (top, False)
        assert await broker.since(publication.time + 0.1) == (top, True)
        async with opened(url) as newcomer:
            assert await newcomer.since(publication.time + 0.1) == (top, False)


# --- several nodes ---


async def test_a_node_that_died_is_forgotten(url: str, js: JetStreamContext) -> None:
    clock = Clock(100.0)
    async with opened(url, clock=clock) as broker:
        await broker.top(fresh=True)  # now the server knows that it listens
        for announcement in (b"junk", b"{}", b'{"node":"dead","subscribers":7}'):
            await js._nc.publish(f"sse-app.{broker._address.name}.nodes", announcement)
        await until(lambda: broker.subscribers_elsewhere == 7)
        clock.now += 4.9
        await js._nc.publish(f"sse-app.{broker._address.name}.nodes", b'{"node":"alive","subscribers":5}')
        await until(lambda: broker.subscribers_elsewhere == 12)
        clock.now += 0.2
        await until(lambda: broker.subscribers_elsewhere == 5)


# --- another log under its name ---


async def publish_when_it_is_back(broker: NatsBroker, *texts: str) -> list[Position]:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await publish(broker, *texts)
            except BrokerUnavailable:
                await turns()


async def test_who_does_not_know_of_the_new_log_cannot_publish_in_the_old_ones_name(
    url: str, js: JetStreamContext
) -> None:
    async with opened(url) as one, opened(url) as other:
        await publish(one, "a")
        async with one._refreshing:
            await js.delete_stream(log_of(one))
            await other.top(fresh=True)
            with pytest.raises(BrokerUnavailable, match="nothing was published"):
                await publish(one, "b")
        positions = await publish_when_it_is_back(one, "c")
        assert positions == [Position((await other.top()).epoch, 1)]


async def test_a_stream_that_is_made_anew_as_it_was_is_another_log(broker: NatsBroker, js: JetStreamContext) -> None:
    (before,) = await publish(broker, "a")
    config = (await js.stream_info(log_of(broker))).config
    async with broker._refreshing:  # else it may make one in between
        await js.delete_stream(log_of(broker))
        await js.add_stream(config)
    top = await broker.top(fresh=True)
    assert (top.epoch != before.epoch, top.offset) == (True, 0)


async def test_an_older_copy_of_the_log_is_another_log_and_gives_no_id_again(own_server: NatsServer) -> None:
    url = own_server.url()
    copy = own_server.directory.with_name("copy")
    broker = opened(url)
    async with Hub(broker) as hub, opened(url) as other:
        before = [(await hub.publish(text)).position for text in "abc"]
        own_server.kill()
        shutil.copytree(own_server.directory / "jetstream", copy)
        await restart(own_server, broker, other)
        async with hub.subscribe() as subscriber:
            lost = [(await hub.publish(text)).position for text in "de"]
            await read_events(subscriber, lambda events: len(events) == 3)
            async with other._refreshing:  # of two that notice at once each may begin an epoch
                own_server.kill()
                shutil.rmtree(own_server.directory / "jetstream")
                shutil.copytree(copy, own_server.directory / "jetstream")
                own_server.start()
                events = await read_events(subscriber, lambda events: len(events) == 4)
            assert reason_of(events[0]) == "epoch"
            assert [event.data for event in events[1:]] == ["a", "b", "c"]
            (after,) = await publish_when_it_is_back(other, "f")
            assert (after.offset, lost[0].offset) == (4, 4)
            assert len({after.epoch, before[0].epoch}) == 2
            assert lost[0].epoch == before[0].epoch
            (event,) = await read_events(subscriber, lambda events: bool(events))
            assert event.id == str(after)
            assert await other.top() == await broker.top() == after


async def test_an_older_copy_that_has_grown_past_what_we_know_is_another_log(own_server: NatsServer) -> None:
    """While this node is not connected, another one publishes that does not know of the lost publications."""
    url = own_server.url()
    copy = own_server.directory.with_name("shorter")
    async with proxy_to(own_server.port) as proxy:
        broker = opened(url.replace(str(own_server.port), str(proxy.port)))
        async with Hub(broker) as hub, hub.subscribe() as subscriber:
            await hub.publish("a")
            await read_events(subscriber, lambda events: len(events) == 2)
            own_server.kill()
            shutil.copytree(own_server.directory / "jetstream", copy)
            await restart(own_server, broker)
            lost = (await hub.publish("lost")).position
            await read_events(subscriber, lambda events: bool(events))
            proxy.closed = True
            own_server.kill()
            shutil.rmtree(own_server.directory / "jetstream")
            shutil.copytree(copy, own_server.directory / "jetstream")
            own_server.start()
            async with opened(url) as other:
                again = await publish(other, "b", "c")
                assert again[0] == lost
                proxy.closed = False
                gap, *rest = await read_events(subscriber, lambda events: len(events) == 4)
                assert reason_of(gap) == "epoch"
                assert [event.data for event in rest] == ["a", "b", "c"]
                assert (await other.top(fresh=True)).epoch == (await broker.top()).epoch != lost.epoch


async def test_who_waits_for_an_answer_is_told_when_a_connection_is_left_while_it_breaks(
    start_nats: StartNats,
) -> None:
    server = start_nats()
    async with asyncio.timeout(PATIENCE):
        async with connected(parse(server.url()), lambda: None) as client:
            await client.subscribe("nobody-answers")
            waiting = asyncio.create_task(client.request("nobody-answers", timeout=2 * PATIENCE))
            await client.flush()
            server.kill()
            await until(lambda: client.is_closed)  # from its first step on; nats-py calls back after its last one
        with pytest.raises(nats.errors.TimeoutError):
            await waiting


async def test_who_waits_for_an_answer_is_told_when_the_connection_breaks(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.brokers.nats.COMMAND", 10 * PATIENCE)
    monkeypatch.setattr(log, "ANSWER", 10 * PATIENCE)
    async with proxy_to(nats_server.port) as proxy, opened(nats_server.url(port=proxy.port)) as broker:
        proxy.deaf = True
        waiting = [asyncio.create_task(publish(broker, "a", idempotency_key=key)) for key in (None, "k")]
        reading = asyncio.create_task(broker.top(fresh=True))
        await until(lambda: len(broker._log._client._resp_map) == 3)  # type: ignore[union-attr]
        proxy.cut()
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*waiting, reading, return_exceptions=True)
        assert list(map(type, outcomes)) == [OutcomeUnknown, BrokerUnavailable, BrokerUnavailable]


async def test_a_restart_of_the_server_keeps_the_log(own_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(own_server.url()) as broker:
        tail = broker.tail()
        positions = await publish(broker, *"abc")
        assert texts(await take(tail, 3)) == ["a", "b", "c"]
        own_server.kill()
        await until(lambda: broker._log is None)
        with pytest.raises(BrokerUnavailable):
            broker.check()
        with pytest.raises(BrokerUnavailable):
            await publish(broker, "lost")
        with pytest.raises(BrokerUnavailable):
            await broker.top(fresh=True)
        assert await broker.top() == positions[-1], "without a connection it knows the top"
        assert texts(await replayed(broker)) == ["a", "b", "c"], "and what its feed brought"
        own_server.start()
        await until(lambda: broker._log is not None)
        assert await publish(broker, "d") == [positions[-1].next()]
        assert texts(await take(tail, 1)) == ["d"]
    assert [text.partition(":")[0] for text in caplog.messages] == ["the broker went away", "the broker is back"]


# --- strangers and holes in the stream ---

STRANGE = [
    b"",
    b"junk",
    b"\xff",
    b"{}",
    b"[1]",
    b'{"v":1}',
    b'{"v":0,"data":"x"}',
    b'{"v":3,"data":"x"}',
    b'{"v":1,"data":7}',
    b'{"v":1,"data":"x","event":""}',
    b'{"v":2,"data":"x","crit":["new"]}',
    b'{"v":1,"data":"x","event":"a\\nid: 7"}',
    b'{"v":1,"data":"x","topics":"t"}',
    b'{"v":1,"data":"\\ud800"}',
]


async def test_messages_that_are_not_ours_stop_nobody(url: str, js: JetStreamContext) -> None:
    one = opened(url)
    async with opened(url) as other:
        subject = await subject_of(js, one)
        async with Hub(one) as hub:
            tail, positions = one.tail(), []
            for number, strange in enumerate(STRANGE):
                positions += await publish(other, str(number))
                await js.publish(subject, strange)
                positions += await publish(other, f"{number} more")
            received = await take(tail, 3 * len(STRANGE))
            assert one.bad_envelopes == len(STRANGE)
            assert (await hub.stats())["recent"]
            for found in received, await replayed(one), await replayed(other):
                assert [item.position for item in found if not item.lost] == positions
                assert [item.position.offset for item in found] == list(range(1, positions[-1].offset + 1))
        assert [item.position for item in await other.newest(99, EVERYTHING, None)] == positions
        assert await other.last(99, EVERYTHING, Audience(("c",))) == (await other.oldest(), False)


async def test_strangers_are_logged_seldom(
    broker: NatsBroker, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    tail = broker.tail()
    subject = await subject_of(js, broker)
    for _ in range(100):
        await js.publish(subject, b"secret value")
    assert len(await take(tail, 100)) == 100
    assert broker.bad_envelopes == 100
    assert len(caplog.messages) == 7
    assert not [text for text in caplog.messages if "secret" in text]


def test_a_message_is_read_as_it_was_written() -> None:
    draft = Draft(Event("a\nb\0é😀", "tick"), ("t", "u"), frozenset("ab"), frozenset("c"), is_json=True)
    publication = publication_of(Message(7, 1.5, envelope(draft)), "e")
    assert (publication.position, publication.topics, publication.time) == (Position("e", 7), ("t", "u"), 1.5)
    assert publication.event == Event("a\nb\0é😀", "tick", "e-7")
    assert (publication.to, publication.exclude) == (frozenset("ab"), frozenset("c"))
    assert publication.is_json


async def test_what_somebody_deletes_in_the_log_breaks_nothing(url: str, js: JetStreamContext) -> None:
    async with opened(url) as writer:
        await publish(writer, *"abcdefg")
        for offset in (1, 3, 4):
            await js.delete_msg(log_of(writer), offset)
    async with opened(url) as broker:
        oldest, top = await broker.oldest(), await broker.top()
        assert oldest.offset == 1, "at the front it is as trimmed"

        async def read_it() -> None:
            assert texts(await replayed(broker)) == ["b", "e", "f", "g"]
            page = await broker.replay(oldest, top, EVERYTHING)
            assert (page.start, texts(page.publications), page.end.offset) == (oldest, ["b"], 2)
            page = await broker.replay(page.end, top, EVERYTHING)
            assert (page.start.offset, texts(page.publications), page.end) == (4, ["e", "f", "g"], top), "a gap"
            page = await broker.replay(oldest._replace(offset=2), oldest._replace(offset=3), EVERYTHING)
            assert (page.start.offset, page.publications, page.end.offset) == (3, [], 3)
            assert texts(await broker.newest(4, EVERYTHING, Audience(("c",)))) == ["b", "e", "f", "g"]

        await read_it()
        tail = broker.tail()
        await until(lambda: broker._known.recent.top == top.offset)
        await read_it()
        await publish(broker, "h")
        assert texts(await take(tail, 1)) == ["h"]


async def test_a_stream_that_is_purged_goes_on_and_what_was_missed_is_a_gap(url: str, js: JetStreamContext) -> None:
    broker = opened(url)
    async with Hub(broker) as hub:
        first = (await hub.publish("a")).position
        async with hub.subscribe() as up_to_date:
            last = (await hub.publish("b")).position
            await read_events(up_to_date, lambda events: len(events) == 2)
            await js.purge_stream(log_of(broker))
            assert await broker.top(fresh=True) == await broker.oldest() == last
            async with hub.subscribe(after=first) as late:
                next = (await hub.publish("c")).position
                assert next == last.next()
                (event,) = await read_events(up_to_date, lambda events: bool(events))
                assert event.id == str(next)
                _, gap, event = await read_events(late, lambda events: len(events) == 3)
                assert (reason_of(gap), event.id) == ("trimmed", str(next))


async def test_a_replica_that_lags_behind_is_asked_again_and_is_no_gap(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer of a page may be with any server of a cluster."""

    async def nothing(*_: Any, **__: Any) -> tuple[list[Msg], bool]:
        return [], False

    await publish(broker, *"abc")
    with monkeypatch.context() as patch:
        patch.setattr(Consumers, "pull", nothing)
        with pytest.raises(BrokerUnavailable):
            await replayed(broker)
    assert texts(await replayed(broker)) == ["a", "b", "c"]


# --- the feed ---


async def test_a_feed_that_dies_is_made_anew(
    broker: NatsBroker, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loses a consumer sends nothing, not even an error."""
    with monkeypatch.context() as patch:
        patch.setattr("sse_app.brokers.nats.SILENCE", 10 * PATIENCE)  # it is not made anew before
        tail = broker.tail()
        await publish(broker, "a")
        assert texts(await take(tail, 1)) == ["a"]
        (consumer,) = await js.consumers_info(log_of(broker))
        await js.delete_consumer(log_of(broker), consumer.name)
    await publish(broker, "b")
    assert texts(await take(tail, 1)) == ["b"]


async def test_a_feed_that_overflows_goes_on_where_it_broke(
    url: str, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.brokers.nats.consumers.PENDING_MESSAGES", 100)
    overflowed = asyncio.Event()

    async def note(error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            overflowed.set()

    class Late(feed.Feed):
        async def on_message(self, message: Msg) -> None:
            await overflowed.wait()
            await super().on_message(message)

    monkeypatch.setattr("sse_app.brokers.nats.connection._note", note)
    monkeypatch.setattr("sse_app.brokers.nats.consumers.Feed", Late)
    async with opened(url) as one, opened(url) as other:
        for _ in range(5):
            await asyncio.gather(*(publish(other, "x") for _ in range(100)))
        await one.top(fresh=True)
        tail = one.tail()
        await publish(one, "y")
        assert [item.position.offset for item in await take(tail, 1)] == [501]
        assert len(await replayed(one)) == 501
    assert overflowed.is_set(), "the first had more than 100 at once"


async def test_what_was_trimmed_before_it_was_received_is_a_gap(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on while this node is held up: here, while nothing feeds it."""
    monkeypatch.setattr("sse_app.brokers.nats.REFRESH", 10 * PATIENCE)  # it refreshes when we say so
    broker = opened(url, history=5)
    async with Hub(broker) as hub, hub.subscribe() as subscriber, opened(url, history=5) as other:
        await hub.publish("first")
        await read_events(subscriber, lambda events: len(events) == 2)
        feed = broker._feed
        assert feed is not None
        feed.broken = True  # it takes nothing any more
        for _ in range(15):
            await asyncio.gather(*(publish(other, "x") for _ in range(100)))
        await publish(other, *"abcde")
        broker._wake.set()
        gap, *rest = await read_events(subscriber, lambda events: len(events) == 6)
    assert reason_of(gap) == "trimmed"
    assert [event.data for event in rest] == list("abcde")


async def test_a_node_that_starts_receives_the_newest_first(url: str, js: JetStreamContext) -> None:
    """Most clients that come back lack only the newest, and each topic's newest is known without a search."""
    async with opened(url) as broker:
        for number in range(50):
            await publish(broker, str(number), topic=f"t/{number}")
    async with opened(url) as broker:
        tail = broker.tail()
        await until(lambda: broker._known.recent.top == 50)
        async with broker._refreshing:  # it does not know yet what is gone
            await js.purge_stream(log_of(broker), seq=11)
            assert texts(await broker.newest(1, TopicFilter.parse(["t/30"]), Audience(("c",)))) == ["30"]
            assert not await broker.newest(1, TopicFilter.parse(["silent"]), Audience(("c",)))
            assert len(await replayed(broker)) == 50
        assert len(await broker.top(fresh=True) and await replayed(broker)) == 40
        await publish(broker, "next")
        assert texts(await take(tail, 1)) == ["next"], "and none of them is announced again"


async def test_a_search_below_what_was_received_is_made_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(url) as broker:
        await publish(broker, "old", topic="t")
        for _ in range(9):
            await asyncio.gather(*(publish(broker, "x", topic="u") for _ in range(100)))
        broker._known.recent.restart(901)
        read = 0
        fetch = log.Log.fetch

        async def counted(self: log.Log, *bounds: int) -> list[Message]:
            nonlocal read
            read += 1
            return await fetch(self, *bounds)

        monkeypatch.setattr(log.Log, "fetch", counted)
        for pattern, expected in (("silent", 0), ("t", 1), ("silent/too", 0)):
            found = await broker.newest(1, TopicFilter.parse([pattern]), Audience(("c",)))
            assert len(found) == expected
            if pattern == "silent":
                assert read == 4
        assert read == 5, "one for what was found"


# --- commands that are cancelled (H8) ---


async def test_cancelled_commands_leave_no_answer_to_another(broker: NatsBroker) -> None:
    dice = random.Random(1)
    acknowledged: dict[Position, str] = {}
    cancelled = 0

    async def command(number: int) -> None:
        match number % 5:
            case 0 | 1:
                acknowledged[await broker.publish(Draft(Event(str(number)), (f"t/{number}",)))] = str(number)
            case 2:
                acknowledged[await broker.publish(Draft(Event(str(number)), idempotency_key=f"k{number}"))] = str(
                    number
                )
            case 3:
                found = await broker.newest(1, TopicFilter.parse(["t/0"]), Audience(("c",)))
                assert len(found) <= 1
            case 4:
                position, complete = await broker.since(0)
                assert (complete, position.offset) == (True, 0)

    numbers = count()
    while cancelled < 1_000:
        task = asyncio.create_task(command(next(numbers)))
        await turns(dice.randrange(40))  # its answer takes some twenty
        cancelled += task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
    held = {item.position: item.event.data for item in await replayed(broker)}
    assert acknowledged
    assert acknowledged.items() <= held.items()
    await until(lambda: not broker._log._client._resp_map)  # type: ignore[union-attr]


# --- the end ---


async def test_it_can_be_closed_at_any_moment_of_its_life(own_server: NatsServer) -> None:
    url = own_server.url()
    tasks = asyncio.all_tasks()
    for moment in range(30):
        broker = opened(url)
        with suppress(TimeoutError):
            async with asyncio.timeout(moment * 0.002), broker:
                broker.tail()
                await asyncio.Event().wait()
        assert broker._log is None
    await until(lambda: asyncio.all_tasks() == tasks)


async def test_nothing_is_left_when_it_is_closed(
    url: str, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After that the server would forget its consumers by itself.
    monkeypatch.setattr("sse_app.brokers.nats.consumers.IDLE", 10 * PATIENCE)
    tasks = asyncio.all_tasks()
    for key in "kl":
        async with opened(url) as broker:
            tail = broker.tail()
            await publish(broker, "a", idempotency_key=key)
            await take(tail, 1)
            broker._known.recent.restart(0)
            await replayed(broker)
    await until(lambda: asyncio.all_tasks() == tasks)
    async with asyncio.timeout(PATIENCE):
        while (await js.stream_info(log_of(broker))).state.consumer_count:
            pass  # each asking is a request, which is the wait


async def test_a_broker_can_be_opened_again(url: str) -> None:
    broker = opened(url)
    for text in "ab":
        async with broker:
            await publish(broker, text)
        with pytest.raises(BrokerError):
            broker.check()
    async with broker:
        assert texts(await replayed(broker)) == ["a", "b"]


def test_what_is_waited_for_fits_into_the_two_seconds_of_a_publisher_and_the_ten_of_a_silence() -> None:
    assert log.COMMAND < 2
    assert REFRESH + ANSWER < 10
