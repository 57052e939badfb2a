"""The Django app of the docs' page on WSGI, in gunicorn's workers: its publications and its errors."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from sse_app import EventDecoder
from sse_app.bench.peers import Server, started
from tests.support.peers import PATIENCE
from tests.test_docs import CHECKOUT, blocks

SHOP = next(block.text for block in blocks(CHECKOUT / "docs" / "wsgi.md") if block.text.startswith("# shop.py"))
PUBLISHER, ROBUST, PAID = 'Publisher("sqlite:///hub.db")', ", robust=True", 'HttpResponse("paid\\n")'


def shop(changes: dict[str, str]) -> str:
    """The app of the page, with one text in it replaced by another."""
    text = SHOP
    for shown, other in changes.items():
        assert text.count(shown) == 1, shown
        text = text.replace(shown, other)
    return text


@contextmanager
def gunicorn(directory: Path, text: str, *flags: str) -> Iterator[Server]:
    (directory / "shop.py").write_text(text)
    command = (sys.executable, "-m", "gunicorn", "--chdir", str(directory), "--bind", "127.0.0.1:0", *flags)
    with started((*command, "shop:application")) as server:
        yield server


def pay(server: Server, number: int = 42) -> int:
    return httpx.post(f"{server.url}/orders/{number}/pay", timeout=PATIENCE).status_code


@pytest.mark.parametrize("way", ["Publisher", "SyncClient"])
def test_each_worker_publishes_though_the_app_was_loaded_before_the_fork(way: str, tmp_path: Path) -> None:
    serve = (sys.executable, "-m", "sse_app", "serve", "--port", "0", "--broker", f"sqlite:///{tmp_path}/hub.db")
    with started(serve) as hub:
        url = f"sqlite:///{tmp_path}/hub.db" if way == "Publisher" else hub.url
        text = shop({PUBLISHER: f'{way}("{url}")', PAID: "HttpResponse(str(__import__('os').getpid()))"})
        text = text.replace("from sse_app import Publisher\n", f"from sse_app import {way}\n")
        with gunicorn(tmp_path, text, "--preload", "--workers", "2") as server:
            assert len(set(paid_by_both(httpx.URL(server.url).port or 0))) == 2
        assert events(hub, 2) == ['{"number":1}', '{"number":2}']


def paid_by_both(port: int) -> list[str]:
    """Pay two orders at two workers, since a worker with an open request takes no other. Return their process ids."""
    late, soon = (HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for _ in range(2))
    answers = []
    try:
        late.connect()
        for number, connection in ((1, soon), (2, late)):
            connection.request("POST", f"/orders/{number}/pay")
            answer = connection.getresponse()
            assert answer.status == 200
            answers.append(answer.read().decode())
    finally:
        late.close()
        soon.close()
    return answers


def events(hub: Server, number: int) -> list[str | None]:
    """The data of the newest publications, so many."""
    decoder, found = EventDecoder(), list[str | None]()
    with httpx.stream("GET", f"{hub.url}/events?last={number}", timeout=PATIENCE) as response:
        for piece in response.iter_raw():
            found += [event.data for event in decoder.feed(piece) if event.type == "paid"]
            if len(found) == number:
                break
    return found


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({PUBLISHER: 'Publisher("sqlite:////nowhere/hub.db")'}, 200, id="robust"),
        pytest.param({PUBLISHER: 'Publisher("sqlite:////nowhere/hub.db")', ROBUST: ""}, 500, id="not robust"),
        pytest.param(
            {PUBLISHER: "__import__('sse_app').Hub()", "hub.publish(": "hub.publish_threadsafe(", ROBUST: ""},
            500,
            id="a hub that nothing starts",
        ),
    ],
)
def test_an_error_in_publishing_is_no_500_for_what_is_committed_where_on_commit_is_robust(
    changes: dict[str, str], status: int, tmp_path: Path
) -> None:
    with gunicorn(tmp_path, shop(changes)) as server:
        assert pay(server) == status
