import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, get_type_hints

import fastapi
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import Config, Hub, create_app, errors
from sse_app.brokers.memory import MemoryBroker
from sse_app.config import HubOptions, LogOptions, PublisherOptions
from sse_app.grants import Reconnect
from sse_app.lifetime import NO_LIFESPAN
from sse_app.limits import Rate
from sse_app.testing import StreamingASGITransport, events
from sse_app.web.app import static_directory
from sse_app.web.guard import Guard
from sse_app.web.problems import ANSWERS, RETRY_AFTER, problem
from tests.support.peers import PATIENCE
from tests.support.web import call, code_of, web

PAGE = "https://app.example"
HOST = (b"host", b"localhost")
OF_A_SERVER = {
    *("host", "port", "broker", "workers", "allow_open_publish", "so_sndbuf", "tcp_user_timeout", "head_max"),
    "access_log",
}  # the settings of docs/embedding.md, beside the broker, which is an argument of its own
TAKEN: dict[Any, Any] = {
    int: int | str,
    float: float | str,
    int | None: int | str | None,
    bool: bool,
    str | None: str | None,
    Rate: Rate | str,
    Reconnect: Reconnect,
    tuple[str, ...]: Sequence[str],
}


def every(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from every(child)


# Errors


@pytest.mark.parametrize("kind", [*every(errors.BadInput), *every(errors.Unavailable)])
def test_every_error_has_a_row_of_its_own_in_the_table(kind: type[errors.SSEAppError]) -> None:
    status, code = ANSWERS[kind]
    assert (400 <= status < 500) == issubclass(kind, errors.BadInput)
    assert (status in (503, 504, 507)) == issubclass(kind, errors.Unavailable)
    assert re.fullmatch("[a-z0-9_]+", code)


def test_a_code_says_which_error_it_was() -> None:
    codes = [code for error, (_, code) in ANSWERS.items() if error is not errors.UnknownHost]
    assert len(set(codes)) == len(codes)


def test_an_error_of_somebody_elses_has_its_parents_row() -> None:
    class Closed(errors.Unavailable):
        pass

    answer = problem(Closed("The hub is closed."))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == str(RETRY_AFTER)
    assert b'"code":"unavailable"' in answer.body


@pytest.mark.parametrize(("wait", "told"), [(0.002, "1"), (1.0, "1"), (19.2, "20"), (3600.0, "3600")])
def test_after_too_many_requests_the_next_may_come_when_told(wait: float, told: str) -> None:
    answer = problem(errors.TooManyRequests("Too many.", wait))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, told)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/@evil", 404, "not_found"),
        ("GET", "/%2Fevents", 404, "not_found"),
        ("GET", "/static", 404, "not_found"),
        ("GET", "/static/", 404, "not_found"),
        ("GET", "/broadcast", 405, "method_not_allowed"),
        ("OPTIONS", "/events", 405, "method_not_allowed"),
        ("POST", "/events", 405, "method_not_allowed"),
        ("PUT", "/broadcast", 405, "method_not_allowed"),
        ("DELETE", "/stats", 405, "method_not_allowed"),
        ("POST", "/static/app.js", 405, "method_not_allowed"),
        ("BREW", "/", 405, "method_not_allowed"),
    ],
)
async def test_unknown_paths_and_methods_are_problems_too(method: str, path: str, status: int, code: str) -> None:
    async with web() as hub_web:
        answer = await hub_web.client.request(method, path, follow_redirects=True)
    assert code_of(answer) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(("path", "allowed"), [("/events", {"GET", "HEAD"}), ("/broadcast", {"POST"})])
async def test_a_405_names_what_is_allowed(path: str, allowed: set[str]) -> None:
    async with web() as hub_web:
        answer = await hub_web.client.request("PATCH", path)
    assert set(answer.headers["allow"].split(", ")) == allowed


async def test_a_mistake_of_ours_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryBroker):
        async def publish(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("internal detail")

    async with web(Hub(Broken()), transport={"raise_app_exceptions": False}) as hub_web:
        answer = await hub_web.post("x")
    assert code_of(answer) == (500, "internal_error")
    assert "internal detail" not in answer.text
    failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "internal detail" in str([record.exc_info for record in failures])


async def test_every_answer_says_that_its_type_is_not_to_be_guessed_or_kept() -> None:
    async with web() as hub_web:
        answer = await hub_web.client.get("/nothing")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


# CORS


async def test_a_page_of_an_allowed_origin_subscribes_without_a_preflight() -> None:
    async with web(cors_origins=(PAGE,)) as hub_web:
        headers = {"Origin": PAGE, "Accept": "text/event-stream", "Last-Event-ID": "abc-1"}
        async with hub_web.client.stream("GET", "/events", headers=headers) as response:
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "access-control-allow-credentials" not in response.headers
            assert response.headers["vary"] == "Origin"
            assert (await anext(events(response))).type == "welcome"


async def test_a_page_of_an_allowed_origin_publishes_after_a_preflight() -> None:
    asked = "authorization,content-type,idempotency-key"
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    async with web(cors_origins=(PAGE,)) as hub_web:
        answer = await hub_web.client.options("/broadcast", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"].startswith("Origin")
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert set(asked.split(",")) <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
        headers = {"Origin": PAGE, "Idempotency-Key": "k", "Content-Type": "application/json"}
        published = await hub_web.client.post("/broadcast", content="1", headers=headers)
        assert (published.status_code, published.headers["access-control-allow-origin"]) == (200, PAGE)


def asking(headers: str | None, method: str = "POST") -> dict[str, str]:
    """A preflight for a request with these headers."""
    asked = {} if headers is None else {"Access-Control-Request-Headers": headers}
    return {"Origin": PAGE, "Access-Control-Request-Method": method, **asked}


@pytest.mark.parametrize("path", ["/broadcast", "/events"])
@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ((), "x-requested-with"),
        ((), "sentry-trace,baggage,content-type"),
        ((), "traceparent,tracestate"),
        (("X-Request-ID", "newrelic"), "newrelic,x-request-id,baggage"),
        (("*",), "x-any,authorization"),
    ],
)
async def test_a_page_may_send_what_libraries_add_and_what_is_allowed(
    headers: tuple[str, ...], asked: str, origins: tuple[str, ...], path: str
) -> None:
    async with web(cors_origins=origins, cors_headers=headers) as hub_web:
        answer = await hub_web.client.options(path, headers=asking(asked))
    assert answer.status_code == 200
    assert set(asked.split(",")) <= set(re.split(", ?", answer.headers["access-control-allow-headers"].lower()))


@pytest.mark.parametrize(
    ("headers", "asked", "method"),
    [
        ((), "x-secret-name", "POST"),
        ((), "content-type,x-secret-name", "GET"),
        (("X-Request-ID",), "x-secret-name", "POST"),
        ((), None, "PATCH"),
        (("*",), "x-secret-name", "PUT"),
    ],
)
async def test_a_refused_preflight_is_a_problem_that_repeats_nothing(
    headers: tuple[str, ...], asked: str | None, method: str
) -> None:
    async with web(cors_origins=(PAGE,), cors_headers=headers) as hub_web:
        answer = await hub_web.client.options("/broadcast", headers=asking(asked, method))
    assert code_of(answer) == (403, "cors_refused")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "cors_headers" in answer.json()["detail"]
    assert "secret" not in f"{answer.headers}{answer.text}"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_a_page_may_ask_by_every_method_that_there_is(method: str) -> None:
    async with web(cors_origins=(PAGE,)) as hub_web:
        answer = await hub_web.client.options("/stats", headers=asking("authorization", method))
    assert answer.status_code == 200


async def test_a_page_may_read_when_to_come_back() -> None:
    async with web(cors_origins=(PAGE,)) as hub_web:
        hub_web.hub.node.stop_accepting()
        for method, path in (("POST", "/broadcast"), ("GET", "/readyz"), ("GET", "/events")):
            answer = await hub_web.client.request(method, path, content="x", headers={"Origin": PAGE})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, str(RETRY_AFTER))
            assert answer.headers["access-control-expose-headers"] == "Retry-After"


async def test_a_page_of_an_allowed_origin_reads_the_errors_too() -> None:
    async with web(cors_origins=(PAGE,), publish_key="k" * 16) as hub_web:
        for path, status in (("/broadcast", 401), ("/nothing", 404), ("/events", 405)):
            answer = await hub_web.client.post(path, content="x", headers={"Origin": PAGE})
            assert code_of(answer)[0] == status
            assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("path", ["/stats", "/events", "/nothing", "/"])
async def test_with_allowed_origins_every_answer_varies_by_origin(path: str) -> None:
    async with web(cors_origins=(PAGE,)) as hub_web:
        for headers in ({}, {"Origin": PAGE}, {"Origin": "https://evil.example"}):
            answer = await hub_web.client.head(path, headers=headers)
            assert answer.headers["vary"] == "Origin"
            assert ("access-control-allow-origin" in answer.headers) == (headers == {"Origin": PAGE})


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.evil", "https://evilapp.example", "http://app.example", "https://app.example:1", "null"],
)
async def test_another_origin_gets_no_permission(origin: str) -> None:
    async with web(cors_origins=(PAGE,)) as hub_web:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for method, path in (("OPTIONS", "/broadcast"), ("POST", "/broadcast"), ("GET", "/stats")):
            answer = await hub_web.client.request(method, path, headers=headers)
            assert code_of(answer) == (403, "bad_origin")
            assert "access-control-allow-origin" not in answer.headers


async def test_with_a_star_any_page_may_ask_but_without_its_cookies() -> None:
    async with web(cors_origins=("*",)) as hub_web:
        answer = await hub_web.client.get("/stats", headers={"Origin": PAGE, "Cookie": "session=1"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


async def test_pages_of_named_origins_may_send_cookies_where_they_are_allowed_to() -> None:
    async with web(cors_origins=(PAGE, "https://other.example"), cors_credentials=True) as hub_web:
        for method, path, headers in (
            ("GET", "/stats", {}),
            ("GET", "/nothing", {}),
            ("POST", "/broadcast", {"Cookie": "session=1"}),
            ("OPTIONS", "/broadcast", asking("authorization", "DELETE")),
            ("OPTIONS", "/broadcast", asking("x-secret", "PATCH")),
        ):
            answer = await hub_web.client.request(method, path, headers={"Origin": PAGE, **headers})
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers.get_list("access-control-allow-credentials") == ["true"]
            assert answer.headers["vary"].split(", ").count("Origin") == 1
        async with hub_web.client.stream("GET", "/events", headers={"Origin": PAGE}) as response:
            assert response.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.evil", "https://evilapp.example", "http://app.example", "https://app.example:1", "null",
     "http://localhost", None],
)  # fmt: skip
async def test_nobody_else_is_told_that_they_may(origin: str | None) -> None:
    async with web(cors_origins=(PAGE,), cors_credentials=True) as hub_web:
        headers = {} if origin is None else {"Origin": origin}
        for method, path in (("OPTIONS", "/broadcast"), ("GET", "/stats"), ("GET", "/nothing")):
            answer = await hub_web.client.request(
                method, path, headers={**headers, "Access-Control-Request-Method": "POST"}
            )
            assert "access-control-allow-origin" not in answer.headers
            assert "access-control-allow-credentials" not in answer.headers
            assert "Origin" in answer.headers["vary"]


async def test_without_allowed_origins_there_is_no_cors_at_all() -> None:
    async with web() as hub_web:
        answer = await hub_web.client.get("/stats", headers={"Origin": "http://localhost"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


# In another app


@asynccontextmanager
async def client_of(app: Any, lifespan: bool = True) -> Any:
    transport = StreamingASGITransport(app, lifespan=lifespan)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.example", timeout=PATIENCE) as client:
        yield client


async def subscribe_and_publish(client: httpx.AsyncClient, hub: Hub) -> None:
    async with client.stream("GET", "/hub/events?topic=orders/*") as response:
        received = events(response)
        assert (await anext(received)).type == "welcome"
        await hub.publish({"number": 42}, topic="orders/42")
        assert (await anext(received)).data == '{"number":42}'
        assert (await client.post("/hub/broadcast", content="over HTTP")).status_code == 200
        assert (await anext(received)).data == "over HTTP"
    assert (await client.get("/hub/")).headers["content-type"].startswith("text/html")
    assert (await client.get("/hub/static/app.js")).status_code == 200


async def test_the_lines_of_the_docstring_make_a_fastapi_app_a_hub() -> None:
    hub = Hub()
    app = fastapi.FastAPI(lifespan=hub.lifespan)
    app.mount("/hub", hub.app)
    async with client_of(app) as client:
        await subscribe_and_publish(client, hub)
    assert not hub.started


async def test_the_same_in_a_starlette_app() -> None:
    hub = Hub()
    app = Starlette(routes=[Mount("/hub", hub.app)], lifespan=hub.lifespan)
    async with client_of(app) as client:
        await subscribe_and_publish(client, hub)
    assert not hub.started


async def test_the_app_around_it_answers_for_its_own_hosts_unless_it_names_them() -> None:
    for hosts, status in (((), 200), (("service.example",), 200), (("other.example",), 421)):
        hub = Hub(allowed_hosts=hosts)
        app = Starlette(routes=[Mount("/hub", hub.app)], lifespan=hub.lifespan)
        async with client_of(app) as client:
            assert (await client.get("/hub/stats")).status_code == status


async def test_a_hub_that_was_never_started_names_the_missing_line() -> None:
    hub = Hub()
    app = fastapi.FastAPI()
    app.mount("/hub", hub.app)
    async with client_of(app) as client:
        for method, path in (("GET", "events"), ("POST", "broadcast"), ("GET", "stats"), ("GET", "readyz")):
            answer = await client.request(method, f"/hub/{path}", headers={"Accept": "text/event-stream"})
            assert code_of(answer) == (503, "hub_not_started")
            assert "FastAPI(lifespan=hub.lifespan)" in answer.json()["detail"]
            assert answer.headers["retry-after"] == str(RETRY_AFTER)
        assert (await client.get("/hub/healthz")).status_code == 200


def app_of_its_lifespan() -> fastapi.FastAPI:
    hub = Hub()
    app = fastapi.FastAPI(lifespan=hub.lifespan)
    app.mount("/hub", hub.app)
    return app


def app_in_another() -> fastapi.FastAPI:
    outer = fastapi.FastAPI()
    outer.mount("/inner", app_of_its_lifespan())
    return outer


@pytest.mark.parametrize(
    ("make_app", "lifespan", "path"),
    [
        pytest.param(app_of_its_lifespan, False, "/hub/stats", id="a server without lifespan"),
        pytest.param(
            lambda: create_app(Config(allowed_hosts=("service.example",))), False, "/stats", id="the whole server on it"
        ),
        pytest.param(app_in_another, True, "/inner/hub/stats", id="an app that is mounted"),
    ],
)
async def test_a_lifespan_that_nobody_called_names_the_server_and_the_mount(
    make_app: Callable[[], Any], lifespan: bool, path: str
) -> None:
    async with client_of(make_app(), lifespan) as client:
        answer = await client.get(path)
        assert code_of(answer) == (503, "hub_not_started")
        assert answer.json()["detail"] == NO_LIFESPAN


async def test_a_hub_that_was_stopped_says_so() -> None:
    hub = Hub()
    async with hub:
        pass
    async with client_of(hub.app, lifespan=False) as client:
        assert (await client.get("/stats")).status_code == 503


async def test_a_whole_server_starts_and_stops_its_hub_with_itself() -> None:
    app = create_app(Config(allowed_hosts=("service.example",)))
    hub = app.state.hub
    assert not hub.started
    async with client_of(app) as client:
        assert hub.started
        assert (await client.get("/readyz")).status_code == 200
    assert not hub.started


async def test_a_whole_server_answers_only_to_the_hosts_it_knows() -> None:
    async with client_of(create_app()) as client:
        assert code_of(await client.get("/stats")) == (421, "bad_host")
        assert (await client.get("/healthz")).status_code == 200


# Below a prefix

PREFIX = "/api"


def in_fastapi(hub: Hub, mount: str) -> ASGIApp:
    app = fastapi.FastAPI()
    app.mount(mount, hub.app)
    return app


def in_fastapi_with_root_path(hub: Hub, mount: str) -> ASGIApp:
    app = fastapi.FastAPI()
    app.root_path = PREFIX  # as FastAPI(root_path=PREFIX) does; FastAPI itself would warn of a later version
    app.mount(mount, hub.app)
    return app


def in_starlette(hub: Hub, mount: str) -> ASGIApp:
    return Starlette(routes=[Mount(mount, hub.app)])


def alone(hub: Hub, mount: str) -> ASGIApp:
    return hub.app


@pytest.mark.parametrize(
    ("within", "mount", "path", "root_path"),
    [
        # path and root_path of the scope: the proxy keeps or strips the prefix, `--root-path` is put before the path
        (alone, "", "/{}", ""),
        (alone, "", "/api/{}", "/api"),
        (alone, "", "/{}", "/api"),
        (in_starlette, "/hub", "/hub/{}", ""),
        (in_starlette, "/hub", "/api/hub/{}", "/api"),
        (in_starlette, "/api/hub", "/api/hub/{}", ""),
        (in_fastapi, "/hub", "/hub/{}", ""),
        (in_fastapi, "/hub", "/api/hub/{}", "/api"),
        (in_fastapi, "/api/hub", "/api/hub/{}", ""),
        (in_fastapi, "", "/{}", ""),
        (in_fastapi, "", "/api/{}", "/api"),
        (in_fastapi_with_root_path, "/hub", "/hub/{}", ""),
        (in_fastapi_with_root_path, "/hub", "/api/hub/{}", ""),
        (in_fastapi_with_root_path, "/hub", "/api/hub/{}", "/api"),
        (in_fastapi_with_root_path, "/events", "/events/{}", ""),
        (in_fastapi_with_root_path, "/static", "/static/{}", ""),
        (in_fastapi_with_root_path, "", "/{}", ""),
        (in_fastapi_with_root_path, "", "/api/{}", ""),
    ],
)
async def test_the_whole_hub_answers_below_a_prefix(
    within: Callable[[Hub, str], ASGIApp], mount: str, path: str, root_path: str
) -> None:
    hub = Hub()
    app = within(hub, mount)
    async with hub:
        for name in ("", "stats", "healthz", "openapi.json", "static/app.js", "static/sse-app.js"):
            answer = await call(app, "HEAD", path.format(name), [HOST], root_path=root_path)
            assert answer.status_code == 200, name
        stream = await call(app, "HEAD", path.format("events"), [HOST], root_path=root_path)
        assert stream.headers["content-type"].startswith("text/event-stream")
        body: Message = {"type": "http.request", "body": b"x", "more_body": False}
        published = await call(app, "POST", path.format("broadcast"), [HOST], [body], root_path=root_path)
        assert published.status_code == 200
        assert code_of(await call(app, "POST", path.format("stats"), [HOST], root_path=root_path))[0] == 405


@pytest.mark.parametrize("name", ["", "events", "broadcast", "stats", "openapi.json"])
@pytest.mark.parametrize(
    ("path", "root_path", "cause"),
    [
        ("/api/{}", "", "has to strip"),
        ("/a/b/{}", "", "has to strip"),
        ("/api/api/{}", "/api", "it has that twice"),
        ("/other/{}", "/api", "has to strip"),
    ],
)
async def test_a_404_below_a_prefix_that_was_not_stripped_names_the_cause(
    path: str, root_path: str, cause: str, name: str
) -> None:
    answer = await call(Hub().app, path=path.format(name), headers=[HOST], root_path=root_path)
    assert code_of(answer) == (404, "not_found")
    assert cause in answer.content.decode()


@pytest.mark.parametrize(
    "path", ["/nothing", "/events/", "/broadcast/", "/xevents", "/static/", "/static/events", "/api"]
)
async def test_any_other_404_names_none(path: str) -> None:
    answer = await call(Hub().app, path=path, headers=[HOST])
    assert answer.content.endswith(b'lists what there is."}')


def test_the_settings_of_a_hub_are_those_of_the_server() -> None:
    hub = Hub(history=5, queue=7, drain=1, max_subscribers=9)
    assert (hub.config.history, hub.config.queue, hub.node.drain_window, hub.config.max_subscribers) == (5, 7, 1, 9)
    with pytest.raises(errors.ConfigError, match=r"^queue is a whole number from 1 to "):
        Hub(queue=0)


CONTRADICTIONS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("sqlite:///hub.db",), {"config": Config()}, r"^broker and config: .*Config\(broker="),
    ((MemoryBroker(),), {"config": Config()}, "^broker and config: .* as keywords"),
    ((), {"config": Config(), "publish_key": "s3cret-0123456789"}, "^publish_key and config: "),
    ((), {"config": Config(), "hartbeat": 5}, "^hartbeat and config: "),
    ((), {"config": {"history": 5}}, "^config is a Config"),
    ((MemoryBroker(),), {"history": 5}, "^history is a setting of the log; give it to the broker"),
    ((MemoryBroker(),), {"recover": True}, "^recover is a setting of the log; give it to the broker"),
    ((), {"recover": True}, "^recover is for a log in a file"),
    ((), {"hartbeat": 5}, r"^hartbeat is not a setting of a hub; did you mean heartbeat\?$"),
    ((), {"colour": "red"}, "^colour is not a setting of a hub; there are history, "),
    ((), {"port": 9000}, "^port is a setting of a whole server, .*; a hub has none"),
    ((), {"workers": 2}, "^workers is a setting of a whole server"),
    ((5,), {}, "^broker is a URL such as"),
    ((b"memory://",), {}, "^broker is a URL such as"),
]


@pytest.mark.parametrize(("arguments", "settings", "text"), CONTRADICTIONS, ids=[text for _, _, text in CONTRADICTIONS])
def test_a_hub_refuses_what_would_have_no_effect(arguments: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.ConfigError, match=text) as refused:
        Hub(*arguments, **settings)
    assert "s3cret" not in str(refused.value)


def test_a_hub_takes_a_broker_a_url_or_a_config() -> None:
    broker = MemoryBroker(history=3)
    assert Hub(broker, queue=7).broker is broker
    assert Hub("sqlite:///hub.db", history="5").config.broker == "sqlite:///hub.db"
    config = Config(history=5)
    assert Hub(config=config).config is config


def test_the_keywords_of_a_hub_are_the_settings_that_concern_one() -> None:
    """Each keyword takes the value of its setting, and the text that stands for the value."""
    hints, options = get_type_hints(Config), get_type_hints(HubOptions)
    assert options.keys() == hints.keys() - OF_A_SERVER
    assert {name: TAKEN[hints[name]] for name in options} == options
    assert get_type_hints(LogOptions).items() < get_type_hints(PublisherOptions).items() < options.items()


@pytest.mark.parametrize("url", ["nosuch://", "http://[", "", "memory", "kafka://localhost"])
def test_a_broker_that_is_none_is_told_what_there_is(url: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"^broker is a URL"):
        Hub(url)


class Counting(Guard):
    built = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        Counting.built += 1


class Passing:
    built = 0

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        Passing.built += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize("added", [[], [Passing]])
async def test_a_middleware_is_made_once_for_streams_and_all_else(
    added: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A middleware that counts has one count of all requests."""
    monkeypatch.setattr("sse_app.web.app.Guard", Counting)
    monkeypatch.setattr(Counting, "built", 0)
    monkeypatch.setattr(Passing, "built", 0)
    async with web(hub := Hub(cors_origins=(PAGE,))) as hub_web:
        for middleware in added:
            hub.app.add_middleware(middleware)
        async with hub_web.stream(headers={"Origin": PAGE}) as stream:
            assert (await anext(stream)).type == "welcome"
        answer = await hub_web.client.get("/healthz", headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        for path in ("/events", "/healthz"):
            refused = await hub_web.client.get(path, headers={"Origin": "https://evil.example"})
            assert code_of(refused) == (403, "bad_origin")
    assert (Counting.built, Passing.built) == (1, len(added))


def test_the_files_of_the_console_are_found() -> None:
    assert (static_directory() / "index.html").is_file()
