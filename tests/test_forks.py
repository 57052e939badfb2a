"""Forked processes with a publisher of their parent, as in docs/forks.md: a real Celery."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sse_app import Hub
from tests.support.peers import datas, read_events
from tests.support.redis_server import RedisServer
from tests.test_docs import CHECKOUT, Output, blocks

TASKS = 6  # more than each of two workers may do before it is replaced


@contextmanager
def worker(directory: Path) -> Iterator[Output]:
    command = ["-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", "2", "-l", "INFO"]
    output = Output(
        subprocess.Popen(
            [sys.executable, *command, "--max-tasks-per-child", "2"],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
    )
    try:
        yield output
    finally:
        output.end(signal.SIGTERM)
        with suppress(ProcessLookupError):  # the group is empty unless workers are left
            os.killpg(output.process.pid, signal.SIGKILL)


@pytest.mark.timeout(120)  # seconds; Celery is slow to start and to stop
async def test_a_publisher_of_the_module_works_in_celerys_forked_workers(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    page = next(block.text for block in blocks(CHECKOUT / "docs" / "forks.md") if block.text.startswith("# tasks.py"))
    (tmp_path / "tasks.py").write_text(page.replace("redis://localhost", f"redis://127.0.0.1:{redis_server.port}/5"))
    call = f"import tasks\nfor number in range({TASKS}): tasks.pay.delay(number)"
    async with Hub(f"sqlite:///{tmp_path}/hub.db") as hub, hub.subscribe("orders/*") as subscriber:
        with worker(tmp_path) as celery:
            assert await asyncio.to_thread(celery.until, lambda text: " ready." in text), celery.text
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", call], cwd=tmp_path, check=True)
            events = await read_events(subscriber, lambda events: len(datas(events)) == TASKS)
    assert datas(events) == ["paid"] * TASKS
