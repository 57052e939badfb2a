"""`sse-app bench-log`: logs measured beside each other."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sse_app.brokers import open_broker
from sse_app.commands.bench_log import AT_A_TIME, LATENCIES, WARM_UP
from sse_app.publisher import Publisher
from tests.commands.process import sse_app
from tests.support.redis_server import RedisServer

QUICK = "--seconds", "0.2"  # seconds; long enough for one publication on a busy machine


def figures(*arguments: str) -> list[dict[str, Any]]:
    done = sse_app("bench-log", *QUICK, "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_logs_are_measured_in_the_order_given(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/hub.db"
    memory, full, normal = figures("--repeat", "2", "memory://", file, f"sqlite:///{tmp_path}/other.db?sync=normal")
    assert [found["url"] for found in (memory, full, normal)] == [
        "memory://",
        file,
        f"sqlite:///{tmp_path}/other.db?sync=normal",
    ]
    assert [found["durable"] for found in (memory, full, normal)] == ["none", "fsync", "log"]
    for found in (memory, full, normal):
        assert 0 < found["median_ms"] <= found["p99_ms"]
        assert found["per_second"].keys() == {str(number) for number in AT_A_TIME}
        assert all(rate > 0 for rate in found["per_second"].values())


def test_a_table_shows_them() -> None:
    done = sse_app("bench-log", *QUICK, "memory://", COLUMNS="120")
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["memory://"]
    assert [row.split()[0] for row in rows] == ["durable", *["announced,"] * 2, *["per"] * len(AT_A_TIME)]


def test_what_was_published_is_in_the_log(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/hub.db"
    figures("--repeat", "1", "--payload", "7", file)
    with Publisher(file) as publisher:
        receipt = publisher.publish("next")
    assert receipt.position.offset > LATENCIES + WARM_UP + sum(AT_A_TIME)


def test_a_log_in_use_is_left_alone(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/hub.db"
    with Publisher(file, create=True) as publisher:
        publisher.publish("of somebody")
    refused = sse_app("bench-log", *QUICK, file)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"sse-app: {file} holds publications already, which this would push out; --used does it anyway.\n"
    )
    figures("--repeat", "1", "--used", file)


async def test_the_limits_of_a_log_stay_what_they_were(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/hub.db"
    async with open_broker(file, history=3):
        pass
    await asyncio.to_thread(figures, "--repeat", "1", file)
    async with open_broker(file) as broker:
        assert (await broker.top()).offset - (await broker.oldest()).offset == 3


def test_no_secret_is_shown(redis_server: RedisServer) -> None:
    url = redis_server.url().replace("//", "//:s3cret@").replace("?", "?password=s3cret&")
    with_password = sse_app("bench-log", *QUICK, url)
    assert "s3cret" not in with_password.stdout + with_password.stderr
    (found,) = figures("--repeat", "1", redis_server.url())
    assert found["url"] == f"redis://127.0.0.1:{redis_server.port}"


@pytest.mark.parametrize(
    ("url", "status"), [("nowhere://x", 2), ("sqlite:////nowhere/hub.db", 4), ("redis://127.0.0.1:1", 4)]
)
def test_a_log_that_cannot_be_opened_is_one_line(url: str, status: int) -> None:
    refused = sse_app("bench-log", *QUICK, url)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (status, "", 1)
    assert refused.stderr.startswith("sse-app: ")
