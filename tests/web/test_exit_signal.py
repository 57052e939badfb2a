"""The parts of sse-starlette that we use though its documentation does not promise them."""

import asyncio
import inspect
from importlib.metadata import version

import pytest
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus

from sse_app.web import exit_signal
from tests.support.peers import PATIENCE, turns

MOVED = f"sse-starlette {version('sse-starlette')} has no {{}}: see sse_app/web/exit_signal.py"


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (EventSourceResponse, "_listen_for_exit_signal"),
        (AppStatus, "disable_automatic_graceful_drain"),
        (AppStatus, "enable_automatic_graceful_drain"),
        (AppStatus, "should_exit"),
    ],
)
def test_sse_starlette_still_has_what_we_use(owner: type, name: str) -> None:
    assert hasattr(owner, name), MOVED.format(f"{owner.__name__}.{name}")


def test_its_watcher_still_takes_no_arguments() -> None:
    watcher = EventSourceResponse._listen_for_exit_signal
    assert inspect.iscoroutinefunction(watcher), MOVED.format("coroutine function _listen_for_exit_signal")
    assert not inspect.signature(watcher).parameters, MOVED.format("_listen_for_exit_signal without arguments")


@pytest.mark.virtual_time
async def test_it_returns_when_a_signal_has_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppStatus, "should_exit", False)
    stopped = asyncio.create_task(exit_signal.stopped())
    await turns(5)
    assert not stopped.done()
    monkeypatch.setattr(AppStatus, "should_exit", True)
    async with asyncio.timeout(PATIENCE):
        await stopped


def test_streams_may_be_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppStatus, "enable_automatic_graceful_drain", True)
    exit_signal.leave_streams_open()
    assert AppStatus.enable_automatic_graceful_drain is False
