"""Credentials on their way through a whole server, with everything logged that can be: they turn up nowhere."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from sse_app.config import ENV_PREFIX
from tests.support.peers import PATIENCE
from tests.test_docs import Output
from tests.web.test_credentials import ANN, SECRET, bearer, token

pytestmark = pytest.mark.timeout(120)  # seconds: the start of a server, and PATIENCE for each step

# Our own server, and an app around it that fails: `-X dev` and DEBUG make everything talk.
SERVER = """
import logging, sys
from starlette.responses import Response
from sse_app import Config, Hub
from sse_app.errors import Vetoed
from sse_app.server.server import Server, uvicorn_config
from sse_app.server.sockets import listen

async def before_publish(draft, grant):
    if draft.topics == ("news/veto",):
        raise Vetoed("Not this one.")
    if draft.topics == ("news/fail",):
        raise RuntimeError("a mistake of the app's")
    return draft

async def fails(request):
    raise RuntimeError("another mistake of the app's")

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
config = Config(port=0, access_log=True, token_secret=sys.stdin.readline().strip(), auth_cookies=("session",))
hub = Hub(config=config, before_publish=before_publish)
app = hub._build_app(hub.lifespan)
app.add_route("/fails", fails)
sockets = [one for many in listen(config) for one in many]
print("port", sockets[0].getsockname()[1], flush=True)
Server(uvicorn_config(app, config), hub.node).run(sockets=sockets)
"""


@dataclass(frozen=True)
class Running:
    client: httpx.Client
    output: Output


@contextmanager
def server() -> Iterator[Running]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", SERVER],
        env={**environment, "PYTHONUNBUFFERED": "1", "SSE_APP_NO_BOOTSTRAP": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )
    assert process.stdin is not None
    process.stdin.write(f"{SECRET}\n".encode())
    process.stdin.close()
    output = Output(process)
    try:
        assert output.until(lambda text: "startup complete" in text), output.text
        port = int(output.text.partition("port ")[2].split()[0])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            yield Running(client, output)
    finally:
        output.end(signal.SIGKILL)


def requests(given: str, ticket: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Thirty requests with a credential, of which most fail."""
    header, cookie = {"headers": bearer(given)}, {"headers": {"Cookie": f"session={given}"}}
    for path in (
        "/grant",
        "/stats",
        "/metrics",
        "/connections",
        "/none",
        "/fails",
        "/events?topic=users/bob",
        "/events?last=x",
    ):
        yield "GET", path, header
        yield "GET", path, cookie
    for path in (
        "/broadcast?topic=news/1",
        "/broadcast?topic=news/veto",
        "/broadcast?topic=news/fail",
        "/broadcast?x=1",
    ):
        yield "POST", path, {"content": "x", **header}
    yield "POST", "/broadcast?topic=news/1", {"content": "x", **cookie}
    yield "POST", "/broadcast?topic=news/1", {"content": "{", "headers": {**bearer(given), "Content-Type": "text/json"}}
    yield "POST", "/tickets", {"content": "[]", **header}
    yield "POST", "/revoke", {"content": "{", **header}
    yield "DELETE", "/connections/nobody", header
    yield "PUT", "/events", header
    for name in ("access_token", "authorization", "token", "jwt"):
        yield "GET", f"/events?{name}={given}", {}
    for path in (f"/events?ticket={ticket}&last=x", f"/grant?ticket={ticket}", f"/none?ticket={ticket}"):
        yield "GET", path, {}
    yield "HEAD", f"/events?ticket={ticket}", {}
    yield "GET", f"/events?ticket={ticket}&ticket={ticket}", {}


def send(client: httpx.Client, method: str, path: str, *, headers: Any = (), **options: Any) -> httpx.Response:
    """Ask on a connection of its own: uvicorn closes one after an exception, but does not say so in the answer."""
    return client.request(method, path, headers=[*dict(headers).items(), ("Connection", "close")], **options)


def test_a_token_and_a_ticket_turn_up_in_no_log_answer_or_metric() -> None:
    ann = token({**ANN, "stats": "all", "admin": True}, sub="ann")
    stranger = token(ANN, secret="another secret of 32 bytes, and more")
    with server() as running:
        client, told = running.client, list[str]()
        made = client.post("/tickets", headers=bearer(ann)).json()
        for given in (ann, stranger):
            asked = list(requests(given, made["ticket"]))
            assert len(asked) >= 30
            answers = [send(client, method, path, **options) for method, path, options in asked]
            told += [f"{answer.status_code} {answer.headers} {answer.text}" for answer in answers]
            assert {400, 404, 405, 500} < {answer.status_code for answer in answers}
            assert answers[0].status_code == (200 if given == ann else 401)
        with (
            client.stream("GET", made["url"]) as by_ticket,
            client.stream("GET", "/events", headers=bearer(ann)) as own,
        ):
            assert (by_ticket.status_code, own.status_code) == (200, 200)
            told.append(connected := client.get("/connections", headers=bearer(ann)).text)
            assert [stream["user"] for stream in json.loads(connected)["connections"]] == ["ann", "ann"]
        told.append(client.get("/metrics", headers=bearer(ann)).text)
        assert running.output.until(lambda text: text.count("GET /metrics") >= 5), running.output.text
        log = running.output.text
    for line in ("a mistake of the app's", "another mistake of the app's", "Traceback", "GET /events?..."):
        assert line in log
    shown = log + json.dumps(told)
    for secret in (
        ann,
        stranger,
        made["ticket"],
        SECRET,
        *(part for each in (ann, stranger) for part in each.split(".")[1:]),
    ):
        assert secret not in shown
