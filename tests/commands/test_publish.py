import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Scope

from sse_app import Client, Receipt, SyncClient
from sse_app.client.batch import Batch
from sse_app.commands import publish as module
from sse_app.drafts import BATCH_MAX, Drafts
from sse_app.errors import UnknownParameter
from sse_app.events import Event
from sse_app.publication import Position
from tests.commands.process import nobody, on_a_terminal, sse_app, started
from tests.support.peers import PATIENCE
from tests.support.web import LiveHub, live_hub
from tests.test_cli import KEY, serving, url_in

SUMMARY = re.compile(r"([\d,]+) published in \d+\.\d s, [\d,]+/s\n")


def log(url: str) -> list[Event]:
    """Return all publications of a log."""
    with SyncClient(url) as client:
        number = client.stats()["totals"]["published"]
        return list(islice(client.listen(last=1_000_000), number))


def published_in(stderr: str) -> int:
    summary = SUMMARY.fullmatch(stderr)
    assert summary, stderr
    return int(summary[1].replace(",", ""))


def numbers(first: int, last: int) -> str:
    return "".join(f"{number}\n" for number in range(first, last + 1))


def test_one_event_is_published_and_its_id_printed(server: LiveHub) -> None:
    with SyncClient(server.url, name="me") as me, SyncClient(server.url, name="you") as you:
        options = ["--topic", "a", "--topic", "b/c", "--event", "order", "--exclude", "me"]
        done = sse_app("publish", *options, "hello – ü", SSE_APP_URL=server.url)
        assert next(you.listen("b/*", last=1)) == Event("hello – ü", "order", done.stdout.rstrip("\n"))
        for_me = sse_app("publish", "--to", "me", "only you", SSE_APP_URL=server.url).stdout
        assert next(me.listen(last=1)) == Event("only you", id=for_me.rstrip("\n"))
        assert me.stats()["recent"][0]["topics"] == ["a", "b/c"]
    assert (done.returncode, done.stderr) == (0, "")


def test_each_line_is_an_event_in_their_order(server: LiveHub) -> None:
    lines = "one\r\n\n  two \nthree: ü\n\n\nlast, without an end"
    done = sse_app("publish", "-", SSE_APP_URL=server.url, input=lines)
    events = log(server.url)
    assert [event.data for event in events] == ["one", "  two ", "three: ü", "last, without an end"]
    assert (done.returncode, done.stdout, published_in(done.stderr)) == (0, f"{events[-1].id}\n", 4)


class SlowHub:
    """A client whose hub acknowledges a batch only once the next one is made."""

    def __init__(self) -> None:
        self.made, self.published, self.at_once = 0, list[int](), 0
        self.one_more = asyncio.Event()

    async def publish_batch(self, batch: Batch, *, retry_for: float) -> list[Receipt]:
        self.at_once += 1
        assert self.at_once == 1, "the next batch is sent when the one before is acknowledged"
        number = len(self.published) + 1
        while self.made < min(number + 1, 3):
            self.one_more.clear()
            await self.one_more.wait()
        self.at_once -= 1
        self.published.append(batch.number)
        return [Receipt(Position("e", number), 0, "none")] * batch.number


async def test_the_next_batch_is_made_while_one_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, loop = SlowHub(), asyncio.get_running_loop()
    options = module._Options(topic=None, event="message", to=None, exclude=None, retry_for=1.0)
    lines = module._Lines(cast(Client, hub), options, "key", lambda published, size: None)
    make = lines._batch

    def counting(group: Sequence[module._Line]) -> Batch | None:
        made = make(group)
        hub.made += 1
        loop.call_soon_threadsafe(hub.one_more.set)
        return made

    async def batches() -> AsyncIterator[Sequence[module._Line]]:
        for size in (2, 3, 4):
            yield [module._Line(number, b"text") for number in range(size)]

    monkeypatch.setattr(lines, "_batch", counting)
    monkeypatch.setattr(module, "_batches", batches)
    async with asyncio.timeout(PATIENCE):
        await lines.publish(inflight=1)
    assert hub.published == [2, 3, 4]


@pytest.mark.parametrize("inflight", [1, 16])
def test_thousands_of_lines_are_published_once_each(server: LiveHub, inflight: int) -> None:
    done = sse_app("publish", "--inflight", str(inflight), SSE_APP_URL=server.url, input=numbers(1, 3_000))
    came = [int(event.data) for event in log(server.url)]
    assert sorted(came) == list(range(1, 3_001))
    assert inflight > 1 or came == sorted(came)
    assert (done.returncode, published_in(done.stderr)) == (0, 3_000)


def test_lines_that_are_there_together_go_in_few_requests(
    server: LiveHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    publish_many = server.hub.node.publish_many

    async def counting(drafts: Drafts, *grant: Any) -> list[Receipt]:
        sizes.append(len(drafts))
        return await publish_many(drafts, *grant)

    monkeypatch.setattr(server.hub.node, "publish_many", counting)
    (tmp_path / "lines").write_text(numbers(1, 9_500))
    with (tmp_path / "lines").open() as file, started("publish", stdin=file, SSE_APP_URL=server.url) as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, published_in(err)) == (0, 9_500)
    assert [int(event.data) for event in log(server.url)] == list(range(1, 9_501))
    assert sizes == [*[BATCH_MAX] * 9, 500]


def test_any_text_is_a_line(server: LiveHub) -> None:
    lines = ['{"n": 1}', "{not json", '"quoted"', "null", "tab\tand \\ and \x7f", "\u2028 is no line end", "é😀"]
    done = sse_app("publish", SSE_APP_URL=server.url, input="\n".join(lines))
    assert (done.returncode, published_in(done.stderr)) == (0, len(lines))
    with SyncClient(server.url) as client:
        found = list(islice(client.listen(last=len(lines)), len(lines)))
    assert [event.data for event in found] == lines


def test_no_lines_are_no_events(server: LiveHub, tmp_path: Path) -> None:
    done = sse_app("publish", SSE_APP_URL=server.url, input="")
    assert (done.returncode, done.stdout, published_in(done.stderr)) == (0, "", 0)
    for name in ("/dev/null", str(tmp_path / "empty")):
        with open(name, "a+") as file, started("publish", stdin=file, SSE_APP_URL=server.url) as process:
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, published_in(err)) == (0, "", 0)


def test_lines_come_from_a_file_too(server: LiveHub, tmp_path: Path) -> None:
    lines = [f"{number} {'x' * 1_000}" for number in range(200)]  # more than one read of stdin
    (tmp_path / "lines").write_text("\n".join(lines))
    with (tmp_path / "lines").open() as file, started("publish", stdin=file, SSE_APP_URL=server.url) as process:
        _, err = process.communicate(timeout=30)
    assert (process.returncode, published_in(err)) == (0, 200)
    assert [event.data for event in log(server.url)] == lines


def test_a_line_is_published_when_it_comes(server: LiveHub) -> None:
    read, write = socket.socketpair()
    with read, write, SyncClient(server.url) as client:
        with started("publish", "-", stdin=read.fileno(), SSE_APP_URL=server.url) as process:
            events = client.listen(last=1)
            for data in ("one", "two"):
                write.sendall(f"{data}\nha".encode())
                assert next(events).data == data
                write.sendall(b"lf\n")
                assert next(events).data == "half"
            write.close()
            process.communicate(timeout=30)
        assert process.returncode == 0


def test_the_same_lines_with_the_same_key_are_published_once(server: LiveHub) -> None:
    key = ["--idempotency-key", "orders-of-today"]
    first = sse_app("publish", *key, SSE_APP_URL=server.url, input=numbers(1, 10))
    again = sse_app("publish", *key, SSE_APP_URL=server.url, input=numbers(1, 12))
    assert published_in(first.stderr) == 10
    assert [event.data for event in log(server.url)] == numbers(1, 12).split()
    assert again.returncode == 0
    one = [sse_app("publish", "--idempotency-key", "k", "x", SSE_APP_URL=server.url).stdout for _ in range(2)]
    assert one[0] == one[1] != ""


def test_a_line_that_is_refused_stops_it_and_is_named() -> None:
    with live_hub(body_max=10) as server:
        lines = "one\n\ntwo\nmuch too long\nfour\n"
        done = sse_app("publish", "--idempotency-key", "k", SSE_APP_URL=server.url, input=lines)
        assert [event.data for event in log(server.url)] == ["one", "two"]
        stopped, summary, why = done.stderr.splitlines(keepends=True)
        again = "the same lines again with --idempotency-key k publish what is missing"
        assert stopped == f"sse-app: stopped at line 4; {again}.\n"
        assert published_in(summary) == 2
        assert why.startswith("sse-app: The data of a publication has at most 10 bytes (body_max).")
        assert done.returncode == 3
        shorter = lines.replace("much ", "")
        corrected = sse_app("publish", "--idempotency-key", "k", SSE_APP_URL=server.url, input=shorter)
        assert [event.data for event in log(server.url)] == ["one", "two", "too long", "four"]
        assert corrected.returncode == 0


def test_the_one_line_of_many_that_is_refused_is_found() -> None:
    with live_hub(body_max=10) as server:
        lines = [str(number) for number in range(1, 3_001)]
        lines[1_233] = "much too long"
        done = sse_app("publish", SSE_APP_URL=server.url, input="\n".join(lines))
        assert [event.data for event in log(server.url)] == lines[:1_233]
        assert done.stderr.startswith("sse-app: stopped at line 1,234; ")
        assert done.returncode == 3


def test_a_key_that_came_with_another_line_is_found(server: LiveHub) -> None:
    key = ["--idempotency-key", "k"]
    sse_app("publish", *key, SSE_APP_URL=server.url, input=numbers(1, 50))
    changed = numbers(1, 50).replace("\n30\n", "\nthirty\n") + numbers(51, 60)
    done = sse_app("publish", *key, SSE_APP_URL=server.url, input=changed)
    assert done.stderr.startswith("sse-app: stopped at line 30; ")
    assert (done.returncode, "409 key_reused" in done.stderr) == (3, True)
    assert [event.data for event in log(server.url)] == numbers(1, 50).split()


def test_a_proxy_that_takes_small_bodies_only_gets_smaller_batches() -> None:
    with live_hub(batch_bytes=2_000) as server:
        done = sse_app("publish", SSE_APP_URL=server.url, input=numbers(1, 500))
        assert [event.data for event in log(server.url)] == numbers(1, 500).split()
        assert (done.returncode, published_in(done.stderr)) == (0, 500)


def test_a_hub_without_batches_gets_line_by_line(server: LiveHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(scope: Scope) -> None:
        if b"batch" in scope["query_string"]:
            asked.append(True)
            raise UnknownParameter("There is a parameter that is not known here; known are topic, event, to, exclude.")

    asked: list[bool] = []
    monkeypatch.setattr("sse_app.web.endpoints.broadcast.batch_of", unknown)
    done = sse_app("publish", SSE_APP_URL=server.url, input=numbers(1, 100))
    assert [event.data for event in log(server.url)] == numbers(1, 100).split()
    assert (done.returncode, published_in(done.stderr)) == (0, 100)
    assert len(asked) == 1


def test_a_refusal_that_no_line_caused_is_asked_for_once() -> None:
    with live_hub(publish_key=KEY) as server:
        done = sse_app("publish", SSE_APP_URL=server.url, input=numbers(1, 100))
        assert (done.returncode, "401 unauthorized" in done.stderr) == (3, True)
        assert done.stderr.startswith("sse-app: stopped at line 1; ")


def test_a_line_that_is_no_text_is_not_sent(server: LiveHub, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"one\ncaf\xe9\ntwo\n")
    with (tmp_path / "lines").open() as file, started("publish", stdin=file, SSE_APP_URL=server.url) as process:
        _, err = process.communicate(timeout=30)
    stopped, summary, why = err.splitlines(keepends=True)
    assert stopped.startswith("sse-app: stopped at line 2; ")
    assert (published_in(summary), why) == (1, "sse-app: The line is not valid UTF-8 text.\n")
    assert process.returncode == 2
    assert [event.data for event in log(server.url)] == ["one"]


def test_data_that_is_no_text_is_not_sent(server: LiveHub) -> None:
    done = sse_app("publish", "caf\udce9", SSE_APP_URL=server.url)  # Python's form of the byte E9 in an argument
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sse-app: The data holds a lone surrogate, which UTF-8 cannot carry.\n"
    assert log(server.url) == []


def test_a_publish_key_comes_from_the_environment_or_a_flag() -> None:
    with live_hub(publish_key=KEY) as server:
        assert sse_app("publish", "x", SSE_APP_URL=server.url).returncode == 3
        assert sse_app("publish", "x", SSE_APP_URL=server.url, SSE_APP_PUBLISH_KEY=KEY).returncode == 0
        wrong = sse_app("publish", "x", "--publish-key", f"{KEY}x", SSE_APP_URL=server.url)
        assert (wrong.returncode, KEY in wrong.stderr) == (3, False)
        assert "401 unauthorized" in wrong.stderr


def test_keys_read_from_a_file_have_no_line_end() -> None:
    with live_hub(publish_key=KEY) as server:
        done = sse_app(
            *("publish", "x", "--idempotency-key", "k\n", "--publish-key", f" {KEY}\r\n"), SSE_APP_URL=server.url
        )
        again = sse_app(
            "publish", "x", "--idempotency-key", "k", SSE_APP_URL=server.url, SSE_APP_PUBLISH_KEY=f"{KEY}\n"
        )
    assert (done.returncode, done.stderr) == (again.returncode, again.stderr) == (0, "")
    assert done.stdout == again.stdout


def test_a_line_that_ends_a_header_is_never_sent(server: LiveHub) -> None:
    """The text behind the line end would be a second request."""
    smuggled = "k\r\nContent-Length: 0\r\n\r\nPOST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"
    for option in ("--idempotency-key", "--publish-key"):
        done = sse_app("publish", "x", option, smuggled, SSE_APP_URL=server.url)
        assert (done.returncode, done.stdout) == (2, "")
    assert server.hub.node.totals.published == 0


def test_an_argument_that_is_no_utf8_is_refused_before_it_is_sent(server: LiveHub) -> None:
    before = server.hub.node.totals.published
    done = sse_app("publish", "\udcff", SSE_APP_URL=server.url)
    assert (done.returncode, "UTF-8" in done.stderr) == (2, True)
    assert server.hub.node.totals.published == before


def test_a_hub_that_is_away_is_waited_for_as_long_as_was_said() -> None:
    with nobody() as url:
        done = sse_app("publish", "--retry-for", "1", "x", SSE_APP_URL=url)
        lines = sse_app("publish", "--retry-for", "1", SSE_APP_URL=url, input="x\ny\n")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("sse-app: Not acknowledged within 1 s: ")
    assert done.stderr.endswith(" It was not sent.\n")
    assert (lines.returncode, lines.stdout) == (4, "")
    assert lines.stderr.startswith("sse-app: stopped at line 1; ")


def test_a_hub_that_is_killed_and_restarted_in_between_gets_every_line_once() -> None:
    with serving("--port", "0") as (process, lines):
        url = url_in(lines).rstrip("/")
        with started("publish", stdin=-1, SSE_APP_URL=url) as publisher:
            assert publisher.stdin is not None
            publisher.stdin.write(numbers(1, 100))
            publisher.stdin.flush()
            sse_app("listen", "--last", "100", "--count", "100", SSE_APP_URL=url)  # waits until all are in the log
            process.kill()
            process.wait()
            publisher.stdin.write(numbers(101, 200))
            publisher.stdin.flush()
            with serving("--port", url.rpartition(":")[2]):
                _, err = publisher.communicate(timeout=60)
                came = [int(event.data) for event in log(url)]
    assert (publisher.returncode, published_in(err)) == (0, 200)
    assert came[0] in (100, 101)  # line 100 may have been sent again, when its answer was lost together with the log
    assert came == list(range(came[0], 201))


def test_ctrl_c_ends_it_and_says_how_far_it_came(server: LiveHub) -> None:
    with started("publish", stdin=-1, SSE_APP_URL=server.url) as process:
        assert process.stdin is not None
        process.stdin.write(numbers(1, 10))
        process.stdin.flush()
        with SyncClient(server.url) as client:
            *_, last = islice(client.listen(last=10), 10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert published_in(err) in (9, 10)
    assert last.data == "10"


def test_that_nobody_reads_the_id_stops_no_lines(server: LiveHub) -> None:
    with started("publish", stdin=-1, SSE_APP_URL=server.url) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.write(numbers(1, 500))
        process.stdin.close()
        assert process.stderr is not None
        assert published_in(process.stderr.read()) == 500
        assert process.wait(30) == 0
    assert len(log(server.url)) == 500


def test_lines_are_typed_on_a_terminal(server: LiveHub) -> None:
    status, shown = on_a_terminal("publish", typed=b"hello\nyou\n\x04", SSE_APP_URL=server.url)
    assert [event.data for event in log(server.url)] == ["hello", "you"]
    assert "Each line is an event; Ctrl+D ends.\n" in shown
    assert SUMMARY.search(shown)
    assert status == 0


def test_a_terminal_shows_how_far_it_is(server: LiveHub, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text(numbers(1, 1_000))
    with (tmp_path / "lines").open("rb") as file:
        status, shown = on_a_terminal("publish", stdin=file, SSE_APP_URL=server.url)
    assert "━" in shown
    assert "1,000 published in " in shown
    assert (status, len(log(server.url))) == (0, 1_000)
