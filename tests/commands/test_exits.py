"""The ends of commands: one table of exit statuses for all, and error lines without control characters."""

from collections.abc import Iterator

import pytest

from sse_app import errors
from sse_app.commands import Exit, exits, printable, status_of
from sse_app.errors import Gap, Refused, SSEAppError
from tests.commands.process import sse_app

KEY = "s3cret-0123456789"
USAGE = (errors.BadInput, errors.ConfigError, errors.InvalidURL, errors.BenchRefused, errors.DoctorRefused)
AWAY = (errors.Unreachable, errors.BrokerError, errors.BenchFailed, errors.DoctorFailed)


def tree(kind: type[SSEAppError]) -> Iterator[type[SSEAppError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def example(kind: type[SSEAppError]) -> SSEAppError:
    if kind is Refused:
        return Refused(403, "forbidden", "No.")
    if issubclass(kind, errors.TooManyRequests):
        return kind("No.", 1.0)
    return Gap("epoch", id="", requested=None, oldest="", top="") if kind is Gap else kind("No.")


@pytest.mark.parametrize("kind", sorted(set(tree(SSEAppError)), key=str))
def test_every_error_has_its_status(kind: type[SSEAppError]) -> None:
    expected = Exit.REFUSED if kind is Refused else Exit.FLAWED
    if issubclass(kind, USAGE):
        expected = Exit.USAGE
    elif issubclass(kind, AWAY):
        expected = Exit.UNREACHABLE
    assert status_of(example(kind)) is expected


def test_an_error_is_one_line_that_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exits():
        raise Refused(403, "x\x1b]0;y\a", "No\n\u202eway\x9b2J.")
    assert ended.value.code == Exit.REFUSED
    assert capsys.readouterr().err == "sse-app: No\\n\\u202eway\\x9b2J. (403 x\\x1b]0;y\\x07)\n"


def test_ctrl_c_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exits():
        raise KeyboardInterrupt
    assert (ended.value.code, capsys.readouterr().err) == (Exit.INTERRUPTED, "")


@pytest.mark.parametrize("text", ["é – 😀 \u200b", "\u2066\u2069\u200e\x85\u2028\ud800"])
def test_what_is_printable_is_printed(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "x", "--idempotency-key", "k\r\nX-Smuggled: y"],
        ["publish", "x", "--idempotency-key", ""],
        ["publish", "x", "--idempotency-key", "two words"],
        ["publish", "x", "--idempotency-key", "k" * 129],
        ["publish", "x", "--publish-key", f"{KEY}\r\nX-Smuggled: y"],
        ["publish", "x", "--publish-key", "schlüssel"],
        ["bench", "--publish-key", f"{KEY}\r\nX-Smuggled: y"],
        ["doctor", "http://127.0.0.1:1", "--publish-key", f"{KEY}\r\nX-Smuggled: y"],
        ["doctor", "http://u:s3cret@127.0.0.1:99999"],
        ["doctor", "http://u:s3cret\udcff@x"],
        ["publish", "x", "--topic", "t" * 70_000],
        ["publish", "x", "--topic", "\udcff"],
        ["publish", "x", "--to", "\udcff"],
        ["listen", "\udcff"],
        ["listen", "t" * 70_000],
        ["listen", "--client", "\udcff"],
        ["listen", "--last-event-id", "e-1\r\nX-Smuggled: y"],
        *([name, "--url", "http://u:s3cret@x:y"] for name in ("listen", "stats")),
        ["publish", "x", "--url", "http://u:s3cret@x:99999"],
        ["publish", "x", "--url", "http://u:s3cret@x", "--publish-key", KEY],
    ],
    ids=lambda arguments: " ".join(arguments)[:40].encode("ascii", "replace").decode(),
)
def test_what_cannot_be_sent_is_wrong_usage_and_not_repeated(arguments: list[str]) -> None:
    done = sse_app(*arguments, SSE_APP_URL="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert "s3cret" not in done.stderr
    assert "Smuggled" not in done.stderr
    assert len(done.stderr) < 400


@pytest.mark.parametrize("command", [["listen"], ["publish", "x"], ["stats"], ["doctor", "http://x"]], ids=" ".join)
def test_a_proxy_that_cannot_be_used_is_said_in_a_line(command: list[str]) -> None:
    done = sse_app(*command, HTTP_PROXY="socks5://u:s3cret@127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (Exit.USAGE, "", 1)
    assert done.stderr.startswith("sse-app: ")
    assert "s3cret" not in done.stderr
