"""The floors of the package: a file imports only what lies below it."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sse_app

PACKAGE = Path(sse_app.__file__).parent

# From the ground up. Modules of one floor do not import one another. A new module has to be placed here.
FLOORS = (
    (
        "errors",
        "characters",
        "coroutines",
        "quantities",
        "backoff",
        "stack",
        "steps",
        "listening",
        "descriptors",
        "patterns",
    ),
    ("events", "topics", "content_type", "loop_thread", "address", "refusals"),
    ("payload", "narrowing", "limits"),
    ("publication",),
    ("grants", "drafts", "brokers.limits", "brokers.board"),
    ("config", "metrics", "notices", "brokers", "revocations"),
    ("auth", "auth.withdrawal", "auth.claims", "auth.algorithms", "auth.waiting", "auth.files"),
    ("auth.keys", "auth.signatures", "auth.compact"),
    ("auth.issuer",),
    ("auth.jwks",),
    ("auth.issuers", "auth.tokens", "auth.auth_file"),
    ("auth.credentials", "auth.editing"),
    ("auth.signing",),
    ("brokers.tail", "brokers.offsets", "brokers.formats", "brokers.memory_board", "brokers.messages"),
    ("brokers.recent",),
    ("brokers.known", "brokers.memory", "brokers.sqlite.files", "brokers.sqlite.schema", "brokers.sqlite.entries"),
    ("brokers.sqlite.watermark", "brokers.sqlite.nodes"),
    ("brokers.redis.connection", "brokers.redis.entries"),
    ("brokers.redis.board",),
    ("brokers.redis",),
    ("brokers.nats.url", "brokers.nats.entries", "brokers.nats.internals"),
    ("brokers.nats.connection", "brokers.nats.feed", "brokers.nats.nodes"),
    ("brokers.nats.consumers",),
    ("brokers.nats.log",),
    ("brokers.nats.board", "brokers.nats.batches"),
    ("brokers.nats",),
    ("brokers.sqlite.log",),
    ("brokers.sqlite.pages", "brokers.sqlite.writer", "brokers.sqlite.opening"),
    ("brokers.sqlite.board_file",),
    ("brokers.sqlite.board",),
    ("brokers.sqlite",),
    ("dialects", "publisher", "vetting"),
    ("batch", "admission", "lifetime", "exchange", "tickets"),
    ("subscriber", "asking", "blocks"),
    ("delivery", "subscription"),
    ("heartbeats", "draining", "receipts", "expiry", "reached", "revoking"),
    ("joining",),
    ("leases", "connections"),
    ("node", "web", "web.prefix", "server.uvicorn_internals"),
    ("web.callers", "web.problems", "web.guard", "web.cors", "web.stepped", "web.siblings", "web.exit_signal"),
    ("web.openapi",),
    ("web.door",),
    ("web.stream",),
    ("web.endpoints", "web.endpoints.body", "web.endpoints.json_answer", "web.endpoints.parameters"),
    ("web.endpoints.tickets", "web.endpoints.batches"),
    ("web.endpoints.administration", "web.endpoints.events", "web.endpoints.broadcast", "web.endpoints.operations"),
    ("web.endpoints.pages", "web.desk"),
    ("web.app", "server.direct", "server.logs", "server.answers", "server.deadlines"),
    ("hub",),
    ("server.protocol",),
    ("server.front",),
    ("server",),
    ("server.sockets",),
    ("server.server",),
    ("server.workers",),
    ("commands", "commands.credentials", "commands.granting"),
    ("commands.rows",),
    ("commands.bench_log", "commands.completion", "commands.listen", "commands.publish", "commands.stats"),
    ("commands.keys", "commands.token", "commands.ticket", "commands.connections", "commands.revoke"),
    ("cli",),
    ("testing.clock", "testing.libraries", "testing.published", "testing.server", "testing.tasks"),
    ("testing.assertions", "testing.call", "testing.lifespan", "testing.recording", "testing.stream"),
    ("testing.cuts", "testing.readers", "testing.transport"),
    ("testing",),
    ("pytest_plugin",),
)
COMMANDS = {name for floor in FLOORS for name in floor if name.split(".")[0] == "commands"}
ROOTS = ("", "__main__")  # the public names, which are loaded when used, and ``python3 -m sse_app``
STDLIB_ONLY = {name for floor in FLOORS[:4] for name in floor} - {"payload"}  # payload knows msgspec
NATS = ("board", "connection", "consumers", "feed", "internals", "log", "nodes")
KNOWS = {
    "starlette": {
        *("hub", "web.desk"),
        *(f"web.{name}" for name in ("stream", "stepped", "callers", "guard", "prefix", "problems", "cors", "app")),
        *(
            f"web.endpoints.{name}"
            for name in (
                *("administration", "batches", "body", "broadcast", "events", "json_answer", "operations", "pages"),
                *("parameters", "tickets"),
            )
        ),
        *("server.direct", "server.server", "server.answers", "pytest_plugin", "bench.naive"),
        *(f"testing.{name}" for name in ("call", "lifespan", "recording", "server", "transport")),
    },
    "sse_starlette": {"web.stream", "web.exit_signal", "bench.naive"},
    "uvicorn": {
        *(f"server.{name}" for name in ("uvicorn_internals", "protocol", "front", "server")),
        *("cli", "testing.server"),
    },
    "pytest": {"pytest_plugin"},
    "click": {"cli", *COMMANDS},
    "redis": {"brokers.redis", "brokers.redis.board", "brokers.redis.connection"},
    "nats": {"brokers.nats", *(f"brokers.nats.{name}" for name in NATS)},
    "jwt": {"auth.signatures", "auth.signing"},
    "cryptography": {"auth.signatures"},
    "prometheus_client": {"metrics", "web.endpoints.operations"},  # the endpoints for the media type alone
}
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in PACKAGE.rglob("*.py")
}
# Modules of no floor, with all that they may import of this package and of others. The naive server of the load runs in
# a process of its own, and is never imported. The client never sees the hub.
BENCH = {name for name in MODULES if name.split(".")[0] == "bench"}
DOCTOR = {name for name in MODULES if name.split(".")[0] == "doctor"}
CLIENT = {name for name in MODULES if name.split(".")[0] == "client"}
APART = {
    "bootstrap": set[str](),
    **dict.fromkeys(BENCH, {"descriptors", "errors", *BENCH} - {"bench.naive"}),
    **{name: {"errors", "events", "publication", *DOCTOR} for name in DOCTOR},
    **{
        name: {"backoff", "coroutines", "drafts", "errors", "events", "loop_thread", "payload", "publication", *CLIENT}
        for name in CLIENT
    },
}
ALONE = {
    "bench.naive": {"starlette", "sse_starlette"},
    **{f"doctor.{name}": {"httpx"} for name in ("stream", "visit", "opening", "answers", "credentials")},
    "doctor.report": {"rich"},
    **{name: {"anyio"} for name in CLIENT},
    "client.http": {"httpx2", "httpx", "anyio"},
}


def imported(source: str) -> Iterator[str]:
    """The dotted names that a source imports, anywhere in it: ``from a import b`` is ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they lead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(source: str) -> set[str]:
    """The modules of this package that a source imports; a public name counts as its module."""
    found = set()
    for name in imported(source):
        root, _, rest = name.partition(".")
        if root == "sse_app" and rest:
            first = rest.partition(".")[0]
            found.add(_home(f"{sse_app._HOMES[first]}.{first}" if first in sse_app._HOMES else rest))
    return found


def _home(name: str) -> str:
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def theirs(source: str) -> set[str]:
    """The other packages that a source imports."""
    return {name.partition(".")[0] for name in imported(source)} - {"sse_app", *sys.stdlib_module_names}


def source(name: str) -> str:
    return MODULES[name].read_text()


@pytest.mark.parametrize(
    ("text", "house", "others"),
    [
        ("from sse_app.hub import Hub", {"hub"}, set()),
        ("import sse_app.hub as other", {"hub"}, set()),
        ("from sse_app import hub, errors", {"hub", "errors"}, set()),
        ("from sse_app import Hub", {"hub"}, set()),
        ("from sse_app import __version__", {""}, set()),
        ("from sse_app.brokers import memory, Broker", {"brokers.memory", "brokers"}, set()),
        ("def f():\n    from sse_app.web.app import x", {"web.app"}, set()),
        ("if TYPE_CHECKING:\n    import uvicorn.config", set(), {"uvicorn"}),
        ("import os, json.decoder\nfrom starlette.types import Scope", set(), {"starlette"}),
    ],
)
def test_imports_are_found_wherever_they_stand(text: str, house: set[str], others: set[str]) -> None:
    assert (ours(text), theirs(text)) == (house, others)


def test_every_module_has_its_place() -> None:
    assert MODULES.keys() == {*HEIGHT, *APART, *ROOTS}


@pytest.mark.parametrize("name", HEIGHT)
def test_a_module_imports_only_lower_floors(name: str) -> None:
    seen = ours(source(name)) - {
        "",
        *(APART if name in {"cli", *COMMANDS} else ()),
    }  # the command line starts what stands apart
    too_high = {other for other in seen if HEIGHT.get(other, sys.maxsize) >= HEIGHT[name]}
    assert not too_high, f"{name} imports {too_high}"


@pytest.mark.parametrize("name", sorted(APART))
def test_who_stands_apart_sees_next_to_nothing(name: str) -> None:
    assert ours(source(name)) - {""} <= APART[name]
    assert theirs(source(name)) <= ALONE.get(name, set())


@pytest.mark.parametrize("name", sorted(STDLIB_ONLY))
def test_the_ground_needs_only_the_standard_library(name: str) -> None:
    assert theirs(source(name)) == set()


@pytest.mark.parametrize("package", KNOWS)
def test_a_package_of_others_is_known_to_few(package: str) -> None:
    assert {name for name in MODULES if package in theirs(source(name))} <= KNOWS[package]


@pytest.mark.parametrize("name", ROOTS)
def test_importing_the_package_imports_nothing_that_may_be_missing(name: str) -> None:
    """``python3 -m sse_app`` starts where nothing is installed; the names for type checkers are never imported."""
    first = [node for node in ast.parse(source(name)).body if isinstance(node, ast.Import | ast.ImportFrom)]
    text = "\n".join(map(ast.unparse, first))
    assert ours(text) <= {"bootstrap"}
    assert theirs(text) == set()


def test_every_public_name_is_where_it_is_looked_up() -> None:
    assert sorted(sse_app._HOMES) == sorted(sse_app.__all__)
    for name in sse_app.__all__:
        assert getattr(sse_app, name).__name__ == name


def test_nothing_imports_in_a_circle() -> None:
    below = {name: ours(source(name)) for name in MODULES if name not in ROOTS}
    assert "node" in below["web.stream"]
    TopologicalSorter(below).prepare()  # raises CycleError


def test_only_an_address_is_imported_by_a_name_made_at_run_time() -> None:
    """``import_module`` evades these checks. Two modules use it: for the public names, and for the broker of a URL."""
    assert {name for name in MODULES if "import_module" in source(name)} == {"", "brokers"}


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "base", "common", "misc", "manager", "service", "factory"}
    assert not {name for name in MODULES if drawers & set(name.split("."))}
