"""The servers of docs/servers.md, started as the table there says: each treats open streams as the table says."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from sse_app import EventDecoder
from sse_app.config import ENV_PREFIX
from sse_app.lifetime import NO_LIFESPAN
from sse_app.web.siblings import SEPARATE, _name
from tests.support.peers import PATIENCE, reserved_port
from tests.test_docs import CHECKOUT, Output, table

pytestmark = pytest.mark.timeout(120)  # seconds: the start of a server, and PATIENCE for each step

ROWS = table(CHECKOUT / "docs" / "servers.md", "server", "command", "SIGTERM", "Ctrl+C", "recycled after", "then")
APP = """
from sse_app import Hub
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

hub = Hub(drain=5)
app = Starlette(routes=[Mount("/hub", hub.app), Route("/", lambda request: Response("hello"))], lifespan=hub.lifespan)
"""
BIND = {
    "sse-app": ("--port", "0"),
    "uvicorn": ("--port", "0"),
    "gunicorn": ("--bind", "127.0.0.1:0", "--no-control-socket"),
    "hypercorn": ("--bind", "127.0.0.1:0"),
    "granian": ("--host", "127.0.0.1", "--port", "{port}"),  # it does not print a port that it chose
    "daphne": ("--bind", "127.0.0.1", "--port", "0"),
}
LISTENING = re.compile(r"(?:http://|address )127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Server:
    output: Output
    port: int

    @property
    def client(self) -> httpx.Client:
        """A client that retries to connect: gunicorn and granian print their address before they listen."""
        transport = httpx.HTTPTransport(retries=6)  # after 0, 0.5, 1, 2, ... seconds
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", transport=transport, timeout=PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        """Signal a server as a supervisor does, or for Ctrl+C all of its processes as a terminal does."""
        pid = self.output.process.pid
        os.killpg(pid, number) if number == signal.SIGINT else os.kill(pid, number)

    def end(self) -> str:
        """Stop a server, and wait for its end. Return all that it has logged."""
        self.output.process.terminate()
        self.output.until(lambda text: False)
        return self.output.text


@contextmanager
def started(command: str, directory: Path, *flags: str) -> Iterator[Server]:
    program, *arguments = command.split()
    (directory / "app.py").write_text(APP)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    with reserved_port() as reserved:
        bind = [part.format(port=reserved) for part in BIND[program]]
        output = Output(
            subprocess.Popen(
                [sys.executable, "-m", program.replace("-", "_"), *arguments, *bind, *flags],
                cwd=directory,
                env={**environment, "PYTHONUNBUFFERED": "1", "SSE_APP_NO_BOOTSTRAP": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        )
        try:
            assert output.until(lambda text: LISTENING.search(text) is not None), output.text
            found = LISTENING.search(output.text)
            assert found is not None
            yield Server(output, int(found[1]))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(output.process.pid, signal.SIGKILL)
            output.end(signal.SIGKILL)


@contextmanager
def stream(client: httpx.Client, path: str) -> Iterator[Iterator[str]]:
    """The types of a stream's events after the welcome, with ``cut`` at the end of a stream without its final chunk."""
    decoder = EventDecoder()

    def types(response: httpx.Response) -> Iterator[str]:
        try:
            for chunk in response.iter_raw():
                yield from (event.type for event in decoder.feed(chunk))
        except httpx.TransportError:
            yield "cut"

    with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
        if response.status_code != 200:
            response.read()
            assert response.json()["detail"] == NO_LIFESPAN
            yield iter(["not started"])
            return
        events = types(response)
        assert next(events) == "welcome"
        yield events


# A server that cuts streams may do so before or after the bye, since the hub learns of the stop at the same time.
SAID = {"drained": [["bye"]], "cut": [["cut"], ["bye", "cut"]], "not started": [["not started"]]}


def path_of(command: str) -> str:
    return "/events" if command.startswith("sse-app") else "/hub/events"


@pytest.mark.parametrize(
    ("command", "number", "then"),
    [
        pytest.param(row[1], number, row[column], id=f"{row[0]}-{number.name}")
        for row in ROWS
        for column, number in ((2, signal.SIGTERM), (3, signal.SIGINT))
    ],
)
def test_a_stop_does_to_streams_what_the_table_says(
    command: str, number: signal.Signals, then: str, tmp_path: Path
) -> None:
    with started(command, tmp_path) as server, server.client as client:
        with stream(client, path_of(command)) as types:
            server.signal(number)
            assert list(types) in SAID[then]
        client.close()
        server.output.process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("command", "flags", "then"),
    [pytest.param(row[1], row[4].split(), row[5], id=row[0]) for row in ROWS if row[4].startswith("--")],
)
def test_a_worker_that_is_recycled_does_to_streams_what_the_table_says(
    command: str, flags: list[str], then: str, tmp_path: Path
) -> None:
    with started(command, tmp_path, *flags) as server, server.client as client:
        with stream(client, path_of(command)) as types:
            for _ in range(2 * int(flags[-1])):
                with suppress(httpx.TransportError):  # the server listens no longer
                    httpx.get(f"http://127.0.0.1:{server.port}/", timeout=PATIENCE)
            assert list(types) in SAID["drained"]
        client.close()
        if then == "it ends":
            server.output.process.wait(PATIENCE)
        else:
            while not is_streamed_to(server, command):  # as long as connections still reach the worker that ends
                pass


def is_streamed_to(server: Server, command: str) -> bool:
    """Return True when a new client gets a stream; False when its connection is cut, after which it may try again."""
    with suppress(httpx.TransportError), server.client as client, stream(client, path_of(command)):
        return True
    return False


# Several processes

WORKERS = {
    "uvicorn": "uvicorn app:app --workers 2",
    "gunicorn": "gunicorn -k uvicorn_worker.UvicornWorker -w 2 app:app",
}
ALONE = {
    "uvicorn --reload": "uvicorn app:app --reload",
    "gunicorn": "gunicorn -k uvicorn_worker.UvicornWorker app:app",
}


@pytest.mark.parametrize("command", WORKERS.values(), ids=WORKERS)
def test_two_workers_with_a_log_in_memory_each_say_so_once(command: str, tmp_path: Path) -> None:
    with started(command, tmp_path) as server:
        assert server.output.until(lambda text: SEPARATE in text), server.output.text
        assert server.end().count(SEPARATE) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
@pytest.mark.parametrize("command", ALONE.values(), ids=ALONE)
def test_one_worker_below_a_parent_says_nothing(command: str, tmp_path: Path) -> None:
    with started(command, tmp_path) as server:
        name = _name(f"{server.output.process.pid} {[repr(('127.0.0.1', server.port))]}", "first")
        line = f"@{name[1:].decode()}\n"
        with server.client as client:
            while line not in Path("/proc/net/unix").read_text():  # the worker has looked for other workers
                assert client.get("/").text == "hello"  # each request takes the time between two checks
        assert SEPARATE not in server.end()
