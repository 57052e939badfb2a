"""An app that uses sse-app under ``mypy --strict``, with the types that we ship (PEP 561)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # seconds; mypy reads all that we import

# Each line that is wrong names the error at its end.
APP = """
import json

import httpx
from sse_app import AsyncPublisher, Client, Config, Draft, Event, Hub, SyncClient, create_app
from sse_app.config import HubOptions
from sse_app.testing import CuttingTransport, Expected, Loss, SlowReader, StreamingASGITransport, VirtualTimeLoop
from sse_app.testing import assert_events, assert_received, events, live, published, record, replay, run_virtual

hub = Hub("sqlite:///hub.db", history="1000", heartbeat="15s", publish_key=None, cors_origins=["https://a.example"])
options: HubOptions = {"queue": 5}
other = Hub(**options)
whole = create_app(Config(history=1_000))
Hub(histroy=1)  # error: call-arg
Hub(history=None)  # error: arg-type
Hub(heartbeat=b"15s")  # error: arg-type
Hub(port=8000)  # error: call-arg
options["histroy"] = 1  # error: typeddict-unknown-key


async def listens(client: Client) -> list[str]:
    stream = client.listen("orders/*")
    number: int = json.loads((await anext(stream)).data)["number"]
    return [event.data.upper() async for event in stream if number]


def listens_in_a_thread(client: SyncClient) -> str:
    for event in client.listen("orders/*"):
        return event.data
    return ""


async def subscribes(hub: Hub) -> str:
    async with hub.subscribe("orders/*", last=5) as subscriber:
        async for event in subscriber:
            return event.data
    return ""


async def publishes_many(hub: Hub, client: Client, publisher: AsyncPublisher) -> list[str]:
    receipts = await hub.publish_many(["x", {"n": 1}], topic="t", idempotency_key="k")
    receipts += await client.publish_many((Draft.compose(n, topic="t") for n in range(3)), retry_for=2)
    receipts += await publisher.publish_many([1, 2])
    await hub.publish_many(5)  # error: arg-type
    await hub.publish_many(["x"], topics="t")  # error: call-arg
    return [receipt.id for receipt in receipts]


async def tests(response: httpx.Response) -> list[Event]:
    return [event async for event in events(response) if event.data.startswith("{")]


async def tests_an_app(hub: Hub, client: Client, response: httpx.Response) -> float:
    transport = CuttingTransport(StreamingASGITransport(hub.app), after=range(10), loss=Loss.CLOSED)
    CuttingTransport(transport, after=5)  # error: arg-type
    httpx.AsyncClient(transport=transport)
    with published(hub) as sent:
        await hub.publish(1, topic="a")
    assert_events(sent, [Expected(1, topic="a", type="x", id=sent[0].id), Event("x"), {"number": 42}])
    assert_events(await tests(response), ["x"])
    Expected(1, topics="a")  # error: call-arg
    await assert_received(events(response), [Expected(...)], timeout=3)
    await assert_received(client.listen(), ["x"])
    await assert_received(SlowReader(response, size=3), ["x"])
    async with hub.subscribe() as subscriber:
        await assert_received(subscriber, ["x"])
    await assert_received(sent, ["x"])  # error: arg-type
    recording = await record(response, count=3)
    recording.save("orders.sse")
    with live(replay(recording, size=1)) as server:
        length = len(server.url)
    with live(hub.app, log_level="info", ssl_certfile="x", prot=1):  # error: call-arg
        return length + VirtualTimeLoop().patience


def runs_on_virtual_time(client: Client) -> list[str]:
    return run_virtual(listens(client))


async def publishes(hub: Hub) -> None:
    await hub.publish({"number": 42}, topic=["a", "b"], to={"ann"}, exclude=None, idempotency_key="k")
    await hub.publish("x", topics="a")  # error: call-arg
    await hub.publish("x", to=[1])  # error: list-item
    hub.publish_threadsafe("x", topic="a", timeout=None)
    hub.publish_threadsafe("x", topics="a")  # error: call-arg
    async with AsyncPublisher("sqlite:///hub.db", history_age="1d", create=True) as publisher:
        await publisher.publish("x", topic="a")
        await publisher.publish("x", event=None)  # error: arg-type
    AsyncPublisher("sqlite:///hub.db", histroy=1)  # error: call-arg
    AsyncPublisher("sqlite:///hub.db", heartbeat=1)  # error: call-arg
"""


def test_mypy_finds_what_is_wrong_in_an_app_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "", "app.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.stderr
    found = re.findall(r"^app\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert len(found) == done.stdout.count(" error: "), done.stdout
    wanted = [
        (str(number), line.partition("# error: ")[2])
        for number, line in enumerate(APP.splitlines(), 1)
        if "# error: " in line
    ]
    assert found == wanted, done.stdout
