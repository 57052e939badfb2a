"""A browser's own EventSource with a ticket, before a real server: cut, drained and started anew, it misses nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page

from sse_app.auth.keys import new_key
from tests.browser.conftest import NAME
from tests.browser.test_eventsource import page, page_of_its_own, ready_state, seen, seen_messages, watch
from tests.chaos.conftest import Server
from tests.chaos.launch import launched
from tests.support.peers import PATIENCE

__all__ = ["page"]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]  # seconds


class Relay:
    """Passes connections on to ``upstream``, a port that may change, and can break all of them."""

    def __init__(self) -> None:
        self.upstream = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.upstream), PATIENCE)
                except OSError:  # no server just now
                    near.close()
                    continue
                far.settimeout(None)
                self._open += (near, far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all connections."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open = []

    def close(self) -> None:
        self._listening.close()
        self.cut()


class Site:
    """A server behind a relay, which can be stopped and started again on its log."""

    def __init__(self, directory: Path, relay: Relay, stack: ExitStack, *flags: str) -> None:
        self._key, digest = new_key("app")
        auth_file = directory / "auth.toml"
        auth_file.touch(0o600)
        auth_file.write_text(f'[keys.app]\nhash = "{digest}"\nsubscribe = ["**"]\npublish = ["**"]\nmint = true\n')
        log = ("--broker", f"sqlite:///{directory}/hub.db", "--auth-file", str(auth_file), "--drain", "2")
        self._flags = (*log, "--retry-min", "0.02", "--retry-max", "0.04", *flags)
        self._log, self._stack, self.relay = directory / "log", stack, relay
        self.url = f"http://127.0.0.1:{relay.port}"
        self._server = self._start()

    def _start(self) -> Server:
        server = self._stack.enter_context(launched(self._log, *self._flags))
        self.relay.upstream = server.port
        return server

    def restart(self) -> None:
        self._server.terminate()
        self._server.process.wait(PATIENCE)
        self._server = self._start()

    def post(self, path: str, content: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._key}"}
        url = f"http://127.0.0.1:{self._server.port}{path}"
        return httpx.post(url, content=content, headers=headers, timeout=PATIENCE).raise_for_status()

    def ticket_url(self, body: str = '{"user": "ann"}') -> str:
        return f"{self.url}{self.post('/tickets', body).json()['url']}"

    def publish(self, data: int) -> str:
        return str(self.post("/broadcast?topic=news", str(data)).json()["id"])


@contextmanager
def site_in(directory: Path, *flags: str) -> Iterator[Site]:
    relay = Relay()
    try:
        with ExitStack() as stack:
            yield Site(directory, relay, stack, *flags)
    finally:
        relay.close()


@pytest.mark.parametrize("foreign", [False, True], ids=["same site", "another site"])
def test_twenty_cuts_and_two_restarts_lose_nothing(page: Page, tmp_path: Path, foreign: bool) -> None:
    statuses = list[int]()
    page.on("response", lambda response: statuses.append(response.status) if "ticket=" in response.url else None)
    with page_of_its_own() as own:
        origin = own.replace("127.0.0.1", NAME).replace("localhost", NAME)
        with site_in(tmp_path, "--cors-origins", origin) as site:
            watch(page, site.ticket_url(), origin if foreign else None)
            seen(page, 1)
            ids = list[str]()
            for number in range(20):
                ids.append(site.publish(number))
                assert seen_messages(page, len(ids)) == ids
                if number in (5, 15):
                    site.restart()
                else:
                    site.relay.cut()
                ids.append(site.publish(number))  # while it is away
                assert seen_messages(page, len(ids)) == ids
            assert ready_state(page) == 1
    assert len(statuses) > 20
    assert set(statuses) == {200}


@pytest.mark.parametrize("spent", ["unknown", "expired", "malformed", "another's"])
def test_a_ticket_that_does_not_count_is_tried_once(page: Page, tmp_path: Path, spent: str) -> None:
    statuses = list[int]()
    page.on("response", lambda response: statuses.append(response.status) if "ticket=" in response.url else None)
    with site_in(tmp_path) as site:
        url = {
            "unknown": f"{site.url}/events?ticket={'x' * 22}",
            "malformed": f"{site.url}/events?ticket=x",
            "expired": site.ticket_url('{"expires_in": 1}'),
            "another's": site.ticket_url(),
        }[spent]
        if spent == "expired":
            watch(page, url)  # its stream ends, and is not renewed
        elif spent == "another's":
            with httpx.stream("GET", url) as answer:
                assert answer.status_code == 200
                watch(page, url)
                page.wait_for_function("source.readyState == 2")
        else:
            watch(page, url)
        page.wait_for_function("source.readyState == 2")
        assert statuses == ([200, 401] if spent == "expired" else [401])
        assert [type for type, _, _ in page.evaluate("seen.events")] == (
            ["welcome", "bye"] if spent == "expired" else []
        )
