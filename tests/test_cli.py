import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from sse_app import __version__, cli
from sse_app.config import Config

PATIENCE = 30.0  # seconds; a process that takes longer to end or to print fails its test
KEY = "s3cret-0123456789"
ASK_ONCE = "timeout:1 attempts:1"  # resolv.conf(5): else name servers that do not answer may take longer than PATIENCE
COMMAND = (sys.executable, "-c", "from sse_app.cli import main; main()")
MODULE = (sys.executable, "-m", "sse_app")

get = partial(httpx.get, timeout=PATIENCE)
post = partial(httpx.post, timeout=PATIENCE)
subscribe = partial(httpx.stream, timeout=PATIENCE)


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")}
    return kept | {"SSE_APP_NO_BOOTSTRAP": "1", "PYTHONWARNINGS": "error"} | variables


def run(*arguments: str, command: Sequence[str] = COMMAND, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=PATIENCE
    )


def in_process(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@contextmanager
def serving(
    *arguments: str, command: Sequence[str] = COMMAND, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running server, and its first lines: up to the one on the log, or on how to broadcast."""
    last = "curl -d" if "--broker" in arguments else "log is in memory"
    process = subprocess.Popen(
        [*command, *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if last in line:
                    break
            yield process, lines
        finally:
            process.kill()


def url_in(lines: list[str]) -> str:
    match = re.search(r"http://\S+/", lines[0])
    assert match, lines
    return match[0]


# Help and version


def test_the_help_names_every_setting_with_its_flag_variable_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("serve", "--help") == 0
    text = unwrapped(capsys.readouterr().out)
    for name, setting in Config.settings().items():
        assert f"--{name.replace('_', '-')}" in text
        assert f"[SSE_APP_{name.upper()}]" in text
        assert unwrapped(setting.meaning) in text
        assert unwrapped(setting.range[1:]) in text


def unwrapped(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_names_the_commands(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert in_process(flag) == 0
    assert " serve " in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_a_help_text_needs_no_server() -> None:
    check = "import sys; sys.argv[1:] = ['serve', '--help']\nfrom sse_app.cli import main\n"
    check += "try: main()\nexcept SystemExit: sys.exit(len({'uvicorn', 'starlette'} & set(sys.modules)))"
    assert run(command=(sys.executable, "-c", check)).returncode == 0


# What stops the start


@pytest.mark.parametrize(
    ("arguments", "variables", "names"),
    [
        (["--port", "x"], {}, "port is a whole number from 0 to 65,535"),
        (["serve", "--body-max", "9" * 400], {}, "body_max is a size"),
        ([], {"SSE_APP_PORT": "80.5"}, "port is a whole number"),
        ([], {"SSE_APP_PROT": "80"}, "SSE_APP_PROT is not a setting"),
        (["--workers", "2"], {}, "workers is 1 with broker memory://"),
        (["--host", "0.0.0.0", "--port", "0"], {}, "host beyond loopback needs a publish_key"),
        (["--broker", "nosuch://"], {}, "broker is a URL"),
        (["--broker", "http://["], {}, "broker is a URL"),
        (["--publish-key", "s3cret"], {}, "publish_key is 16 to 256"),
        (["--port", "0", "--host", "a" * 70], {"SSE_APP_PUBLISH_KEY": KEY}, "host, port: cannot listen on"),
        (["--port", "0", "--host", ".."], {"SSE_APP_PUBLISH_KEY": KEY}, "host, port: cannot listen on"),
        (
            ["--port", "0", "--host", "host.invalid"],
            {"SSE_APP_PUBLISH_KEY": KEY, "RES_OPTIONS": ASK_ONCE},
            "host, port: cannot listen on",
        ),
    ],
)
def test_a_bad_value_ends_the_start_with_one_line_and_status_2(
    arguments: list[str], variables: dict[str, str], names: str
) -> None:
    done = run(*arguments, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sse-app: {names}")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr


def test_an_unknown_flag_ends_the_start_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("--prot", "8000") == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("listen", option) for option in ("--last", "--count", "--retry-for")),
        *(("publish", option) for option in ("--inflight", "--retry-for")),
        ("stats", "--interval"),
        *(
            ("bench", f"--{name}")
            for name in ("repeat", "subscribers", "duration", "rate", "inflight", "batch", "behind", "payload", "slow")
        ),
        *(("bench-log", option) for option in ("--repeat", "--seconds", "--payload")),
        ("doctor", "--idle"),
    ],
)
@pytest.mark.parametrize("text", ["１", "1_0", "+1", " 1", "1e0"], ids=ascii)
def test_an_option_that_is_a_number_is_written_in_plain_digits(
    capsys: pytest.CaptureFixture[str], command: str, option: str, text: str
) -> None:
    assert in_process(command, option, text, "x") == 2
    assert f"'{option}': {text!r} is not a number in plain digits" in capsys.readouterr().err


def test_a_port_in_use_ends_the_start_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sse-app: host, port: cannot listen on 127.0.0.1 port {port}: ")
    assert done.stderr.count("\n") == 1


# Output that cannot be written


def redirected(redirect: str) -> tuple[str, ...]:
    """Run our command with a redirection of the shell."""
    return ("sh", "-c", f'exec "$@" {redirect}', "sh", *COMMAND)


def listening_port(process: subprocess.Popen[str]) -> int:
    """The port where a process listens, asked of the kernel: the process cannot print it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        held = set[str]()
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                held.add(os.readlink(entry))
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:
                return int(fields[1].partition(":")[2], 16)
    raise AssertionError(f"it does not listen: {process.poll()}")


@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]
)
@pytest.mark.parametrize("access_log", ["--access-log", "--no-access-log"])
def test_a_server_that_cannot_say_anything_serves(redirect: str, access_log: str) -> None:
    with subprocess.Popen(
        [*redirected(redirect), "--port", "0", access_log],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = f"http://127.0.0.1:{listening_port(process)}/"
            assert get(f"{url}healthz").status_code == 200
            assert get(f"{url}nothing").status_code == 404
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in out + err
    assert "listening on" in out or redirect.startswith(">")


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["completion", "bash"]])
def test_what_cannot_be_written_is_one_line_and_status_5(arguments: list[str], redirect: str) -> None:
    done = run(*arguments, command=redirected(redirect))
    assert (done.returncode, done.stderr.count("\n")) == (5, 1), done.stderr
    assert done.stderr.startswith("sse-app: the output cannot be written: ")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_mistake_that_cannot_be_told_has_its_status_all_the_same(redirect: str) -> None:
    done = run("--port", "x", command=redirected(redirect))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_reader_that_is_gone_is_no_failure() -> None:
    done = run(command=("sh", "-c", '{ "$@"; echo $? >&2; } | :', "sh", *COMMAND, "completion", "bash"))
    assert done.stderr == "0\n"


# A running server


@pytest.mark.parametrize("command", [COMMAND, MODULE], ids=["sse-app", "python -m sse_app"])
def test_a_started_server_tells_its_links_and_the_two_curl_commands_and_they_work(command: Sequence[str]) -> None:
    with serving("--port", "0", command=command) as (process, lines):
        url = url_in(lines)
        commands = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in lines[1:4]}
        assert commands["the"].split() == ["console", url]
        assert shlex.split(commands["subscribe"]) == ["curl", "-N", f"{url}events"]
        assert shlex.split(commands["broadcast"]) == ["curl", "-d", "hello", f"{url}broadcast"]
        with subscribe("GET", f"{url}events") as stream:
            received = stream.iter_raw()
            assert b"event: welcome" in next(received)
            form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d sends
            assert post(f"{url}broadcast", content="hello", headers=form).status_code == 200
            assert next(received).endswith(b"data: hello\n\n")
        assert get(url).status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_streams_with_bye_and_then_the_process(sign: signal.Signals) -> None:
    with serving("--port", "0", "--drain", "500ms") as (process, lines):
        with subscribe("GET", f"{url_in(lines)}events") as stream:
            received = stream.iter_raw()
            next(received)
            process.send_signal(sign)
            rest = b"".join(received)
        _, err = process.communicate(timeout=PATIENCE)
    assert b"event: bye\n" in rest
    assert (process.returncode, err) == (-sign, "")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_under_nohup_goes_on_when_its_terminal_is_closed(workers: int, tmp_path: Path) -> None:
    flags = ["--port", "0", "--workers", str(workers), "--broker", f"sqlite:///{tmp_path}/hub.db"]
    with serving(*flags, command=("nohup", *COMMAND)) as (process, lines):
        ignored = re.search(r"SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
        assert ignored is not None
        assert int(ignored[1], 16) & 1 << signal.SIGHUP - 1
        process.send_signal(signal.SIGHUP)
        assert get(f"{url_in(lines)}readyz").status_code == 200
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_publish_key_is_needed_and_nowhere_said() -> None:
    with serving("--port", "0", "--access-log", SSE_APP_PUBLISH_KEY=KEY) as (process, lines):
        url = url_in(lines)
        assert any('-H "Authorization: Bearer $SSE_APP_PUBLISH_KEY"' in line for line in lines)
        for given, status in ((KEY, 200), (KEY + "x", 401)):
            answer = post(f"{url}broadcast", content="x", headers={"Authorization": f"Bearer {given}"})
            assert (answer.status_code, KEY in answer.text) == (status, False)
        output = get(f"{url}metrics").text + get(f"{url}stats").text
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert "POST /broadcast" in out + err
    assert KEY not in "".join(lines) + out + err + output


def test_the_log_shows_no_query_and_one_line_for_many_that_are_no_requests() -> None:
    with serving("--port", "0", "--access-log") as (process, lines):
        url = httpx.URL(url_in(lines))
        assert get(f"{url}stats?ticket=s3cret").status_code == 200
        for _ in range(5):
            with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
                connection.sendall(b"GET /s3cret HTTP/9.9\r\n\r\n")
                while connection.recv(1000):
                    pass
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert '"GET /stats?... HTTP/1.1" 200' in out
    assert "s3cret" not in out + err
    refusals = [line for line in err.splitlines() if "nvalid" in line or "refused" in line]
    assert refusals[0].startswith(f"refused a request from {url.host}:")
    assert len(refusals) < 5


def test_the_settings_of_the_variables_are_in_force() -> None:
    variables = {
        "PORT": "0",
        "BODY_MAX": "3",
        "ALLOWED_HOSTS": "hub.example",
        "HEAD_MAX": "1KiB",
        "MAX_SUBSCRIBERS": "1",
    }
    with serving(**{f"SSE_APP_{name}": value for name, value in variables.items()}) as (_, lines):
        url = url_in(lines)
        assert post(f"{url}broadcast", content="four").status_code == 413
        assert get(f"{url}stats", headers={"Host": "hub.example"}).status_code == 200
        assert get(f"{url}stats", headers={"Host": "other.example"}).status_code == 421
        assert get(f"{url}healthz", headers={"X": "x" * 1024}).status_code == 431
        with subscribe("GET", f"{url}events"):
            assert get(f"{url}events").status_code == 503


def test_a_head_that_does_not_come_is_waited_for_as_long_as_the_setting_says() -> None:
    with serving("--port", "0", "--head-deadline", "100ms") as (_, lines):
        url = httpx.URL(url_in(lines))
        with socket.create_connection((url.host, url.port), timeout=PATIENCE) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("host", [("--host", "127.0.0.1", "--host", "::1"), ("--host", "::", "--allow-open-publish")])
def test_a_server_listens_on_several_addresses_and_tells_them_all(host: tuple[str, ...]) -> None:
    with serving(*host, "--port", "0") as (_, lines):
        (port,) = {httpx.URL(url).port for url in re.findall(r"http://\S+/", lines[0])}
        assert lines[0].count("http://") == 2
        for address in ("127.0.0.1", "[::1]"):
            assert get(f"http://{address}:{port}/healthz").status_code == 200


def test_a_public_server_warns_that_anyone_may_publish() -> None:
    with serving("--host", "0.0.0.0", "--port", "0", "--allow-open-publish") as (process, lines):
        assert "http://127.0.0.1:" in lines[1]
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert "Anyone who reaches this address may publish" in err
