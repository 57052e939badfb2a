"""``/stats``, ``/metrics``, ``/healthz``, ``/readyz``, and a hub that is stopping."""

from contextlib import AsyncExitStack

import httpx

from sse_app.pytest_plugin import HubServer
from tests.support.peers import PATIENCE
from tests.support.web import Web, code_of


async def test_stats_tell_who_is_connected_and_what_was_published(hub_web: Web) -> None:
    async with (
        hub_web.stream("/events?topic=a/*&topic=b"),
        hub_web.stream("/events?topic=b&topic=a/*"),
        hub_web.stream(),
    ):
        id = (await hub_web.post("x" * 2000, topic="a/1", event="note")).json()["id"]
        stats = (await hub_web.client.get("/stats")).json()
    assert stats["subscribers"] == 3
    assert stats["filters"] == [{"topics": ["a/*", "b"], "subscribers": 2}, {"topics": [], "subscribers": 1}]
    last = stats["last"]
    assert (last["id"], last["topics"], last["event"]) == (id, ["a/1"], "note")
    assert (last["data"], last["truncated"]) == ("x" * 1024, True)
    assert [item["id"] for item in stats["recent"]] == [id]
    assert (stats["totals"]["published"], stats["totals"]["connected"], stats["top"]) == (1, 3, id)
    assert stats["versions"].keys() == {"sse-app", "starlette", "sse-starlette", "uvicorn"}


async def test_what_is_for_named_clients_is_in_no_stats(hub_web: Web) -> None:
    await hub_web.post("private", to="me")
    answer = await hub_web.client.get("/stats")
    assert answer.json()["last"] is None
    assert "private" not in answer.text


async def test_metrics_are_what_prometheus_reads(hub_web: Web) -> None:
    async with hub_web.stream() as events, hub_web.stream(headers={"Last-Event-ID": "junk"}):
        await hub_web.post("x")
        await anext(events), await anext(events)
        answer = await hub_web.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    assert {"sse_app_published_total 1.0", "sse_app_subscribers 2.0", "sse_app_connected_total 2.0"} <= set(lines)
    assert 'sse_app_gaps_total{reason="malformed"} 1.0' in lines
    assert "# TYPE sse_app_delivered_total counter" in lines


async def test_metrics_have_no_label_that_a_client_could_multiply(hub_web: Web) -> None:
    before = (await hub_web.client.get("/metrics")).text.count("\n")
    for number in range(50):
        await hub_web.post("x", topic=f"topic/{number}", event=f"type-{number}")
    async with AsyncExitStack() as stack:
        for number in range(50):
            await stack.enter_async_context(hub_web.stream(f"/events?topic=topic/{number}&client=c{number}"))
        assert (await hub_web.client.get("/metrics")).text.count("\n") == before


async def test_healthz_answers_as_long_as_the_process_does(hub_web: Web) -> None:
    assert (await hub_web.client.get("/healthz")).json() == {"status": "ok"}
    hub_web.hub.node.stop_accepting()
    assert (await hub_web.client.get("/healthz")).status_code == 200


async def test_readyz_ends_when_the_hub_is_told_to_stop(hub_web: Web) -> None:
    assert (await hub_web.client.get("/readyz")).json() == {"status": "ready"}
    hub_web.hub.node.stop_accepting()
    answer = await hub_web.client.get("/readyz")
    assert code_of(answer) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0


def test_every_endpoint_answers_over_a_real_socket_too(sse_server: HubServer) -> None:
    with httpx.Client(base_url=sse_server.url, timeout=PATIENCE) as client:
        for path in ("/", "/stats", "/metrics", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == client.head(path).status_code == 200
        assert client.post("/broadcast", content="x").json()["durable"] == "none"
