"""The credential of commands: from an option, a file or a variable, sent to the hub and nowhere shown."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from sse_app.cli import commands
from sse_app.commands import Exit
from sse_app.commands.credentials import FILE_MAX, TokenFile
from sse_app.errors import ConfigError
from tests.commands.process import sse_app
from tests.support.peers import PATIENCE
from tests.support.web import live_hub
from tests.test_cli import serving

KEY = "s3cret-0123456789"
WELCOME = "retry: 1\nid: e-0\nevent: welcome\ndata: {}\n\n"
BYE = 'event: bye\nretry: 1\ndata: {"reason":"%s"}\n\n'
RECEIPT = ("200 OK", "application/json", '{"id":"e-1","subscribers":0,"durable":"none"}')
STATS = ("200 OK", "application/json", '{"subscribers":0}')
NO = ("401 No", "application/problem+json", '{"code":"invalid_token","detail":"No."}')

Answer = tuple[str, str, str]


def stream(*blocks: str) -> Answer:
    return "200 OK", "text/event-stream", "".join(blocks)


class Served:
    """A server that gives these answers in turn, and records the tokens that came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: list[str | None] = []

    def note(self, head: str) -> None:
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        bearer = fields.get("authorization")
        self.sent.append(None if bearer is None else bearer.removeprefix("bearer "))


@contextmanager
def served(*answers: Answer, before: Callable[[int], object] = lambda number: None) -> Iterator[Served]:
    """before: called with the number of each answer before it is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        server = Served(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            for number, (status, type, body) in enumerate(answers):
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as request:
                    server.note(_head(request.readline))
                    before(number)
                    head = f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nConnection: close\r\n"
                    head += f"Content-Length: {len(body)}\r\n\r\n"
                    connection.sendall((head + body).encode())
                    connection.shutdown(socket.SHUT_WR)
                    request.read()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server
        thread.join(PATIENCE)
        assert not thread.is_alive()


def _head(readline: Callable[[], bytes]) -> str:
    lines = []
    while (line := readline()) not in (b"\r\n", b""):
        lines.append(line)
    return b"".join(lines).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


COMMANDS = [
    (["publish", "x"], RECEIPT),
    (["stats", "--json"], STATS),
    (["listen", "--count", "1"], stream(WELCOME, "id: e-1\ndata: x\n\n")),
]


@pytest.mark.parametrize(("command", "answer"), COMMANDS, ids=lambda case: case[0])
def test_a_token_comes_from_a_file_or_a_variable(command: list[str], answer: Answer, file: Path) -> None:
    for options, variables in (
        (["--token-file", str(file)], {"SSE_APP_TOKEN": "another", "SSE_APP_PUBLISH_KEY": "another"}),
        ([], {"SSE_APP_TOKEN": f"{KEY}\n"}),
    ):
        with served(answer) as server:
            done = sse_app(*command, *options, SSE_APP_URL=server.url, **variables)
        assert (done.returncode, done.stderr, server.sent) == (0, "", [KEY])


@pytest.mark.parametrize(("command", "answer"), COMMANDS, ids=lambda case: case[0])
def test_a_publish_key_is_for_publishing_alone(command: list[str], answer: Answer) -> None:
    with served(answer) as server:
        done = sse_app(*command, SSE_APP_URL=server.url, SSE_APP_PUBLISH_KEY=KEY, SSE_APP_TOKEN="")
    assert (done.returncode, server.sent) == (0, [KEY if command[0] == "publish" else None])


@pytest.mark.parametrize("option", ["--token", "--publish-key"])
def test_an_option_counts_before_a_variable(option: str) -> None:
    with served(RECEIPT) as server:
        done = sse_app("publish", "x", option, KEY, SSE_APP_URL=server.url, SSE_APP_TOKEN="another")
    assert (done.returncode, server.sent) == (0, [KEY])


def test_a_file_is_read_again_when_its_token_expires(file: Path) -> None:
    first, second = stream(WELCOME, "id: e-1\ndata: x\n\n", BYE % "expired"), stream(WELCOME, "id: e-2\ndata: y\n\n")
    with served(first, second, before=lambda number: file.write_text(f"newer-{number}\n")) as server:
        done = sse_app("listen", "--count", "2", "--token-file", str(file), SSE_APP_URL=server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "id: e-1\ndata: x\n\nid: e-2\ndata: y\n\n"
    assert server.sent == [KEY, "newer-0"]


def test_a_file_is_read_again_when_its_token_is_refused(file: Path) -> None:
    with served(NO, RECEIPT, before=lambda number: file.write_text("newer")) as server:
        done = sse_app("publish", "x", "--token-file", str(file), SSE_APP_URL=server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "e-1\n", "")
    assert server.sent == [KEY, "newer"]


def test_lines_that_are_left_when_the_file_is_gone_can_be_published_later(file: Path) -> None:
    with served(NO, before=lambda number: file.unlink()) as server:
        done = sse_app("publish", "--token-file", str(file), input="\na\nb\n", SSE_APP_URL=server.url)
    assert done.returncode == Exit.USAGE
    assert "sse-app: stopped at line 2; the same lines again with --idempotency-key" in done.stderr
    assert "sse-app: The token file cannot be read: No such file or directory.\n" in done.stderr
    assert server.sent == [KEY]


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS], ids=lambda command: command[0])
def test_a_token_that_stays_refused_is_said_and_not_shown(command: list[str], file: Path) -> None:
    with served(NO) as server:
        done = sse_app(*command, "--token-file", str(file), SSE_APP_URL=server.url)
    assert (done.returncode, done.stdout) == (Exit.REFUSED, "")
    assert done.stderr == "sse-app: No. (401 invalid_token)\n"
    assert server.sent == [KEY]


def test_why_the_hub_ended_a_stream_is_said() -> None:
    answers = [stream(WELCOME, "data: 1\n\n", BYE % "kicked"), stream(WELCOME, "data: 2\n\n")]
    with served(*answers) as server:
        done = sse_app("listen", "--count", "2", SSE_APP_URL=server.url)
    assert done.returncode == 0
    assert f"{server.url}: the server ended the stream (kicked); again in " in done.stderr


def test_a_server_with_a_token_for_clients_beside_it_starts() -> None:
    with serving("--port", "0", SSE_APP_TOKEN=KEY) as (process, lines):
        assert process.poll() is None
        assert not any(KEY in line for line in lines)


# Wrong usage


def assert_usage(arguments: list[str], text: str, **variables: str) -> None:
    """The command is refused in this text, which does not show what it was given."""
    environment = {"SSE_APP_TOKEN": None, "SSE_APP_PUBLISH_KEY": None, **variables}
    done = CliRunner().invoke(commands, arguments, env=environment)
    assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
    assert text in " ".join(done.stderr.split())
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    ("options", "variables", "named"),
    [
        (["--token", KEY, "--token-file", "{file}"], {}, "--token and --token-file"),
        (["--token", KEY, "--publish-key", KEY], {}, "--token and --publish-key"),
        (["--publish-key", KEY, "--token-file", "{file}"], {}, "--token-file and --publish-key"),
        ([], {"SSE_APP_TOKEN": KEY, "SSE_APP_PUBLISH_KEY": KEY}, "SSE_APP_TOKEN and SSE_APP_PUBLISH_KEY"),
    ],
)
def test_one_credential_is_given(options: list[str], variables: dict[str, str], named: str, file: Path) -> None:
    for command in (["publish", "x"], ["bench"], ["doctor", "http://127.0.0.1:1"]):
        assert_usage([*command, *(option.format(file=file) for option in options)], named, **variables)


def test_a_user_in_the_url_and_a_token_cannot_go_together() -> None:
    done = sse_app("listen", "--url", "http://u:s3cret@127.0.0.1:1", SSE_APP_TOKEN=KEY)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert "cannot go together" in done.stderr
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    ("content", "text"),
    [
        *[(content, "holds one token") for content in (b"", b" \n", KEY.encode() * 2_000, f"{KEY}\n{KEY}".encode())],
        *[(f"{KEY} two".encode(), "holds one token"), (f"{KEY}ü".encode(), "holds one token")],
        (None, "cannot be read: No such file"),
    ],
    ids=["empty", "white space", "long", "two lines", "two words", "no ASCII", "missing"],
)
def test_a_file_without_a_token_is_wrong_usage_and_not_shown(content: bytes | None, text: str, file: Path) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    usage = ["publish", "x", "--token-file", str(file)]
    assert_usage(usage, f"Invalid value for '--token-file': The token file {text}")


@pytest.mark.parametrize(("name", "text"), [("-", "standard input"), ("/", "Is a directory")])
def test_what_is_no_file_is_wrong_usage(name: str, text: str) -> None:
    assert_usage(["listen", "--token-file", name], text)


@pytest.mark.parametrize("token", ["s3cret words", "s3cretö", f"{KEY}\r\nX: y"])
def test_what_is_no_token_is_wrong_usage_and_not_shown(token: str) -> None:
    for command in (["publish", "x"], ["listen"], ["stats"], ["bench"], ["doctor", "http://127.0.0.1:1"]):
        assert_usage([*command, "--token", token], "token is visible ASCII characters")


# The file


def asked(token: TokenFile, *, refresh: bool) -> str:
    return asyncio.run(token(refresh=refresh))


def test_a_file_is_read_again_only_for_a_refresh(file: Path) -> None:
    token = TokenFile(str(file))
    file.write_text("newer")
    assert [asked(token, refresh=refresh) for refresh in (False, True, False)] == [KEY, "newer", "newer"]
    file.unlink()
    assert asked(token, refresh=False) == "newer"
    with pytest.raises(ConfigError, match="No such file"):
        asked(token, refresh=True)
    file.write_text("x" * FILE_MAX)
    assert len(asked(token, refresh=True)) == FILE_MAX


def test_a_pipe_is_read_once() -> None:
    """As of ``--token-file <(command)``: at its end it would be read as empty, or block."""
    read, write = os.pipe()
    try:
        os.write(write, f"{KEY}\n".encode())
        os.close(write)
        token = TokenFile(f"/dev/fd/{read}")
        assert [asked(token, refresh=refresh) for refresh in (False, True)] == [KEY, KEY]
    finally:
        os.close(read)


def test_a_real_hub_takes_a_token_from_a_file_for_all_lines(file: Path) -> None:
    with live_hub(publish_key=KEY) as server:
        done = sse_app("publish", "--token-file", str(file), input="a\nb\n", SSE_APP_URL=server.url)
        assert (done.returncode, server.hub.node.totals.published) == (0, 2)
