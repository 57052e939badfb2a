"""ticket, connections, kick and revoke: what they ask a hub, and what they show of its answer."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from sse_app import SyncClient
from sse_app.cli import commands
from sse_app.client import Client
from sse_app.errors import Refused
from tests.client.test_client import Scripted, problem
from tests.commands.process import nobody, sse_app
from tests.support.web import LiveHub
from tests.test_cli import PATIENCE, serving, url_in

TICKET = {"ticket": "t" * 22, "url": "/events?ticket=" + "t" * 22, "ttl": 30, "expires": 2e9}
STREAM = {
    "client": "till-3",
    "user": "42",
    "topics": ["orders/*", "[news]"],
    "topics_cut": False,
    "address": "192.0.2.1",
    "since": 1_700_000_000,
    "expires": 1_700_003_600,
    "source": "default",
    "node": "0123456789ab",
    "position": "e-7",
    "behind": False,
    "queued_bytes": 12_345,
}
PLAIN = {**STREAM, "user": None, "topics": [], "address": None, "behind": True, "queued_bytes": 0}
MADE = Client.__init__
KEY = "ssk_ops_" + "x" * 43


class Hub:
    """A hub that gives one answer, and records what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response) -> None:
        self.transport = Scripted(answer)

        def with_answer(client: Client, url: str, **options: Any) -> None:
            MADE(client, url, http=httpx.AsyncClient(transport=self.transport), **options)

        monkeypatch.setattr(Client, "__init__", with_answer)
        monkeypatch.setenv("SSE_APP_TOKEN", KEY)
        monkeypatch.setenv("SSE_APP_URL", "http://hub/events-of/us")

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(commands, list(arguments))

    @property
    def asked(self) -> tuple[str, Any]:
        [request] = self.transport.requests
        assert request.headers["authorization"] == f"Bearer {KEY}"
        body = json.loads(request.content) if request.content else None
        return f"{request.method} {request.url.raw_path.decode()}".replace("/events-of/us", ""), body


def answer(status: int = 200, **fields: Any) -> httpx.Response:
    return httpx.Response(status, json=fields)


@pytest.mark.parametrize(
    ("arguments", "came", "asked", "shown"),
    [
        (
            "ticket",
            answer(201, **TICKET),
            ("POST /tickets", {}),
            f"http://hub/events-of/us/events?ticket={'t' * 22}\n",
        ),
        (
            "ticket --user 42 --topic a --topic b/* --client t-* --stats own --ttl 60s --expires-in 2h",
            answer(201, **TICKET),
            (
                "POST /tickets",
                {"user": "42", "topics": ["a", "b/*"], "client": "t-*", "stats": "own", "ttl": 60, "expires_in": 7200},
            ),
            f"http://hub/events-of/us/events?ticket={'t' * 22}\n",
        ),
        (
            "connections --user 42 --client till-3 --topic orders/1 --limit 5",
            answer(connections=[STREAM, PLAIN], more=False, partial=[]),
            ("GET /connections?user=42&client=till-3&topic=orders%2F1&limit=5", None),
            "till-3\t42\torders/*, [news]\t2023-11-14T22:13:20Z\t192.0.2.1\tdefault\t0123456789ab\te-7\t12,345 B\n"
            "till-3\t-\teverything\t2023-11-14T22:13:20Z\t-\tdefault\t0123456789ab\te-7, behind\t0 B\n",
        ),
        ("kick till-3", answer(closed=2, nodes=1), ("DELETE /connections/till-3", None), "2 closed\n"),
        ("kick --user 42 --block 1m", answer(closed=0), ("DELETE /connections?user=42&block=60", None), "0 closed\n"),
        ("revoke --user 42", answer(id="e-1", closed=3), ("POST /revoke", {"user": "42"}), "3 closed\n"),
        (
            "revoke --token-id j1 --topic a --topic b/* --for 1d",
            answer(id="e-1", closed=3),
            ("POST /revoke", {"token": "j1", "topics": ["a", "b/*"], "for": 86400}),
            "3 closed\n",
        ),
        ("revoke --session s", answer(id="e-1", closed=0), ("POST /revoke", {"session": "s"}), "0 closed\n"),
        ("revoke --key till", answer(id="e-1", closed=0), ("POST /revoke", {"key": "till"}), "0 closed\n"),
        ("revoke --kid k1", answer(id="e-1", closed=0), ("POST /revoke", {"kid": "k1"}), "0 closed\n"),
    ],
)
def test_a_command_asks_a_hub_and_shows_its_answer(
    monkeypatch: pytest.MonkeyPatch, arguments: str, came: httpx.Response, asked: tuple[str, Any], shown: str
) -> None:
    hub = Hub(monkeypatch, came)
    done = hub.run(*arguments.split())
    assert (done.stdout, done.stderr, done.exit_code) == (shown, "", 0)
    assert hub.asked == asked


def test_what_a_program_gets_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, answer(201, **TICKET))
    shown = json.loads(hub.run("ticket", "--json").stdout)
    assert shown == {**TICKET, "url": f"http://hub/events-of/us/events?ticket={'t' * 22}"}
    listed: dict[str, Any] = {"connections": [STREAM], "more": True, "partial": []}
    hub = Hub(monkeypatch, answer(**listed))
    done = hub.run("connections", "--json")
    assert (json.loads(done.stdout), done.stderr, done.exit_code) == (listed, "", 0)


def test_a_list_that_is_not_whole_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Hub(monkeypatch, answer(connections=[], more=True, partial=[])).run("connections")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "--limit" in done.stderr
    done = Hub(monkeypatch, answer(connections=[], more=False, partial=["0123456789ab"])).run("connections")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "1 of the hub's nodes did not answer" in done.stderr


def test_a_kick_that_a_node_did_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Hub(monkeypatch, answer(closed=1, nodes=2, partial=["0123456789ab"])).run("kick", "a")
    assert (done.exit_code, done.stdout) == (0, "1 closed\n")
    assert "1 of the hub's nodes did not answer" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "refusal", "status"),
    [
        ("connections", problem(403, "insufficient_scope", "No."), 3),
        ("kick till-3", problem(404, "no_such_client", "No."), 3),
        ("revoke --user 42", problem(401, "unauthorized", "No."), 3),
        ("revoke --user 42", problem(503, "broker_unavailable", "No."), 3),
        ("ticket", problem(400, "invalid_ticket_request", "No."), 3),
        ("connections", answer(connections=[{}]), 3),
        ("connections", answer(connections=5), 3),
        ("ticket", answer(201, ticket=5), 3),
    ],
)
def test_a_refusal_is_one_line_and_its_status(
    monkeypatch: pytest.MonkeyPatch, arguments: str, refusal: httpx.Response, status: int
) -> None:
    done = Hub(monkeypatch, refusal).run(*arguments.split())
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (status, "", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        "kick",
        "kick a --user b",
        "kick a/b",
        "kick a --block 2d",
        "kick a --block soon",
        "revoke",
        "revoke --user a --key b",
        "revoke --user a --for 32d",
        "ticket --ttl 0",
        "ticket --stats some",
        "connections --limit 1001",
    ],
)
def test_what_makes_no_sense_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    hub = Hub(monkeypatch, answer())
    done = hub.run(*arguments.split())
    assert (done.exit_code, done.stdout, hub.transport.requests) == (2, "", [])


def test_nobody_there_is_4() -> None:
    with nobody() as url:
        for command in (["ticket"], ["connections"], ["kick", "a"], ["revoke", "--user", "a"]):
            done = sse_app(*command, SSE_APP_URL=url)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)


def test_a_url_with_a_ticket_opens_a_stream(server: LiveHub) -> None:
    done = sse_app("ticket", "--topic", "orders/*", SSE_APP_URL=server.url)
    assert (done.returncode, done.stderr) == (0, "")
    with httpx.stream("GET", done.stdout.strip()) as response:
        [welcome] = islice((line for line in response.iter_lines() if line.startswith("data: ")), 1)
    assert json.loads(welcome.removeprefix("data: "))["topics"] == ["orders/*"]


def test_an_administrator_sees_ends_and_takes_back_on_a_real_hub(tmp_path: Path) -> None:
    secret, credentials = "s3cret-of-64-bytes-" + "x" * 45, {}
    for name, grants in (("ops", ["--admin", "--subscribe", "**"]), ("reader", ["--subscribe", "a", "--user", "42"])):
        made = sse_app("token", *grants, SSE_APP_TOKEN_SECRET=secret)
        credentials[name] = made.stdout.strip()
    (tmp_path / "ops").write_text(credentials["ops"])
    with serving("--port", "0", SSE_APP_TOKEN_SECRET=secret) as (_, lines):
        url = url_in(lines)

        def ops(*arguments: str) -> tuple[int, str]:
            done = sse_app(*arguments, "--token-file", str(tmp_path / "ops"), SSE_APP_URL=url)
            return done.returncode, done.stdout + done.stderr

        with SyncClient(url, name="till-3", token=credentials["reader"]) as reader:
            stream = reader.listen("a")
            with ThreadPoolExecutor() as pool:
                waiting = pool.submit(next, stream, None)
                while not (listed := ops("connections", "--user", "42"))[1]:
                    assert listed[0] == 0
                assert listed[1].split("\t")[:3] == ["till-3", "42", "a"]
                assert ops("kick", "nobody") == (
                    3,
                    "sse-app: No open stream has that name; GET /connections lists those there are."
                    " (404 no_such_client)\n",
                )
                assert ops("kick", "till-3") == (0, "1 closed\n")
                assert ops("revoke", "--user", "42")[0] == 0
                with pytest.raises(Refused, match="401 invalid_token"):
                    waiting.result(PATIENCE)
        done = sse_app("connections", SSE_APP_TOKEN=credentials["reader"], SSE_APP_URL=url)
        assert (done.returncode, done.stdout) == (3, "")
