import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.commands.process import Process, lines_of, nobody, on_a_terminal, sse_app, started
from tests.support.web import LiveHub, live_hub
from tests.test_cli import PATIENCE, serving, url_in


@pytest.fixture
def ids(server: LiveHub) -> list[str]:
    """The ids of three publications."""
    published = (("rain", "message"), ('{"total":9.5}', "order"), ("two\nlines", "message"))
    return [server.hub.publish_threadsafe(data, topic="demo", event=type).id for data, type in published]


def test_into_a_pipe_goes_what_the_hub_sends(server: LiveHub, ids: list[str]) -> None:
    done = sse_app("listen", "demo", "--last", "3", "--count", "3", SSE_APP_URL=server.url)
    assert done.stdout == (
        f"id: {ids[0]}\ndata: rain\n\n"
        f'id: {ids[1]}\nevent: order\ndata: {{"total":9.5}}\n\n'
        f"id: {ids[2]}\ndata: two\ndata: lines\n\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_json_is_one_object_a_line(server: LiveHub, ids: list[str]) -> None:
    done = sse_app("listen", "--last", "2", "--count", "2", "--json", "--url", server.url)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": ids[1], "event": "order", "data": '{"total":9.5}'},
        {"id": ids[2], "event": "message", "data": "two\nlines"},
    ]
    assert (done.returncode, done.stderr) == (0, "")


def test_what_to_begin_with_and_the_name_are_asked_of_the_hub(server: LiveHub, ids: list[str]) -> None:
    server.hub.publish_threadsafe("not for me", exclude="me")
    behind = sse_app("listen", "--last-event-id", ids[1], "--count", "1", "--client", "me", SSE_APP_URL=server.url)
    assert behind.stdout.startswith(f"id: {ids[2]}\n")
    since = sse_app("listen", "other", "demo", "--since", "1h", "--count", "3", "--json", SSE_APP_URL=server.url)
    assert [json.loads(line)["id"] for line in since.stdout.splitlines()] == ids


def test_on_a_terminal_an_event_is_a_line_and_nothing_of_it_steers_the_terminal(server: LiveHub) -> None:
    published = [
        server.hub.publish_threadsafe("plain", event="order"),
        server.hub.publish_threadsafe("\x1b[2Jgone\u202e\tand\nmore [bold]"),
    ]
    arguments = ["listen", "--last", "2", "--count", "2", "--client", "me"]
    status, shown = on_a_terminal(*arguments, SSE_APP_URL=server.url, NO_COLOR="1")
    note, first, *second = re.sub(r"\x1b\[\d?m", "", shown).splitlines()
    assert note == f"{server.url}: listening as me, 1 connected"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {published[0].id} order plain", first)
    assert re.fullmatch(rf"\d\d:\d\d:\d\d {published[1].id} \\x1b\[2Jgone\\u202e    and", second[0])
    assert second[1:] == ["    more [bold]"]
    assert status == 0


def test_a_terminal_gets_colours_unless_it_is_asked_not_to(server: LiveHub, ids: list[str]) -> None:
    arguments = ["listen", "--last", "2", "--count", "2"]
    _, colours = on_a_terminal(*arguments, SSE_APP_URL=server.url)
    _, none = on_a_terminal(*arguments, SSE_APP_URL=server.url, NO_COLOR="1")
    assert "\x1b[1;36morder " in colours
    assert not re.search(r"\x1b\[[\d;]*3\d", none)


def test_a_gap_is_told_at_its_place_on_stderr_and_by_the_exit_status(server: LiveHub, ids: list[str]) -> None:
    epoch = ids[0].partition("-")[0]
    notice = f'{{"requested":"00ff-1","oldest":"{ids[0]}","top":"{ids[2]}","reason":"epoch"}}'
    done = sse_app("listen", "--last-event-id", "00ff-1", "--count", "1", SSE_APP_URL=server.url)
    assert done.stdout == f"id: {epoch}-0\nevent: gap\ndata: {notice}\n\nid: {ids[0]}\ndata: rain\n\n"
    assert done.stderr == f"Events after 00ff-1 are lost (epoch); it goes on behind {epoch}-0.\n"
    assert done.returncode == 1


def test_a_hub_that_is_killed_and_began_anew_is_told_and_listened_to() -> None:
    with serving("--port", "0") as (process, lines):
        url = url_in(lines).rstrip("/")
        first = sse_app("publish", "first", SSE_APP_URL=url).stdout.strip()
        with started("listen", "--json", "--last", "1", "--count", "2", SSE_APP_URL=url) as listener:
            (line,) = lines_of(listener.stdout, 1)
            assert json.loads(line) == {"id": first, "event": "message", "data": "first"}
            process.kill()
            process.wait()
            with serving("--port", url.rpartition(":")[2]):
                second = sse_app("publish", "second", SSE_APP_URL=url).stdout.strip()
                out, err = listener.communicate(timeout=60)
    gap, event = map(json.loads, out.splitlines())
    assert gap["event"] == "gap"
    assert json.loads(gap["data"])["reason"] == "epoch"
    assert event == {"id": second, "event": "message", "data": "second"}
    lost, *_, found, gap_line = err.splitlines()
    assert re.fullmatch(rf"{url}: .+; again in \d\.\d s", lost)
    assert re.fullmatch(rf"{url}: listening as c-\w+, 1 connected", found)
    assert gap_line == f"Events after {first} are lost (epoch); it goes on behind {gap['id']}."
    assert listener.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["a/**/b"], 3, "sse-app: In a topic filter the segment ** stands only at the end"),
        (["--since", "yesterday"], 3, "sse-app: since is an RFC 3339 time"),
        (["--last", "-1"], 2, "Invalid value for '--last'"),
        (["--count", "0"], 2, "Invalid value for '--count'"),
        (["--url", "localhost"], 2, "sse-app: The URL of a hub begins with http:// or https://"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(server: LiveHub, arguments: list[str], status: int, text: str) -> None:
    done = sse_app("listen", *arguments, SSE_APP_URL=server.url)
    assert (done.returncode, done.stdout) == (status, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_not_there_is_waited_for_as_long_as_was_said() -> None:
    with nobody() as url:
        done = sse_app("listen", "--retry-for", "0", SSE_APP_URL=url)
    assert (done.returncode, done.stdout) == (4, "")
    again, gave_up = done.stderr.splitlines()
    assert re.fullmatch(rf"{url}: .+; again in \d\.\d s", again)
    assert gave_up.startswith("sse-app: No stream within 0 s: ")


def test_a_password_in_the_url_is_not_shown() -> None:
    with nobody() as url:
        done = sse_app("listen", "--retry-for", "0", "--url", url.replace("://", "://user:s3cret@"))
    assert done.returncode == 4
    assert done.stderr.startswith(f"{url}: ")
    assert "s3cret" not in done.stderr
    assert "user" not in done.stderr


def test_nothing_that_a_server_says_steers_the_terminal() -> None:
    """Not the reason of a failure, not the client's name in the welcome, not a gap."""
    welcome = 'data: {"client":"\\u001b[2J","subscribers":1}\n\n'
    gap = 'data: {"reason":"\\u001b]0;x\\u0007","requested":"\\u202e","oldest":"","top":""}\n\n'
    stream = f"retry: 1\n\nevent: welcome\n{welcome}event: gap\n{gap}data: x\n\n"
    problem = json.dumps({"code": "\x1b[1m", "detail": "\x1b[2J\u202e"})
    answers = [
        ("503 Busy", "application/problem+json", problem),
        ("200 OK", "text/event-stream", stream),
        ("401 No", "application/problem+json", problem),
    ]
    with answering(answers) as url:
        done = sse_app("listen", "--json", SSE_APP_URL=url)
    assert done.returncode == 3
    assert json.loads(done.stdout.splitlines()[-1])["data"] == "x"
    assert all(line.isprintable() for line in done.stderr.splitlines()), done.stderr
    assert "\\x1b[2J" in done.stderr


@contextmanager
def answering(answers: list[tuple[str, str, str]]) -> Iterator[str]:
    """A server that gives these answers, one connection after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for status, type, body in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    head = f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nConnection: close\r\n\r\n"
                    connection.sendall(head.encode() + body.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(PATIENCE)


def test_ctrl_c_ends_it_quietly(server: LiveHub, ids: list[str]) -> None:
    with started("listen", "--last", "3", SSE_APP_URL=server.url) as process:
        lines_of(process.stdout, 9)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def assert_quiet_end_without_reader(process: Process) -> None:
    """Close the reader's end of a command's stdout: the command ends with 0 and an empty stderr."""
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_it_ends_quietly_when_nobody_reads_any_more(server: LiveHub, ids: list[str]) -> None:
    """The command ends at once, not with the next event."""
    with started("listen", "--last", "3", SSE_APP_URL=server.url) as process:
        lines_of(process.stdout, 9)
        assert_quiet_end_without_reader(process)


def test_a_full_pipe_whose_reader_goes_ends_it_quietly() -> None:
    with live_hub(history=3_000) as server:
        for _ in range(3_000):
            server.hub.publish_threadsafe("x" * 1_000)
        with started("listen", "--last", "3000", SSE_APP_URL=server.url) as process:
            lines_of(process.stdout, 3)
            assert_quiet_end_without_reader(process)
