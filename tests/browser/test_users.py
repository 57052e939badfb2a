"""An app with users, in Chromium and in Firefox: each sees what is for it, and a logout ends its streams everywhere."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
from playwright.sync_api import Browser
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from sse_app import Grant, Hub
from sse_app.revocations import Revocation
from sse_app.testing import live
from tests.support.firefox import firefox

pytestmark = pytest.mark.browser

PATIENCE = 60.0  # seconds: a first start of Firefox on a busy machine

PAGE = """<!doctype html><title>app</title><script>
const say = text => fetch("/told", {method: "POST", body: NAME + " " + text});
const source = new EventSource("/hub/events");
source.addEventListener("welcome", event => say("is " + JSON.parse(event.data).user));
source.addEventListener("bye", event => say("bye " + JSON.parse(event.data).reason));
source.onmessage = event => say("sees " + event.data);
source.onerror = () => source.readyState === 2 && say("closed");
</script>"""


class App:
    """An app whose users have sessions, with a hub in it. ``told`` is what its pages say."""

    url = ""

    def __init__(self) -> None:
        self.sessions: dict[str, str] = {}
        self.told: Queue[str] = Queue()
        self.hub = Hub(authorize=self.who, retry_min=0.1, retry_max=0.2)
        routes = [Route("/page", self.page), Route("/told", self.tell, methods=["POST"]), Mount("/hub", self.hub.app)]
        self.asgi = Starlette(routes=routes, lifespan=self.hub.lifespan)

    def who(self, request: Request) -> Grant | None:
        user = self.sessions.get(request.cookies.get("session", ""))
        return Grant.of(user=user, subscribe=("news/*", f"users/{user}")) if user else None

    async def page(self, request: Request) -> Response:
        """Log a user in, and show the page of one of the user's tabs."""
        session = secrets.token_urlsafe()
        self.sessions[session] = request.query_params["user"]
        answer = HTMLResponse(PAGE.replace("NAME", f'"{request.query_params["name"]}"'))
        answer.set_cookie("session", session, httponly=True, samesite="lax")
        return answer

    async def tell(self, request: Request) -> Response:
        self.told.put((await request.body()).decode())
        return Response()

    async def log_out(self, user: str) -> None:
        self.sessions = {session: name for session, name in self.sessions.items() if name != user}
        await self.hub.node.revoke(Revocation.of(user=user, lasts=600))

    def wait_for(self, *expected: str) -> None:
        """Wait until the pages have said this, in any order, and nothing else."""
        assert sorted(self.told.get(timeout=PATIENCE) for _ in expected) == sorted(expected)


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    with live(app.asgi) as server:
        app.url = server.url
        yield app


@pytest.mark.timeout(180)
def test_two_users_in_two_browsers(app: App, browser: Browser, tmp_path: Path) -> None:
    with firefox(f"{app.url}/page?user=ann&name=firefox", tmp_path / "profile"):
        for name, user in (("chromium", "ann"), ("other", "bob")):
            browser.new_context().new_page().goto(f"{app.url}/page?user={user}&name={name}")
        app.wait_for("firefox is ann", "chromium is ann", "other is bob")
        for topic in ("news/1", "users/ann", "users/bob"):
            app.hub.publish_threadsafe(topic, topic=topic)
        app.wait_for(
            *("firefox sees news/1", "chromium sees news/1", "other sees news/1"),
            *("firefox sees users/ann", "chromium sees users/ann", "other sees users/bob"),
        )
        app.hub.node.life.run_from_thread(lambda: app.log_out("ann"), PATIENCE)
        app.wait_for("firefox bye revoked", "chromium bye revoked", "firefox closed", "chromium closed")
        app.hub.publish_threadsafe("after", topic="news/1")
        app.wait_for("other sees after")
    for context in browser.contexts:
        context.close()
