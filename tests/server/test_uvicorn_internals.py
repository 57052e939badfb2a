"""The members of uvicorn that we use and its documentation does not promise: all of them are there, and all are named.

When a new version of uvicorn has moved a member, this test names it; other tests would fail in less clear ways.
"""

import ast
import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn

from sse_app.server import uvicorn_internals
from sse_app.server.uvicorn_internals import (
    LOGGING_CONFIG,
    STATUS_LINE,
    USED,
    FlowControl,
    HttpToolsProtocol,
    RequestResponseCycle,
    ServerState,
)

MOVED = f"uvicorn {uvicorn.__version__} has no {{}}: see sse_app/server/uvicorn_internals.py"
HERE = Path(uvicorn_internals.__file__).parent
# Members of uvicorn whose names our sources also use for others: settings of a Config, Hub.drain, serve().
OTHERS = {"access_log", "app", "drain", "serve", "timeout_keep_alive"}


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("nobody calls it")


def _made() -> dict[type, Any]:
    """One object of each class, since some members are set only in the constructor."""
    config = uvicorn.Config(_app, log_config=None)
    config.load()
    state, server = ServerState(), uvicorn.Server(config)
    server.lifespan = LifespanOn(config)  # set when the server starts to serve
    protocol = HttpToolsProtocol(config, state, {})
    protocol.on_message_begin()  # sets url
    asked = dict.fromkeys(inspect.signature(RequestResponseCycle).parameters)
    cycle = RequestResponseCycle(**asked)  # type: ignore[arg-type]
    return {
        HttpToolsProtocol: protocol,
        RequestResponseCycle: cycle,
        FlowControl: FlowControl(asyncio.Transport()),
        ServerState: state,
        uvicorn.Server: server,
    }


@pytest.fixture
async def made() -> dict[type, Any]:
    return _made()


@pytest.mark.parametrize("kind", USED, ids=lambda kind: kind.__name__)
async def test_uvicorn_still_has_what_we_use(kind: type, made: dict[type, Any]) -> None:
    missing = [name for name in sorted(USED[kind]) if not hasattr(made[kind], name)]
    assert not missing, MOVED.format(", ".join(f"{kind.__name__}.{name}" for name in missing))


def test_the_tables_that_we_use_have_their_shape() -> None:
    assert STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    assert "access" in LOGGING_CONFIG["handlers"], MOVED.format("handler access in LOGGING_CONFIG")


def _names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


async def test_nothing_of_uvicorn_is_used_that_is_not_named(made: dict[type, Any]) -> None:
    ours = {name for path in HERE.glob("*.py") for name in _names(path)} - OTHERS
    promised = {name for base in (object, asyncio.Protocol) for name in dir(base)}
    theirs = {name for item in made.values() for name in dir(item)} - promised
    assert ours & theirs <= set().union(*USED.values())
    assert set().union(*USED.values()) <= ours


def test_the_classes_of_uvicorn_are_taken_from_one_module() -> None:
    for path in HERE.glob("*.py"):
        modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        private = {module for module in modules if module and module.startswith("uvicorn.")}
        assert not private or path.name == "uvicorn_internals.py", (path, private)
