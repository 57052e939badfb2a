import json
import signal

from sse_app import SyncClient
from tests.commands.process import nobody, sse_app, terminal
from tests.support.web import LiveHub
from tests.test_cli import serving, url_in


def test_json_is_what_the_hub_answers(server: LiveHub) -> None:
    server.hub.publish_threadsafe("x", topic="a")
    done = sse_app("stats", "--json", SSE_APP_URL=server.url)
    with SyncClient(server.url) as client:
        fetched = client.stats()
    printed = json.loads(done.stdout)
    assert printed.pop("uptime") <= fetched.pop("uptime")
    assert printed == fetched
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_shown_as_tables(server: LiveHub) -> None:
    ids = [server.hub.publish_threadsafe("x", topic="[a]/x", event="order").id for _ in range(7)]
    with SyncClient(server.url) as client:
        stream = client.listen("[a]/*", "b", last=1)
        next(stream)
        done = sse_app("stats", SSE_APP_URL=server.url, COLUMNS="120")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["subscribers", "1"] in rows
    assert ["published", "7"] in rows
    assert ["log", ids[0], "to", ids[-1]] in rows
    assert ["[a]/*,", "b", "1"] in rows
    newest = [row[1] for row in rows if row[-1:] == ["order"]]
    assert newest == ids[:1:-1]
    assert all("[a]/x" in row for row in rows if row[-1:] == ["order"])
    assert (done.returncode, done.stderr) == (0, "")


def test_it_can_be_watched_through_a_restart_until_ctrl_c() -> None:
    with serving("--port", "0") as (process, lines):
        url = url_in(lines).rstrip("/")
        with terminal("stats", "--watch", "--interval", "0.1", SSE_APP_URL=url) as screen:
            screen.until("0/s")
            process.kill()
            process.wait()
            screen.until("No answer")
            with serving("--port", url.rpartition(":")[2]):
                screen.until("published")
                screen.process.send_signal(signal.SIGINT)
                assert screen.to_the_end() == 130
    assert "Traceback" not in screen.shown


def test_what_cannot_be_is_said_in_a_line(server: LiveHub) -> None:
    with nobody() as away:
        for url, status, text in (
            (away, 4, "No answer"),
            (f"{server.url}/nowhere", 3, "404 not_found"),
            ("ftp://x", 2, "The URL of a hub begins"),
        ):
            done = sse_app("stats", "--url", url)
            assert (done.returncode, done.stdout) == (status, "")
            assert done.stderr.startswith("sse-app: ")
            assert text in done.stderr
    assert sse_app("stats", "--json", "--watch", SSE_APP_URL=server.url).returncode == 2
