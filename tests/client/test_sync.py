"""Clients and publishers without an event loop: without a block, across forks and signals, and at the end."""

import asyncio
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

import httpx2
import pytest

from sse_app import SyncClient
from sse_app.client.sync import SyncStream
from sse_app.errors import Closed, Gap
from tests.client.test_client import WELCOME, event, gap
from tests.support.peers import PATIENCE
from tests.support.web import LiveHub, live_hub
from tests.support.worlds import World
from tests.test_cli import environment

STEP = SyncStream.__next__.__code__
AT_ONCE = b"retry: 0\n\n"  # the client reconnects at once, and the answer is 204


@pytest.fixture
def server() -> Iterator[LiveHub]:
    with live_hub() as server:
        yield server


def script(text: str, *arguments: str) -> str:
    """The output of a program, which must end with status 0 and without a warning."""
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Without a block


def test_a_client_needs_no_block(server: LiveHub) -> None:
    threads = set(threading.enumerate())
    client = SyncClient(server.url, name="notebook")
    assert repr(client) == f"<SyncClient notebook of {server.url}>"
    assert set(threading.enumerate()) <= threads  # the client connects when it is first used
    published = client.publish("x")
    stream = client.listen(last=1)
    assert next(stream).id == published.id
    client.close()
    client.close()
    assert set(threading.enumerate()) <= threads
    assert list(stream) == []
    for work in (client.stats, client.listen, lambda: client.publish("x")):
        with pytest.raises(Closed, match="This SyncClient is closed"):
            work()


def test_its_keywords_are_seen_by_an_editor(server: LiveHub) -> None:
    with SyncClient(server.url) as client:
        with pytest.raises(TypeError, match="topics"):
            client.publish("x", topics="a")  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="lats"):
            client.listen(lats=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="nmae"):
        SyncClient(server.url, nmae="x")  # type: ignore[call-arg]


# The end of the interpreter

OPEN = """
import sys
from sse_app import SyncClient
client = SyncClient(sys.argv[1])
{enter}
stream = client.listen(last=1)
print(next(stream).data)
"""


@pytest.mark.parametrize("enter", ["", "client.__enter__()"])
def test_an_open_stream_holds_up_no_end(server: LiveHub, enter: str) -> None:
    server.hub.publish_threadsafe("last words")
    assert script(OPEN.format(enter=enter), server.url) == "last words\n"


@pytest.mark.parametrize("enter", ["", "publisher.__enter__()"])
def test_an_open_log_holds_up_no_end(sqlite_world: World, enter: str) -> None:
    text = f"""
import sys
from sse_app import Publisher
publisher = Publisher(sys.argv[1], create=True)
{enter}
print(publisher.publish("x").position.offset)
"""
    assert [script(text, sqlite_world.url) for _ in range(2)] == ["1\n", "2\n"]


# Forks

FORKED = """
import os, sys
from sse_app import Publisher, SyncClient
from sse_app.errors import Closed

def in_child(work):
    sys.stdout.flush()
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
    else:
        work()
        sys.exit()  # as gunicorn's workers do: to the end, with all that is registered for it
"""


def test_a_client_that_was_used_before_a_fork_connects_anew_in_the_child(server: LiveHub) -> None:
    text = """
client = SyncClient(sys.argv[1])
client.publish("parent 1")
stream = client.listen(last=1)
next(stream)

def child():
    client.publish("child")
    print(next(client.listen(last=1)).data, client.name != name)
    try:
        next(stream)
    except Closed as closed:
        print("before a fork" in str(closed))
    stream.close()
    print(list(stream))

name = client.name
in_child(child)
client.publish("parent 2")
print(next(stream).data, next(stream).data)
client.close()
"""
    assert script(FORKED + text, server.url) == "child True\nTrue\n[]\nchild parent 2\n"


def test_the_hub_of_the_parent_says_in_a_child_that_it_does_not_run_there() -> None:
    text = """
import asyncio, threading
from sse_app import Hub
hub = Hub()

def publish():
    try:
        hub.publish_threadsafe("x", timeout=None)
    except RuntimeError as error:
        print(str(error))

def publish_in_a_loop():
    try:
        asyncio.run(hub.publish("x"))
    except RuntimeError as error:
        print(str(error))

def child():
    publish()
    for target in (publish, publish_in_a_loop):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    sys.stdout.flush()
    os._exit(0)  # its end would close the loop, and with it what the parent's waits on

async def main():
    async with hub:
        in_child(child)
        print((await hub.publish("x")).position.offset)

asyncio.run(main())
"""
    *refusals, offset = script(FORKED + text).splitlines()
    assert len(refusals) == 3
    assert all("forked from" in refusal and "Publisher" in refusal for refusal in refusals)
    assert offset == "1"


def test_a_child_leaves_the_block_of_its_parent(server: LiveHub, sqlite_world: World) -> None:
    text = """
with SyncClient(sys.argv[1]) as client, Publisher(sys.argv[2], create=True) as publisher:
    client.publish("x")
    publisher.publish("x")
    in_child(lambda: None)
    in_child(lambda: (client.close(), publisher.close()))
    print(client.stats()["totals"]["published"], publisher.publish("y").position.offset)
"""
    assert script(FORKED + text, server.url, sqlite_world.url) == "1 2\n"


def test_a_publisher_opens_its_log_in_each_process_that_uses_it(sqlite_world: World) -> None:
    text = """
publisher = Publisher(sys.argv[1], create=True)
for _ in range(2):
    in_child(lambda: print(publisher.publish("x").position.offset))
print(publisher.publish("y").position.offset)
"""
    assert script(FORKED + text, sqlite_world.url) == "1\n2\n3\n"


def test_a_publisher_that_was_used_before_a_fork_refuses_in_the_child(sqlite_world: World) -> None:
    text = """
publisher = Publisher(sys.argv[1], create=True)
publisher.publish("x")

def child():
    try:
        publisher.publish("y")
    except RuntimeError as error:
        print(error)

in_child(child)
print(publisher.publish("z").position.offset)
publisher.close()
in_child(lambda: print(Publisher(sys.argv[1], create=True).publish("again").position.offset))
"""
    refused, *offsets = script(FORKED + text, sqlite_world.url).splitlines()
    assert "Open it after the fork" in refused
    assert offsets == ["2", "3"]


def test_a_publisher_that_could_not_open_its_log_before_a_fork_does_in_the_child(sqlite_world: World) -> None:
    text = """
from sse_app.errors import LogUnavailable
publisher = Publisher(sys.argv[1])
try:
    publisher.publish("x")
except LogUnavailable:
    with Publisher(sys.argv[1], create=True) as other:
        other.publish("made meanwhile")
in_child(lambda: print(publisher.publish("y").position.offset))
"""
    assert script(FORKED + text, sqlite_world.url) == "2\n"


# Signals


class Interrupted(Exception):
    """Raised by a handler of a signal, as a task queue's soft time limit is."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switch the garbage collector off: the finalizers that it calls are no part of a step, and cannot raise."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Served:
    """A server that answers with one stream of these pieces after the other."""

    def __init__(self, *streams: list[bytes]) -> None:
        self.streams = list(streams)

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if not self.streams:
            return httpx2.Response(204)
        pieces = self.streams.pop(0)

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=body())


@contextmanager
def listening_to(*streams: list[bytes], **options: Any) -> Iterator[SyncStream]:
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(Served(*streams)))
    with SyncClient("http://hub", http=http) as client:
        yield client.listen(**options)


@contextmanager
def interrupted_at(number: int) -> Iterator[Callable[[], bool]]:
    """Raise at one of the places in a step where Python runs the handlers of signals; yields whether it was reached.

    CPython runs handlers when a Python function is entered and after each call; a profile function gets both.
    """
    seen, inside = 0, False

    def at(frame: FrameType, what: str, of: object) -> None:
        nonlocal seen, inside
        if frame.f_code is STEP and what in ("call", "return"):
            inside = what == "call"
        swallows = frame.f_code.co_name in ("_remove", "remove", "__del__")  # finalizers, which cannot raise
        if inside and not swallows and what in ("call", "c_return", "return"):
            seen += 1
            if seen == number:
                sys.setprofile(None)
                raise Interrupted

    sys.setprofile(at)
    try:
        yield lambda: seen >= number
    finally:
        sys.setprofile(None)


@pytest.mark.usefixtures("no_collector")
def test_a_signal_at_any_point_of_a_step_loses_and_doubles_nothing() -> None:
    wanted = ["e-1", "e-2", "e-3"]
    for number in count(1):
        with listening_to([WELCOME, *map(event, (1, 2, 3)), AT_ONCE]) as stream:
            came = [next(stream).id]
            with interrupted_at(number) as was_there:
                try:
                    came.append(next(stream).id)
                except Interrupted:
                    assert stream.last_event_id == "e-1", number
            came += [event.id for event in stream]
        assert came == wanted, number
        if not was_there():
            break
    assert number > 20


@pytest.mark.usefixtures("no_collector")
def test_a_signal_at_any_point_of_a_step_takes_no_gap_away() -> None:
    for number in count(1):
        gaps: list[Gap] = []
        with listening_to([WELCOME, event(1), gap(5), event(6), AT_ONCE], on_gap=gaps.append) as stream:
            came = [next(stream).id]
            with interrupted_at(number) as was_there:
                try:
                    came.append(next(stream).id)
                except Interrupted:
                    assert stream.last_event_id in (("e-1", "e-5") if gaps else ("e-1",)), number
            came += [event.id for event in stream]
        assert (came, [gap.id for gap in gaps]) == (["e-1", "e-6"], ["e-5"]), number
        if not was_there():
            break
    assert number > 20


def test_signals_while_events_come_lose_and_double_nothing(server: LiveHub) -> None:
    """The signals are real and come at any time. The handler raises only within a step, not between two steps."""
    interruptions = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interruptions
        while frame is not None and frame.f_code is not STEP:
            frame = frame.f_back
        if frame is not None:
            interruptions += 1
            raise Interrupted

    is_over = threading.Event()

    def bother() -> None:
        for number in count():
            if is_over.wait(0.0005):  # a pause between two signals; nothing depends on its length
                return
            if number < 1_500:
                server.hub.publish_threadsafe(str(number))
            elif number == 1_500:
                server.hub.publish_threadsafe("end")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, interrupt)
    bothering = threading.Thread(target=bother)
    came: list[str] = []
    try:
        with SyncClient(server.url) as client:
            stream = client.listen(last_event_id=str(server.hub.publish_threadsafe("begin").id))
            bothering.start()
            while came[-1:] != ["end"]:
                try:
                    for event in stream:
                        assert stream.last_event_id == event.id
                        came.append(event.data or "")
                        if event.data == "end":
                            break
                except Interrupted:
                    pass
            is_over.set()
            bothering.join()
    finally:
        is_over.set()
        bothering.join()
        signal.signal(signal.SIGUSR2, before)
    assert came == [*map(str, range(1_500)), "end"]
    assert interruptions


def test_a_signal_gives_up_a_publication(server: LiveHub) -> None:
    """Otherwise the client would try again for a minute, though the caller has got the exception."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    asked, given_up = threading.Event(), threading.Event()

    async def hang(request: httpx2.Request) -> httpx2.Response:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    def bother() -> None:
        asked.wait(PATIENCE)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, interrupt)
    bothering = threading.Thread(target=bother)
    try:
        with SyncClient("http://hub", http=httpx2.AsyncClient(transport=httpx2.MockTransport(hang))) as client:
            bothering.start()
            with pytest.raises(Interrupted):
                client.publish("x")
            assert given_up.wait(PATIENCE)
    finally:
        bothering.join()
        signal.signal(signal.SIGUSR2, before)
