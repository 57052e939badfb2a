import asyncio
from contextlib import suppress
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sse_app import Config, Hub
from sse_app.config import LOOPBACK_NAMES
from sse_app.grants import OPEN
from sse_app.pytest_plugin import HubServer
from sse_app.server.protocol import Protocol
from sse_app.web.endpoints.operations import HEALTH
from sse_app.web.guard import ONCE, Guard, Rules
from sse_app.web.problems import ANSWERS, problem
from tests.chaos.client import Connection
from tests.support.paths import reading, served
from tests.support.peers import PATIENCE
from tests.support.web import Answer, LiveHub, call, code_of, live_hub, web

HOSTS = (*LOOPBACK_NAMES, "hub.example", "*.wild.example")
ALLOWED = ("https://app.example", "http://localhost:3000")


async def ask(
    headers: list[tuple[str, str]],
    origins: tuple[str, ...] = (),
    hosts: tuple[str, ...] | None = HOSTS,
    **scope: Any,
) -> int:
    """The status of the answer to a request with these headers, which are encoded in UTF-8."""
    guard = Guard(PlainTextResponse("let in"), rules=Rules(hosts=hosts, origins=origins), refuse=problem)
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    answer = await call(guard, headers=raw, **scope)
    if answer.status_code == 200:
        assert answer.content == b"let in"
        return 200
    status, code = code_of(answer)
    assert code == ("bad_origin" if status == 403 else "bad_host")
    return status


# Host


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000", "hub.example", "Hub.Example:443",
     "a.wild.example", "a.b.wild.example", "localhost:", "localhost.", "LocalHost.:80", "app.localhost",
     "a.b.localhost:", "127.0.0.1.", "app.localhost.:8000", "hub.example.", "a.wild.example.", "127.0.0.1:", "[::1]:",
     "[0:0:0:0:0:0:0:1]",
     "[0000::0001]:8000", "[::0.0.0.1]"],
)  # fmt: skip
async def test_a_host_of_ours_is_answered(host: str) -> None:
    assert await ask([("Host", host)]) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evillocalhost", "wild.example", "evilwild.example", "127.0.0.2",
     "0.0.0.0", "[::2]", "rebind.127.0.0.1.nip.example", "localhost..", ".", "xlocalhost", "localhost.com",
     "app.localhost.evil.example", "wild.example.", "[::ffff:127.0.0.1]", "0:", "2130706433"],
)  # fmt: skip
async def test_another_host_is_misdirected(host: str) -> None:
    assert await ask([("Host", host)]) == 421


@pytest.mark.parametrize(
    "host",
    ["", " ", "a/b?c", "localhost/", "localhost#", "user@localhost", ":", ":80", "localhost:port", "localhost:123456",
     "localhost:80:80", "::1", "[::1", "[localhost]",
     "[127.0.0.1]", "[:::1]", "[::1]x", "[1:2]", "[]", "localhost, localhost", "localhost\\", "lo calhost",
     "löcalhost"],
)  # fmt: skip
async def test_a_malformed_host_is_a_400(host: str) -> None:
    assert await ask([("Host", host)]) == 400


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("Hub.Example", "hub.example"),
        ("hub.example.", "hub.example"),
        ("hub.example.", "HUB.example."),
        ("*.Hub.Example.", "a.hub.example"),
        ("[2001:DB8::1]", "[2001:db8:0:0::1]"),
        ("[2001:db8:0:0:0:0:0:1]", "[2001:db8::1]:443"),
    ],
)
async def test_a_host_is_allowed_however_it_is_spelt(allowed: str, host: str) -> None:
    assert Config(allowed_hosts=(allowed,)).allowed_hosts == (allowed,)
    assert await ask([("Host", host)], hosts=(allowed,)) == 200
    assert await ask([("Host", f"x{host}")], hosts=(allowed.removeprefix("*."),)) != 200


async def test_a_missing_host_is_a_400() -> None:
    assert await ask([]) == 400


async def test_two_hosts_are_a_400_even_when_they_agree() -> None:
    assert await ask([("Host", "localhost"), ("Host", "localhost")]) == 400


@pytest.mark.parametrize("hosts", [None, ("*",)])
async def test_any_host_is_answered_where_the_app_around_it_checks_but_it_must_be_one(
    hosts: tuple[str, ...] | None,
) -> None:
    assert await ask([("Host", "any.example")], hosts=hosts) == 200
    assert await ask([("Host", "a/b?c")], hosts=hosts) == 400


# The address at which a connection arrived


@pytest.mark.parametrize(
    ("host", "scheme", "server"),
    [
        ("10.244.0.5:8000", "http", ("10.244.0.5", 8000)),
        ("10.244.0.5", "http", ("10.244.0.5", 80)),
        ("10.244.0.5:", "http", ("10.244.0.5", 80)),
        ("10.244.0.5", "https", ("10.244.0.5", 443)),
        ("10.244.0.5:8000", "http", ("::ffff:10.244.0.5", 8000)),
        ("[::ffff:10.244.0.5]:8000", "http", ("10.244.0.5", 8000)),
        ("[2001:DB8:0:0::5]:8000", "http", ("2001:db8::5", 8000)),
        ("[fe80::5]:8000", "http", ("fe80::5%eth0", 8000)),
    ],
)
async def test_the_address_that_it_came_in_by_is_ours(host: str, scheme: str, server: tuple[str, int]) -> None:
    assert await ask([("Host", host)], server=server, scheme=scheme) == 200
    assert await ask([("Host", host), ("Origin", f"{scheme}://{host}")], server=server, scheme=scheme) == 200
    foreign = ("Origin", "https://evil.example")
    assert await ask([("Host", host), foreign], server=server, scheme=scheme) == 403


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("10.244.0.5:8001", ("10.244.0.5", 8000)),
        ("10.244.0.5", ("10.244.0.5", 8000)),
        ("10.244.0.6:8000", ("10.244.0.5", 8000)),
        ("[2001:db8::6]:8000", ("2001:db8::5", 8000)),
        ("rebind.example:8000", ("rebind.example", 8000)),  # a server with a name in the scope took it from the Host
        ("hub.internal:8000", ("10.244.0.5", 8000)),
        ("10.244.0.5:8000", ("/run/hub.sock", None)),
        ("10.244.0.5:8000", None),
    ],
)
async def test_no_other_address_and_no_name_is(host: str, server: tuple[str, int | None] | None) -> None:
    assert await ask([("Host", host)], server=server) == 421


@pytest.mark.parametrize("path", HEALTH)
@pytest.mark.parametrize("host", ["10.244.0.5:8000", "hub", "hub.default.svc.cluster.local", "192.0.2.1:30080"])
async def test_the_health_of_a_hub_may_be_asked_by_any_host(path: str, host: str) -> None:
    async with web(allowed_hosts=["hub.example"]) as hub_web:
        for root_path in ("", "/api"):
            for method in ("GET", "HEAD"):
                headers = [(b"host", host.encode())]
                answer = await call(hub_web.hub.app, method, f"{root_path}{path}", headers, root_path=root_path)
                assert answer.status_code == 200
        refused = await call(hub_web.hub.app, "GET", path, [(b"host", b"a/b?c")])
        assert code_of(refused) == (400, "bad_host")


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("page", [{}, {"Origin": "https://app.example"}])
async def test_where_cookies_count_a_page_publishes_nothing_with_those_of_its_visitor(
    page: dict[str, str], type: str
) -> None:
    hub = Hub(cors_origins=("*",), authorize=lambda request: OPEN if "session" in request.cookies else None)
    async with web(hub) as hub_web:
        headers = {"Content-Type": type, "Cookie": "session=1"}
        answer = await hub_web.client.post("/broadcast", content="1", headers={**headers, **page})
        assert code_of(answer) == (403, "bad_origin")
        assert hub.node.totals.published == 0
        own = {"Origin": "http://localhost"}
        assert (await hub_web.client.post("/broadcast", content="1", headers={**headers, **own})).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/events", "/stats", "/metrics", "/openapi.json", "/healthz/", "/x/healthz", "//healthz"]
)
async def test_nothing_else_may(path: str) -> None:
    async with web(allowed_hosts=["hub.example"]) as hub_web:
        answer = await call(hub_web.hub.app, "GET", path, [(b"host", b"10.244.0.5:8000")])
        assert code_of(answer) == (421, "bad_host")


# Origin

OWN = ("Host", "localhost:8000")


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://localhost.evil.example", "http://evil-localhost:8000", "http://localhost:8001",
     "http://localhost", "https://localhost", "null", "", "localhost:8000", "file://", "http://", "http://[",
     "http://localhost:8000@evil.example", "http://localhost:8000.evil.example", "http://lоcalhost:8000",
     "ftp://localhost:8000", "http://user@localhost:8000"],
)  # fmt: skip
async def test_a_page_of_another_origin_is_refused(origin: str) -> None:
    assert await ask([OWN, ("Origin", origin)]) == 403


@pytest.mark.parametrize("origin", ["http://localhost:8000", "HTTP://LOCALHOST:8000", "https://localhost:8000"])
async def test_the_own_page_is_let_in(origin: str) -> None:
    assert await ask([OWN, ("Origin", origin)]) == 200


@pytest.mark.parametrize(
    ("host", "origin"), [("hub.example", "https://hub.example"), ("hub.example:443", "https://hub.example"),
                         ("hub.example:80", "http://hub.example"), ("hub.example:", "http://hub.example:80"),
                         ("[::1]:8000", "http://[::1]:8000")]
)  # fmt: skip
async def test_the_default_port_may_be_named_or_not(host: str, origin: str) -> None:
    assert await ask([("Host", host), ("Origin", origin)]) == 200


async def test_who_has_no_origin_is_no_page_and_let_in() -> None:
    assert await ask([OWN]) == 200


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("same-site", 403), ("cross-site", 403), ("none", 403), ("", 403)]
)
async def test_what_the_browser_says_of_the_site_counts_more_than_the_names(site: str, status: int) -> None:
    """Behind a proxy the Host may be another one; and a page of the same site may be of another author."""
    assert await ask([OWN, ("Origin", "https://public.example"), ("Sec-Fetch-Site", site)]) == status


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [("cross-site", "no-cors", 403), ("cross-site", "cors", 403), ("cross-site", "navigate", 200),
     ("none", "navigate", 200), ("same-origin", "no-cors", 200), ("same-site", "no-cors", 200)],
)  # fmt: skip
async def test_a_cross_site_request_without_an_origin_is_let_in_only_as_a_link(
    site: str, mode: str, status: int
) -> None:
    assert await ask([OWN, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)]) == status


@pytest.mark.parametrize("origin", ALLOWED)
async def test_an_allowed_origin_is_let_in(origin: str) -> None:
    assert await ask([OWN, ("Origin", origin), ("Sec-Fetch-Site", "cross-site")], ALLOWED) == 200


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.evil", "https://evilapp.example", "https://app.example:8443", "http://app.example",
     "https://sub.app.example", "https://аpp.example", "null", "https://app.example/", "http://localhost:3001"],
)  # fmt: skip
async def test_an_origin_that_looks_like_an_allowed_one_is_refused(origin: str) -> None:
    assert await ask([OWN, ("Origin", origin)], ALLOWED) == 403


@pytest.mark.parametrize("origin", ["https://any.example", "null"])
async def test_with_a_star_any_origin_is_let_in(origin: str) -> None:
    assert await ask([OWN, ("Origin", origin), ("Sec-Fetch-Site", "cross-site")], ("*",)) == 200


# Credentials that a browser adds by itself

COOKIE, BASIC = ("Cookie", "session=1"), ("Authorization", "Basic dTpw")
BEARER = ("Authorization", "bearer k3y")
FOREIGN, SAME = ("Origin", ALLOWED[0]), ("Origin", "http://localhost:8000")
UNSAFE = pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "BREW"])


async def ask_as(
    method: str,
    *headers: tuple[str, str],
    origins: tuple[str, ...] = (),
    ambient: bool = True,
    credentials: bool = False,
) -> int:
    app = PlainTextResponse("let in")
    rules = Rules(hosts=HOSTS, origins=origins, ambient=ambient, credentials=credentials)
    guard = Guard(app, rules=rules, refuse=problem)
    answer = await call(guard, method, headers=[(name.lower().encode(), value.encode()) for name, value in headers])
    assert answer.status_code == 200 or code_of(answer) == (403, "bad_origin")
    return answer.status_code


@UNSAFE
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([], 200),
        ([COOKIE], 403),
        ([COOKIE, BEARER], 200),
        ([COOKIE, BASIC], 200),  # a tool's: a browser says where a POST comes from
        ([BASIC], 200),
        ([COOKIE, SAME], 200),
        ([COOKIE, SAME, ("Sec-Fetch-Site", "same-origin")], 200),
        ([COOKIE, ("Sec-Fetch-Site", "same-origin")], 200),
        ([COOKIE, ("Sec-Fetch-Site", "none")], 200),
        ([COOKIE, ("Sec-Fetch-Site", "same-site")], 403),
        ([COOKIE, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")], 403),
        ([COOKIE, ("Sec-Fetch-Site", "")], 403),
        ([COOKIE, FOREIGN], 403),
        ([COOKIE, ("Origin", "null")], 403),
        ([COOKIE, SAME, ("Sec-Fetch-Site", "same-site")], 403),
    ],
)
async def test_with_a_cookie_alone_only_the_own_page_changes_something(
    method: str, fields: list[tuple[str, str]], status: int
) -> None:
    assert await ask_as(method, OWN, *fields) == status


@UNSAFE
@pytest.mark.parametrize("own", [COOKIE, BASIC])
@pytest.mark.parametrize("origins", [ALLOWED, ("*",)])
async def test_a_page_that_may_ask_may_not_ask_as_its_visitor(
    method: str, own: tuple[str, str], origins: tuple[str, ...]
) -> None:
    """A form, and a fetch of mode no-cors, send cookies without any permission."""
    assert await ask_as(method, OWN, own, FOREIGN, origins=origins) == 403
    assert await ask_as(method, OWN, own, FOREIGN, origins=origins, ambient=False) == 200
    assert await ask_as(method, OWN, FOREIGN, origins=origins) == 200
    assert await ask_as(method, OWN, COOKIE, BEARER, FOREIGN, origins=origins) == 200


@UNSAFE
async def test_unless_its_origin_may_send_credentials(method: str) -> None:
    assert await ask_as(method, OWN, COOKIE, FOREIGN, origins=ALLOWED, credentials=True) == 200
    assert (
        await ask_as(method, OWN, COOKIE, ("Origin", "https://evil.example"), origins=ALLOWED, credentials=True) == 403
    )
    assert await ask_as(method, OWN, COOKIE, origins=ALLOWED, credentials=True) == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("fields", [[COOKIE], [COOKIE, SAME], [COOKIE, FOREIGN], [COOKIE, ("Sec-Fetch-Site", "none")]])
async def test_what_changes_nothing_needs_no_more_than_ever(method: str, fields: list[tuple[str, str]]) -> None:
    assert await ask_as(method, OWN, *fields, origins=ALLOWED) == 200


# Headers


@pytest.mark.parametrize("white", [" ", "\t", "  \t "])
@pytest.mark.parametrize("around", ["{value}{white}", "{white}{value}", "{white}{value}{white}"])
async def test_white_space_around_a_value_is_not_the_value(around: str, white: str) -> None:
    def spaced(value: str) -> str:
        return around.format(value=value, white=white)

    own = ("Host", spaced("localhost:8000"))
    assert await ask([own]) == 200
    assert await ask([own, ("Origin", spaced("http://localhost:8000"))]) == 200
    assert await ask([own, ("Origin", spaced("https://app.example"))], ALLOWED) == 200
    assert await ask([own, ("Origin", spaced("https://evil.example"))], ALLOWED) == 403
    site = ("Sec-Fetch-Site", spaced("cross-site"))
    assert await ask([own, site]) == 403
    assert await ask([own, site, ("Sec-Fetch-Mode", spaced("navigate"))]) == 200


async def test_what_is_behind_the_guard_sees_values_without_their_white_space() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await PlainTextResponse("let in")(scope, receive, send)

    given = [(b"host", b"localhost\t"), (b"x-any", b" a b "), (b"empty", b""), (b"white", b" \t")]
    guard = Guard(app, rules=Rules(hosts=HOSTS, origins=()), refuse=problem)
    assert (await call(guard, headers=given)).status_code == 200
    assert seen[0]["headers"] == [(b"host", b"localhost"), (b"x-any", b"a b"), (b"empty", b""), (b"white", b"")]
    assert given[0] == (b"host", b"localhost\t")  # the caller's scope keeps the original value


@pytest.mark.parametrize("second", ["same", "another"])
@pytest.mark.parametrize("name", sorted(ONCE))
async def test_a_header_that_may_come_once_is_refused_when_it_comes_twice(name: bytes, second: str) -> None:
    value = b"localhost" if name == b"host" else b"1"
    headers = {b"host": b"localhost"} | {name: value}
    async with web() as hub_web:
        twice = [*headers.items(), (name, value if second == "same" else b"2")]
        for method, path in (("POST", "/broadcast"), ("GET", "/stats"), ("GET", "/events")):
            answer = await call(hub_web.hub.app, method, path, twice)
            status, code = code_of(answer)
            assert (status, code) == (400, ANSWERS[ONCE[name]][1])
            assert name.decode().title() in answer.content.decode()
        assert hub_web.hub.node.totals.published == hub_web.hub.node.totals.connected == 0


# Upgrades


BODIES = [
    ("Content-Length", "5"),
    ("Content-Length", "00"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "x"),
]


@pytest.mark.parametrize("offer", [("Upgrade", "h2c"), ("UPGRADE", "foo"), ("Upgrade", "")])
@pytest.mark.parametrize("field", ["Connection", "Proxy-Connection"])
@pytest.mark.parametrize("connection", ["Upgrade", "keep-alive, upgrade", "HTTP2-Settings,\tUPGRADE"])
@pytest.mark.parametrize("body", BODIES)
async def test_an_upgrade_with_a_body_is_refused_and_its_connection_closed(
    offer: tuple[str, str], field: str, connection: str, body: tuple[str, str]
) -> None:
    guard = Guard(PlainTextResponse("let in"), rules=Rules(hosts=None, origins=()), refuse=problem)
    fields = [OWN, ("Connection", "x"), (field, connection), offer, body]
    headers = [(name.lower().encode(), value.encode()) for name, value in fields]
    answer = await call(guard, "POST", headers=headers)
    assert code_of(answer) == (400, "unsafe_upgrade")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "fields",
    [
        [("Connection", "upgrade"), ("Upgrade", "websocket")],
        [("Connection", "upgrade"), ("Upgrade", "h2c"), ("Content-Length", "0")],
        [("Upgrade", "h2c"), ("Content-Length", "5")],
        [("Connection", "close"), ("Upgrade", "h2c"), ("Content-Length", "5")],
        [("Connection", "upgrade"), ("Content-Length", "5")],
    ],
    ids=["WebSocket", "a length of none", "no Connection", "another Connection", "no Upgrade"],
)
async def test_other_upgrades_are_let_in(fields: list[tuple[str, str]]) -> None:
    assert await ask([OWN, *fields]) == 200


@pytest.mark.parametrize(
    "offer",
    [
        b"POST /broadcast HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: foo\r\n",
        b"POST /broadcast HTTP/1.1\r\nProxy-Connection: Upgrade\r\nUpgrade: foo\r\n",
        b"CONNECT /healthz HTTP/1.1\r\n",
    ],
    ids=["Connection", "Proxy-Connection", "CONNECT"],
)
async def test_on_a_server_that_would_run_the_body_as_a_request_nothing_of_it_runs(offer: bytes) -> None:
    smuggled = b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nevil"
    head = offer + b"Host: localhost\r\n"
    async with Hub() as hub, served(hub.app, HttpToolsProtocol) as server:
        for together in (True, False):
            async with await Connection.open(server.port) as connection:
                await connection.send(head + b"Content-Length: %d\r\n\r\n" % len(smuggled) + smuggled * together)
                answer = await connection.receive_answer()
                assert (answer.status, answer.json["code"]) == (400, "unsafe_upgrade")
                with suppress(ConnectionError):
                    await connection.send(smuggled)
                with suppress(ConnectionError):
                    assert await connection.receive() == b""
        assert hub.node.totals.published == 0


# Over the whole hub


@pytest.mark.parametrize(
    "type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/json"]
)
@pytest.mark.parametrize(
    "page", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
@pytest.mark.parametrize("cookie", [{}, {"Cookie": "session=1"}])
async def test_a_foreign_page_publishes_nothing(page: dict[str, str], type: str, cookie: dict[str, str]) -> None:
    async with web() as hub_web:
        headers = {"Content-Type": type, **page, **cookie}
        answer = await hub_web.client.post("/broadcast", content="1", headers=headers)
        assert code_of(answer) == (403, "bad_origin")
        assert answer.headers["vary"] == "Origin"
        assert hub_web.hub.node.totals.published == 0


@pytest.mark.parametrize(
    "path", ["/", "/events", "/stats", "/metrics", "/healthz", "/readyz", "/openapi.json", "/none"]
)
async def test_a_foreign_page_reads_nothing(path: str) -> None:
    async with web() as hub_web:
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = await hub_web.client.request(method, path, headers={"Origin": "https://evil.example"})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        assert hub_web.hub.node.totals.connected == 0


@pytest.mark.parametrize("path", ["/events", "/broadcast", "/metrics", "/none"])
def test_a_rebinding_name_reaches_nothing(sse_server: HubServer, path: str) -> None:
    method = b"POST" if path == "/broadcast" else b"GET"
    server = LiveHub(sse_server.url, int(sse_server.url.rpartition(":")[2]), sse_server.hub)
    request = b"%s %s HTTP/1.1\r\nHost: rebind.evil.example\r\nConnection: close\r\n\r\n" % (method, path.encode())
    assert code_of(server.answer(request)) == (421, "bad_host")


@pytest.mark.parametrize("forwarded", ["X-Forwarded-Host", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded"])
def test_what_a_client_says_of_a_proxy_is_not_believed(forwarded: str) -> None:
    with live_hub(drain=0) as server:
        head = f"GET /stats HTTP/1.1\r\nHost: evil.example\r\n{forwarded}: localhost\r\nConnection: close\r\n\r\n"
        assert code_of(server.answer(head.encode())) == (421, "bad_host")


# Over real servers, ours and others

every_server = pytest.mark.parametrize("http", [Protocol, HttpToolsProtocol, H11Protocol])


async def answer_of(port: int, request: str, address: str = "127.0.0.1") -> Answer:
    """A server's answer to a request that asks for the end of the connection."""
    incoming, outgoing = await asyncio.open_connection(address, port)
    async with asyncio.timeout(PATIENCE):
        outgoing.write(request.encode())
        raw = await incoming.read()
        outgoing.close()
        await outgoing.wait_closed()
    return Answer.parse(raw)


@every_server
async def test_a_server_on_all_addresses_is_asked_by_the_one_that_reaches_it(http: type[asyncio.Protocol]) -> None:
    """Prometheus and the probes of Kubernetes ask so. 127.0.0.2 is an address of this machine, and no loopback name."""
    async with Hub(allowed_hosts=HOSTS) as hub, served(hub.app, http, host="0.0.0.0") as server:

        async def ask_for(host: str, path: str) -> int:
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            return (await answer_of(server.port, request, "127.0.0.2")).status_code

        assert await ask_for(f"127.0.0.2:{server.port}", "/metrics") == 200
        assert await ask_for(f"127.0.0.3:{server.port}", "/metrics") == 421
        assert await ask_for("127.0.0.2", "/metrics") == 421
        assert await ask_for(f"rebind.example:{server.port}", "/metrics") == 421
        assert await ask_for("pod-7", "/readyz") == 200


@every_server
@pytest.mark.parametrize("white", [" ", "\t", " \t "])
async def test_no_server_takes_white_space_for_a_part_of_a_value(http: type[asyncio.Protocol], white: str) -> None:
    key = "k3y-0123456789-abcdef"
    fields = ["Host: localhost", "Origin: http://localhost", f"Authorization: Bearer {key}", "Idempotency-Key: k1",
              "Content-Type: application/json; charset=utf-8", "Content-Encoding: identity", "Content-Length: 4",
              "Connection: close"]  # fmt: skip
    async with Hub(allowed_hosts=HOSTS, publish_key=key) as hub, served(hub.app, http) as server:
        missed = (await hub.publish("missed")).position
        head = "".join(f"{line}{white}\r\n" for line in fields)
        answer = await answer_of(server.port, f"POST /broadcast HTTP/1.1\r\n{head}\r\nnull")
        assert (answer.status_code, await hub.broker.top()) == (200, missed.next())
        after = f"{missed.epoch}-{missed.offset - 1}"
        async with reading(server.port, "/events", headers=f"Last-Event-ID: {after}{white}\r\n") as reader:
            await reader.until(b"data: null")
        assert b'"recovered":true' in reader.body
        assert b"data: missed" in reader.body
