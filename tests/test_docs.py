"""README and docs are true of the code: every block of a page is run, and every table is compared with its source.

A page is one session: its fenced blocks are run from top to bottom, with one hub at a time on a free port in place of
``localhost:8000``. Every language and every command needs a rule; a block without one fails. The shown output has to
equal the real one, except for what differs each time: epochs and tickets (each bound at its first mention, and the same
from then on), times, generated names, counts of connections.
"""

import ast
import asyncio
import inspect
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import partial
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import httpx
import playwright
import pytest
import yaml  # type: ignore[import-untyped]

from sse_app import (
    Config,
    EventDecoder,
    Hub,
    connections,
    errors,
    events,
    grants,
    notices,
    publication,
    tickets,
    topics,
)
from sse_app.auth.auth_file import AuthFile
from sse_app.auth.claims import SOURCES
from sse_app.auth.credentials import Credentials
from sse_app.bench import Load, cases
from sse_app.cli import commands
from sse_app.client import Client
from sse_app.commands import Exit
from sse_app.config import ENV_PREFIX, Setting
from sse_app.drafts import BATCH_MAX
from sse_app.errors import InvalidClient
from sse_app.joining import LAST_MAX
from sse_app.metrics import Totals, exposition
from sse_app.node import RECENT
from sse_app.payload import JSON_DEPTH
from sse_app.pytest_plugin import HubServer
from sse_app.subscriber import CloseReason
from sse_app.web.endpoints.administration import KICK_USER_PARAMETERS, LIST_PARAMETERS
from sse_app.web.endpoints.batches import BATCH_PARAMETERS
from sse_app.web.endpoints.events import EVENTS_PARAMETERS
from sse_app.web.problems import ANSWERS, OF_THE_SERVER
from tests.support.proxies import LISTENS

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PAGES = [CHECKOUT / name for name in ("README.md", "CHANGELOG.md")] + sorted((CHECKOUT / "docs").glob("*.md"))
PATIENCE = 20.0  # seconds; output that takes longer is missing
NODE = Path(playwright.__file__).parent / "driver" / "node"  # an installed one checks the syntax of JavaScript
SHOWN_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1):8000")
SUMMARY = re.compile(r"published in \d+\.\d s, [\d,]+/s")
CLIENTS = re.compile(r"\bsse-app (listen|publish|stats|connections|kick|revoke|ticket|token|keys|completion)\b")
SHOWN_BROKERS = {"redis://localhost:6379/0": "redis_world", "nats://localhost:4222": "nats_world"}
AUTH_FILE = re.compile(r"# (?!pyproject)\w+\.toml\n")
TEST = re.compile(r"^ *(?:async )?def (test_\w+)\(", re.MULTILINE)
GENERATED = re.compile(r"\b[0-9a-f]{12}(?=-\d)|(?<=\bticket=)[\w-]{22}")  # an epoch before an offset, a ticket
FREE = (
    "time",
    "subscribers",
    "uptime",
    "retry",
    "delivered",
    "connected",
    "heartbeats",
    "expires",
    "expires_in",
    "since",
    "node",
)


@dataclass(frozen=True)
class Block:
    where: str  # file:line
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, also those indented in a list."""
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.MULTILINE | re.DOTALL)
    result = []
    for match in found:
        line = page.read_text().count("\n", 0, match.start()) + 1
        text = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        result.append(Block(f"{page.relative_to(CHECKOUT)}:{line}", match[2], text))
    return result


# Shown and real output


class Likeness:
    """Compares shown with real output. ``generated`` maps each shown epoch or ticket to the real one."""

    def __init__(self) -> None:
        self.generated: dict[str, str] = {}

    def real(self, text: str) -> str:
        """A shown text with the real epochs and tickets in place of the known ones."""
        return GENERATED.sub(lambda match: self.generated.get(match[0], match[0]), text)

    def same(self, shown: Any, real: Any, name: str = "") -> bool:
        if type(shown) is not type(real) and not (isinstance(shown, int | float) and isinstance(real, int | float)):
            return False
        if isinstance(shown, dict):
            return list(shown) == list(real) and all(self.same(shown[key], real[key], key) for key in shown)
        if isinstance(shown, list):
            return len(shown) == len(real) and all(map(self.same, shown, real))
        if name in FREE and None not in (shown, real):
            return True
        if name == "ticket":
            return self.text(f"ticket={shown}", f"ticket={real}")
        if name == "client" and str(shown).startswith("c-"):
            return re.fullmatch(r"c-[0-9a-f]{12}", real) is not None
        return self.text(shown, real) if isinstance(shown, str) else bool(shown == real)

    def text(self, shown: str, real: str) -> bool:
        """Return True when both texts are equal, except for what was generated, and for the form of JSON."""
        if shown[:1] in ("{", "["):
            return self.same(json.loads(shown), json.loads(real))
        if re.fullmatch(r"\d+\.\d+\.\d+", shown):
            return re.fullmatch(r"[\d.]+", real) is not None
        for token, came in zip(GENERATED.findall(shown), GENERATED.findall(real), strict=False):
            self.generated.setdefault(token, came)
        return self.real(shown) == real

    def stream(self, shown: str, real: str) -> bool:
        """Return True when the real stream begins with the blocks shown."""
        ours, theirs = (
            [block for block in text.split("\n\n")[:-1] if block != ":"]  # a heartbeat
            for text in (f"{shown.rstrip()}\n\n", real)
        )
        return len(ours) <= len(theirs) and all(map(self._block, ours, theirs))

    def lines(self, shown: str, real: str) -> bool:
        """Return True when the real lines are, or begin with, the lines shown. Any rate equals any other."""
        ours, theirs = (SUMMARY.sub("published", text).splitlines() for text in (shown, real))
        return len(ours) <= len(theirs) and all(map(self.text, ours, theirs))

    def _block(self, shown: str, real: str) -> bool:
        ours, theirs = ([line.partition(": ")[::2] for line in text.split("\n")] for text in (shown, real))
        names = [name for name, _ in ours] == [name for name, _ in theirs]
        return names and all(self._field(*pair) for pair in zip(ours, theirs, strict=True))

    def _field(self, shown: tuple[str, str], real: tuple[str, str]) -> bool:
        return real[1].isdigit() if shown[0] == "retry" else self.text(shown[1], real[1])

    def head(self, shown: str, real: str) -> bool:
        """Return True when the status and the headers shown are among those of a response."""
        lines = [line.lower() for line in real.replace("\r", "").split("\n")]
        return all(line.lower() in lines for line in shown.strip().split("\n"))


# Processes


class Output:
    """The output of a process, read without blocking for longer than ``PATIENCE``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process, self.text = process, ""
        self._file = process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._file, selectors.EVENT_READ)
        self._bytes = b""

    def until(self, enough: Callable[[str], bool]) -> bool:
        """Read until ``enough`` returns True for the output. Return False when it ended or took too long."""
        deadline = time.monotonic() + PATIENCE
        while not enough(self.text):
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                return False
            chunk = os.read(self._file.fileno(), 65536)
            if not chunk:
                return False
            self._bytes += chunk
            self.text = self._bytes.decode(errors="ignore")
        return True

    def end(self, sign: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self._selector.close()
            self._file.close()


@dataclass
class Stream:
    where: str
    shown: str
    output: Output
    like: Callable[[str, str], bool]


class Session:
    """One page, whose commands a reader runs from top to bottom."""

    def __init__(self, directory: Path, default_server: Callable[[], str]) -> None:
        self._directory = directory
        self._default_server = default_server
        self._address = ""
        self._server: Output | None = None
        self._beside: dict[str, tuple[str, Output]] = {}  # by the shown address: the real address, and the app
        self._streams: list[Stream] = []
        self._likeness = Likeness()
        self._files: dict[str, str] = {}
        self._unused: set[str] = set()
        self._names: dict[str, Any] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {**kept, "SSE_APP_NO_BOOTSTRAP": "1", "PYTHONUNBUFFERED": "1", "PATH": path}

    def follow(self, block: Block) -> None:
        rules: dict[str, Callable[[Block], None]] = {
            "console": self._console,
            "python": self._python,
            "html": self._html,
            "js": self._js,
            "json": self._json,
            "toml": self._toml,
            **dict.fromkeys(LISTENS, self._proxy),
            "yaml": self._yaml,
            "text": self._text,
        }
        assert block.language in rules, f"{block.where}: no rule for a block of {block.language or 'no language'}"
        rules[block.language](block)

    def finish(self) -> None:
        """Assert that everything shown on a stream has arrived, and that every file of the page works."""
        self._end_streams()
        tests = sorted(name for name in self._unused if name.startswith("test_"))
        for name in sorted(self._unused.difference(tests)):
            self._run([sys.executable, "-c", f"import {Path(name).stem}"], name)
        if tests:
            self._run_tests(tests, ", ".join(tests))

    def close(self) -> None:
        for stream in self._streams:
            stream.output.end(signal.SIGTERM)
        self._streams = []
        for _, app in self._beside.values():
            app.end(signal.SIGTERM)
        self._stop_server()

    # Blocks of a language

    def _python(self, block: Block) -> None:
        if match := re.match(r"# (\w+\.py)\n", block.text):
            compile(block.text, block.where, "exec")
            self._files[match[1]] = block.text
            self._unused.add(match[1])
        else:
            with chdir(self._directory):
                asyncio.run(self._execute(block))

    async def _execute(self, block: Block) -> None:
        text = self._real(block.text) if SHOWN_ADDRESS.search(block.text) else block.text
        code = compile(text, block.where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        async with asyncio.timeout(PATIENCE), Hub() as hub:
            self._names["hub"] = hub
            done = eval(code, self._names)
            if inspect.iscoroutine(done):
                await done

    def _json(self, block: Block) -> None:
        json.loads(block.text)

    def _toml(self, block: Block) -> None:
        """Parse the settings of a project, or an ``auth_file``, whose first line is its name."""
        if AUTH_FILE.match(block.text):
            AuthFile.parse(block.text, self._directory)
        else:
            tomllib.loads(block.text)

    def _yaml(self, block: Block) -> None:
        assert yaml.safe_load(block.text), block.where  # test_probes.py runs the probes of these

    def _html(self, block: Block) -> None:
        page = _Scripts()
        page.feed(block.text)
        assert page.scripts, f"{block.where}: a page without a script shows nothing of ours"
        for script in page.scripts:
            self._check_javascript(script, block.where)

    def _js(self, block: Block) -> None:
        self._check_javascript(block.text, block.where)

    def _check_javascript(self, script: str, where: str) -> None:
        file = self._directory / "snippet.mjs"
        file.write_text(script)
        self._run([str(NODE), "--check", str(file)], where)

    def _proxy(self, block: Block) -> None:
        """Pass: tests/test_recipes.py runs all blocks of these languages before real hubs."""

    def _text(self, block: Block) -> None:
        """Check that the files named in a drawing exist."""
        names = re.findall(r"[\w/]+\.py\b", block.text)
        assert names, f"{block.where}: no rule for a text that names no files"
        for name in names:
            assert (CHECKOUT / "sse_app" / name).is_file(), f"{block.where}: there is no {name}"

    # Commands

    def _console(self, block: Block) -> None:
        assert block.text.startswith("$ "), f"{block.where}: a session begins with a command"
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            self._command(command, shown, block.where)

    def _command(self, command: str, shown: str, where: str) -> None:
        where = f"{where}: {command}"
        if CLIENTS.search(command):
            self._client(command, shown, where)
            return
        match shlex.split(command):
            case ["curl", *options]:
                stream = any(re.fullmatch(r"-\w*N\w*", option) for option in options)
                (self._listen if stream else self._ask)(command, shown, where)
            case ["sse-app", "bench", *flags]:
                self._bench(flags, where)
            case ["sse-app", "bench-log", *arguments]:
                commands.commands["bench-log"].make_context("bench-log", arguments)  # parsed, but not run, as bench
            case ["sse-app", "doctor", url, *flags]:
                self._doctor(url, flags, shown, where)
            case ["sse-app", "serve", "--help"]:
                self._run([sys.executable, "-m", "sse_app", "serve", "--help"], where)
            case ["python3", "-m", "sse_app", *flags] | ["sse-app", "serve", *flags]:
                self._serve(flags, shown, where)
            case ["python3", "-m", "uvicorn", *options, app]:
                self._start([sys.executable, "-m", "uvicorn", *options, app, "--port", "0"], where)
                self._unused.discard(f"{app.partition(':')[0]}.py")
            case ["python3", "-m", "gunicorn", "--bind", shown_address, *options, app]:
                self._start_beside(shown_address, ["gunicorn", "--bind", "127.0.0.1:0", *options, app], where)
                self._unused.discard(f"{app.partition(':')[0]}.py")
            case ["python3", "-m", "tests", *arguments]:
                assert find_spec("tests.__main__"), where
                assert all(word == "--lint" or (CHECKOUT / word).is_file() for word in arguments), where
            case ["python3", "-m", "pip", "install", ".", *_]:
                pass
            case ["python3", "-m", "pip", "install", extra] if extra.startswith(".["):
                assert extra[2:-1] in PROJECT["optional-dependencies"], where
            case ["python3", "-m", "pytest", name]:
                self._run_tests([name], where)
                self._unused -= {name, "conftest.py"}
            case ["python3", "-m", "venv" | "http.server" as module, _]:
                assert find_spec(module), where
            case ["python3", name, *arguments] if name.startswith("docs/examples/"):
                example = [sys.executable, str(CHECKOUT / name), *arguments]
                self._compare(shown, self._run(example, where, patience=3 * PATIENCE), where)
            case ["python3", name] if "async for event in client.listen" in self._files[name]:
                self._unused.discard(name)
                self._follow([sys.executable, name], shown, where)
            case ["python3", name]:
                self._unused.discard(name)
                self._compare(shown, self._run([sys.executable, name], where), where)
            case ["export", *_]:
                name = command.removeprefix("export ").partition("=")[0]
                self._environment[name] = self._run(["sh", "-c", f'{command}; printf %s "${name}"'], where)
            case [".", "venv/bin/activate"]:
                pass
            case ["sse-app", "keys" | "token", *_] | ["printf", *_]:
                self._ask(command, shown, where)
            case ["install", *_]:
                self._run(["sh", "-c", command], where)
            case ["ulimit", "-n"]:
                assert self._run(["sh", "-c", command], where).strip()
            case _:
                pytest.fail(f"{where}: no rule for this command")

    def _client(self, command: str, shown: str, where: str) -> None:
        """Run a command that is a client of the hub. One that does not end is stopped with the page."""
        if command.startswith("sse-app listen") and "--count" not in command and "|" not in command:
            self._follow(["sh", "-c", f"exec {command}"], shown, where)
            return
        self._find_hub()
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        refused = shown.startswith("sse-app: ")
        assert (done.returncode == 0) is not refused, f"{where}\n{done.stdout}"
        if shown:
            same = self._likeness.lines(shown, done.stdout) and len(shown.splitlines()) == len(done.stdout.splitlines())
            assert same, f"{where} was shown\n{shown}\ncame\n{done.stdout}"

    def _follow(self, command: list[str], shown: str, where: str) -> None:
        """Start a client that listens until the page ends, and wait until it is connected."""
        self._find_hub()
        self._write_files()
        before = self._connected()
        output = self._open(command, stderr=subprocess.DEVNULL)
        self._streams.append(Stream(where, shown, output, self._likeness.lines))
        deadline = time.monotonic() + PATIENCE
        while self._connected() == before:  # each check is a request, which takes the time between two checks
            assert output.process.poll() is None, where
            assert time.monotonic() < deadline, where

    def _connected(self) -> int:
        """The number of streams so far. The number of open ones would also fall, when a client disconnects."""
        stats = httpx.get(f"http://{self._address}/stats", timeout=PATIENCE).json()
        return int(stats["totals"]["connected"])

    def _bench(self, flags: list[str], where: str) -> None:
        """Parse the command, and do not run it: a load takes minutes, and its figures need a quiet machine."""
        try:
            options = commands.commands["bench"].make_context("bench", list(flags)).params
        except click.ClickException as error:
            pytest.fail(f"{where}: {error.message}")
        for workload in options["workload"].split(","):
            load = Load(workload, rate=options["rate"], payload=options["payload"])
            cases(load, **{name: options[name] for name in ("subscribers", "inflight", "batch")})

    def _doctor(self, url: str, flags: list[str], shown: str, where: str) -> None:
        """Run the doctor on the page's hub, and compare the verdicts. For any other address only parse the command."""
        if not SHOWN_ADDRESS.search(url):
            assert not shown, where
            commands.commands["doctor"].make_context("doctor", [url, *flags])
            return
        real = self._run([sys.executable, "-m", "sse_app", "doctor", self._real(url), *flags], where)
        ours, theirs = (re.findall(r"^(\w[\w ]+?)  +(\w+)", text, re.MULTILINE) for text in (shown, real))
        assert ours == theirs, f"{where} was shown\n{shown}\ncame\n{real}"

    def _serve(self, flags: list[str], shown: str, where: str) -> None:
        command = [sys.executable, "-m", "sse_app", *flags, "--port", "0"]
        if shown.startswith("sse-app: "):
            refused = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=PATIENCE)
            assert refused.returncode in (Exit.USAGE, Exit.UNREACHABLE), where
            assert refused.stderr == shown, where
            return
        output = self._start(command, where)
        if shown:
            assert output.until(lambda text: text.count("\n") >= shown.count("\n")), f"{where}: {output.text}"
            assert output.text.replace(self._address, "127.0.0.1:8000") == shown, where

    def _start(self, command: list[str], where: str) -> Output:
        """Start a server in place of the running one."""
        self._end_streams()
        self._stop_server()
        self._write_files()
        self._server = self._open(command, stderr=subprocess.STDOUT)
        listening = partial(re.search, r"http://[\d.]+:(\d+)\S*[^\0]*\n")
        assert self._server.until(lambda text: listening(text) is not None), f"{where}: {self._server.text}"
        port = listening(self._server.text)
        assert port is not None
        self._move_to(f"127.0.0.1:{port[1]}")
        return self._server

    def _start_beside(self, shown_address: str, module: list[str], where: str) -> None:
        """Start an app without a hub, which publishes to the running one."""
        self._write_files()
        app = self._open([sys.executable, "-m", *module], stderr=subprocess.STDOUT)
        listening = partial(re.search, r"Listening at: http://(\S+) ")
        ready = app.until(lambda text: listening(text) is not None)
        found = listening(app.text)
        self._beside[shown_address] = (found[1] if found else "", app)
        assert ready, f"{where}: {app.text}"

    def _move_to(self, address: str) -> None:
        self._address = address
        self._environment["SSE_APP_URL"] = f"http://{address}"

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.end(signal.SIGINT)
            self._server = None

    def _listen(self, command: str, shown: str, where: str) -> None:
        stream = Stream(
            where,
            shown,
            self._open(["sh", "-c", f"exec {self._real(command)}"], stderr=subprocess.DEVNULL),
            self._as_curl_shows,
        )
        self._streams.append(stream)
        assert stream.output.until(lambda text: "event: welcome\ndata: " in text and text.endswith("\n\n")), where

    def _end_streams(self) -> None:
        while self._streams:
            stream = self._streams[0]
            output = stream.output
            complete = partial(stream.like, stream.shown)
            assert output.until(complete), f"{stream.where} was shown\n{stream.shown}\ncame\n{output.text}"
            self._streams.pop(0).output.end(signal.SIGTERM)

    def _as_curl_shows(self, shown: str, real: str) -> bool:
        """A stream in curl's form, with the response's head before it if the page shows that."""
        if not shown.startswith("HTTP/"):
            return self._likeness.stream(shown, real)
        head, _, body = shown.partition("\n\n")
        real_head, _, real_body = real.partition("\r\n\r\n")
        return self._likeness.head(head, real_head) and self._likeness.stream(body, real_body)

    def _ask(self, command: str, shown: str, where: str) -> None:
        self._compare(shown, self._run(["sh", "-c", self._real(command)], where), where)

    def _compare(self, shown: str, real: str, where: str) -> None:
        assert self._likeness.text(shown.strip(), real.strip()), f"{where} was shown\n{shown}\ncame\n{real}"

    def _find_hub(self) -> None:
        if not self._address:
            self._move_to(self._default_server().removeprefix("http://"))

    def _real(self, text: str) -> str:
        self._find_hub()
        for shown_address, (address, _) in self._beside.items():
            text = text.replace(shown_address, address)
        return SHOWN_ADDRESS.sub(self._address, self._likeness.real(text))

    def _write_files(self) -> None:
        """Write the files of the page that are not there as they are: an app that just starts may be reading one."""
        for name, text in self._files.items():
            file, real = self._directory / name, self._real(text) if SHOWN_ADDRESS.search(text) else text
            if not file.exists() or file.read_text() != real:
                file.write_text(real)

    def _open(self, command: list[str], **options: Any) -> Output:
        return Output(
            subprocess.Popen(
                command, cwd=self._directory, env=self._environment, stdout=subprocess.PIPE, bufsize=0, **options
            )
        )

    def _run_tests(self, names: list[str], where: str) -> None:
        # Pytest needs 4 s of CPU to load its plugins.
        self._run([sys.executable, "-m", "pytest", "-q", *names], where, patience=3 * PATIENCE)

    def _run(self, command: list[str], where: str, *, patience: float = PATIENCE) -> str:
        self._write_files()
        done = subprocess.run(
            command, cwd=self._directory, env=self._environment, capture_output=True, text=True, timeout=patience
        )
        assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"
        return done.stdout


class _Scripts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)


def on_real_brokers(block: Block, request: pytest.FixtureRequest) -> Block:
    """The text with URLs of running servers in place of those of Redis and NATS."""
    text = block.text
    for shown, world in SHOWN_BROKERS.items():
        if shown in text:
            text = text.replace(shown, request.getfixturevalue(world).url)
    return replace(block, text=text)


@pytest.mark.timeout(120)  # seconds; a page may have many commands
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_happens(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = [on_real_brokers(block, request) for block in blocks(page)]
    if any("curl" in block.text for block in found if block.language == "console") and not shutil.which("curl"):
        pytest.skip("curl is not installed")

    def default_server() -> str:
        server: HubServer = request.getfixturevalue("sse_server")
        return server.url

    config = '[tool.pytest.ini_options]\nanyio_mode = "auto"\n'
    settings = (b.text for b in found if b.language == "toml" and not AUTH_FILE.match(b.text))
    (tmp_path / "pyproject.toml").write_text(next(settings, config))
    session = Session(tmp_path, default_server)
    try:
        for block in found:
            session.follow(block)
        session.finish()
    finally:
        session.close()


def test_a_block_that_no_rule_covers_fails(tmp_path: Path) -> None:
    session = Session(tmp_path, lambda: "http://127.0.0.1:9")
    with pytest.raises(AssertionError, match="no rule for a block of perl"):
        session.follow(Block("x.md:1", "perl", "1;"))
    with pytest.raises(AssertionError, match="no rule for a block of no language"):
        session.follow(Block("x.md:1", "", "x"))
    with pytest.raises(pytest.fail.Exception, match="no rule for this command"):
        session.follow(Block("x.md:1", "console", "$ wget localhost:8000\n"))


def test_likeness_tells_what_differs_each_time_from_what_is_wrong() -> None:
    like = Likeness()
    shown = '{"id":"00000000000a-1","client":"c-00000000000a","time":"x","durable":"none"}'
    assert like.text(shown, '{"id":"ffffffffffff-1","client":"c-0123456789ab","time":"y","durable":"none"}')
    assert like.real("00000000000a-7") == "ffffffffffff-7"
    assert not like.text(shown, '{"id":"eeeeeeeeeeee-1","client":"c-0123456789ab","time":"y","durable":"none"}')
    assert not like.text(shown, '{"id":"ffffffffffff-2","client":"c-0123456789ab","time":"y","durable":"none"}')
    assert not like.text(shown, '{"id":"ffffffffffff-1","client":"c-0123456789ab","durable":"none"}')
    ticket = '{"ticket":"shown-0123456789_abcde","url":"/events?ticket=shown-0123456789_abcde","expires":1.0}'
    assert like.text(ticket, ticket.replace("shown", "ticke").replace("1.0", "2.5"))
    assert like.real("/events?ticket=shown-0123456789_abcde") == "/events?ticket=ticke-0123456789_abcde"
    assert not like.text(ticket, ticket.replace("shown", "other"))
    assert not like.text(ticket, ticket.replace("shown", "ticke").replace("1.0", "null"))
    assert like.lines("3 published in 0.0 s, 1,210/s\n00000000000a-1", "3 published in 9.9 s, 7/s\nffffffffffff-1\nx")
    assert not like.lines("3 published in 0.0 s, 1,210/s", "4 published in 0.0 s, 1,210/s")
    assert not like.lines("one\ntwo", "one")
    block = "id: 00000000000a-1\ndata: hello\n"
    assert like.stream(block, "id: ffffffffffff-1\ndata: hello\n\n:\n\n")
    assert not like.stream(block, "id: ffffffffffff-1\ndata: hello\n")  # not finished
    assert not like.stream(block, "id: ffffffffffff-1\nevent: x\ndata: hello\n\n")


def test_examples_are_run_or_the_files_that_are_shown() -> None:
    shown = {block.text for block in blocks(CHECKOUT / "docs" / "browser.md")}
    commands = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("$ python3 ")]
    for file in (CHECKOUT / "docs" / "examples").iterdir():
        run = any(f" docs/examples/{file.name}" in line for line in commands)
        assert run or file.read_text() in shown, file.name


# Links


def prose(page: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    places = (CHECKOUT, CHECKOUT / "sse_app", page.parent)
    shown = "\n".join(block.text for block in blocks(page))
    for name in re.findall(r"`([\w./-]+\.(?:py|md|toml|html|js))`", prose(page)):
        there = any((place / name).exists() for place in places)
        made = f"# {name}" in shown or f"Save as `{name}`" in prose(page)
        assert there or made, f"{page.name}: {name}"


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"({page.relative_to(CHECKOUT)})" in PAGES[0].read_text()


# Tables

API = CHECKOUT / "docs" / "http-api.md"


def table(page: Path, *columns: str) -> list[list[str]]:
    """The rows of all tables with exactly these columns, without backticks."""
    head = re.escape(f"| {' | '.join(columns)} |\n") + r"[|-]+\n((?:\|.*\n)+)"
    found = re.findall(head, page.read_text())
    assert found, f"{page.name} has no table {columns}"
    lines = "".join(found).splitlines()
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")] for line in lines]


def section(page: Path, heading: str) -> str:
    match = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def quantity(setting: Setting, value: float) -> str:
    """A number with the largest unit that it is a multiple of."""
    units: dict[str, float] = {}
    if "duration" in setting.expects:
        units = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
    elif "size" in setting.expects:
        units = {"GiB": 1024**3, "MiB": 1024**2, "KiB": 1024}
    for unit, size in units.items():
        if value >= size * (2 if unit == "d" else 1) and value % size == 0:
            return f"{value / size:,.0f}{unit}"
    unit = "ms" if 0 < value < 1 and "s" in units else ""
    return f"{value * (1000 if unit else 1):,.15g}{unit}"


def settings_table() -> str:
    lines = ["| flag | variable | default | range | meaning |", "|---|---|---|---|---|"]
    defaults: dict[str, Any] = {name: item.default for name, item in Config.__dataclass_fields__.items()}
    for name, setting in Config.settings().items():
        default, range = defaults[name], setting.expects
        if setting.low > float("-inf"):
            range = f"{quantity(setting, setting.low)} to {quantity(setting, setting.high)}"
            shown = "" if default is None else quantity(setting, default)
        else:
            shown = (
                ",".join(default) if isinstance(default, tuple) else str(default).lower() if default is not None else ""
            )
        if name == "port":
            range, shown = (text.replace(",", "") for text in (range, shown))
        flag = f"--{name.replace('_', '-')}"
        shown = f"`{shown}`" if shown else "none"
        lines.append(f"| `{flag}` | `{ENV_PREFIX}{name.upper()}` | {shown} | {range} | {setting.meaning} |")
    return "\n".join(lines)


def test_settings_are_those_of_config() -> None:
    assert section(API, "Settings").strip().partition("\n\n")[2] == settings_table()


def test_settings_are_shown_as_they_can_be_given() -> None:
    defaults: dict[str, Any] = {name: item.default for name, item in Config.__dataclass_fields__.items()}
    for name, setting in Config.settings().items():
        if setting.low == float("-inf"):
            continue
        values = [value for value in (setting.low, setting.high, defaults[name]) if value is not None]
        for value in values:
            assert setting.read(quantity(setting, value).replace(",", "")) == value, name


def test_settings_of_a_hub_are_named_in_full() -> None:
    names = set(re.findall(r"`(\w+)`", section(CHECKOUT / "docs" / "embedding.md", "Settings")))
    assert set(Config.settings()) <= names


def test_errors_are_those_of_the_table_in_app() -> None:
    documented = {(int(row[0]), row[1]) for row in table(API, "status", "code", "when")}
    ours = set(ANSWERS.values()) | {(refusal.status, refusal.code) for refusal in OF_THE_SERVER}
    assert documented == ours | {(404, "not_found"), (405, "method_not_allowed"), (500, "internal_error")}


def test_metrics_are_those_of_the_exposition() -> None:
    gauges = Hub().node.gauges() | Credentials(Config(token_secret="s" * 32)).gauges()
    text = exposition(Totals(), gauges).decode()
    exposed = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert [tuple(row[:2]) for row in table(API, "metric", "type", "meaning")] == exposed
    for reason in CloseReason:
        assert f"`{reason}`" in section(API, "GET /metrics")


def test_gap_reasons_are_all_told() -> None:
    documented = [row[0] for row in table(API, "reason", "what happened", "what follows")]
    assert sorted(documented) == sorted(notices.GapReason)


async def test_the_fields_of_stats_and_notices_are_documented(sse_hub: Hub) -> None:
    named = {name for row in table(API, "field", "meaning") for name in row[0].split(", ")}
    stats = await sse_hub.stats()
    position = publication.Position("e", 1)
    welcome = notices.welcome(
        notices.Welcome(
            id=position,
            client="c",
            subscribers=1,
            topics=(),
            recovered=False,
            last=None,
            top=position,
            complete=True,
            retry=1,
            heartbeat=1.0,
            user="42",
            expires_in=1,
        )
    )
    gap = notices.gap(notices.GapReason.EPOCH, None, start=position, oldest=position, top=position)
    sent = [json.loads(event.data) for event in EventDecoder().feed(welcome + gap)]
    assert named == {
        *stats,
        "versions",
        *sent[0],
        *sent[1],
        "id",
        "subscribers",
        "durable",
        *grants.OPEN.describe(),
        *tickets.Ticket._fields,
        *connections.Kicked._fields,
        "url",
    }


def test_parameters_are_those_of_the_endpoints() -> None:
    rows = [name for row in table(API, "parameter", "meaning") for name in re.findall(r"\b[A-Za-z_]+\b", row[0])]
    for name in (*EVENTS_PARAMETERS, *BATCH_PARAMETERS):
        assert name in rows


def test_paths_are_those_of_the_app() -> None:
    routes: list[Any] = list(Hub().app.routes)
    documented = {path for row in table(API, "path", "method", "answer") for path in row[0].split(" and ")}
    assert documented == {route.path for route in routes}


def test_reserved_types_and_times_are_those_of_the_code() -> None:
    text = API.read_text()
    sentence = re.search(r"^(`welcome`.*) are reserved types, and all that begin with `(.)`", text, re.MULTILINE)
    assert sentence
    assert sorted(re.findall("`([a-z]+)`", sentence[1])) == sorted(events.RESERVED_TYPES)
    assert sentence[2] == events.RESERVED_PREFIX
    low, high = int(Config().retry_min * 1000), int(Config().retry_max * 1000)
    assert f"random from {low:,} to {high:,}" in text
    assert f"from {2 * low:,} to {2 * high:,}" in text
    assert f"up to {notices.LAST_DATA_MAX:,} characters" in text
    assert f"the newest {RECENT}, oldest first" in text


def test_limits_are_those_of_the_code() -> None:
    limits = {row[0]: int(re.match(r"[\d,]+", row[1])[0].replace(",", "")) for row in table(API, "what", "limit")}  # type: ignore[index]
    assert limits == {
        "topic or filter": topics.TOPIC_MAX,
        "topics of a publication": topics.TOPICS_PER_PUBLICATION,
        "topic filters of a subscriber": topics.TOPICS_PER_FILTER,
        "event type": events.TYPE_MAX,
        "client name": 64,
        "names in to or exclude": 1_000,
        "nesting of JSON": JSON_DEPTH,
        "last": LAST_MAX,
        "Idempotency-Key": 128,
        "events of a batch": BATCH_MAX,
    }
    publication.check_recipients([publication.check_client("x" * 64), *map(str, range(999))])
    with pytest.raises(InvalidClient):
        publication.check_client("x" * 65)
    with pytest.raises(InvalidClient):
        publication.check_recipients(map(str, range(1_001)))


def test_the_fields_of_a_connection_are_documented() -> None:
    rows = table(API, "field of a connection", "meaning")
    named = [name for row in rows for name in row[0].split(", ")]
    assert named == [name for name in connections.ConnectedStream.__struct_fields__ if name != "topics_cut"]


def test_the_parameters_for_administrators_are_those_of_the_endpoints() -> None:
    listed, kicked = (section(API, f"{method} /connections") for method in ("GET", "DELETE"))
    assert re.findall(r"^\| `(\w+)` \|", listed.partition("```")[0], re.MULTILINE) == list(LIST_PARAMETERS)
    assert re.findall(r"^\| `(\w+)` \|", kicked.partition("```")[0], re.MULTILINE) == list(KICK_USER_PARAMETERS)


# The client and the commands

CLIENT, CLI, AUTH = (CHECKOUT / "docs" / f"{name}.md" for name in ("client", "cli", "auth"))


def test_arguments_attributes_and_errors_of_the_client_are_those_of_the_code() -> None:
    arguments = {name for row in table(CLIENT, "argument", "meaning") for name in row[0].split(", ")}
    parameters = inspect.signature(Client.listen).parameters
    assert arguments == {"*topics", *parameters} - {"self", "topics"}
    stream = Client("http://localhost").listen()
    attributes = {row[0] for row in table(CLIENT, "attribute of the stream", "meaning")}
    assert attributes == {name for name in vars(stream) if not name.startswith("_")}
    rows = table(CLIENT, "error", "when", "carries")
    assert {row[0] for row in rows} == {kind.__name__ for kind in errors.ClientError.__subclasses__()}


@pytest.mark.parametrize("name", ["listen", "publish", "stats", "connections", "kick", "revoke", "ticket"])
def test_the_options_of_a_command_are_those_it_has(name: str) -> None:
    assert _documented_options(name) == _options(commands.commands[name])


def test_the_options_of_a_grant_are_those_of_keys_and_of_a_token() -> None:
    keys = commands.commands["keys"]
    assert isinstance(keys, click.Group)
    of_a_grant = _documented_options("keys")[1:]
    assert ["--file", *of_a_grant] == _options(keys.commands["add"])
    first, *rest = _documented_options("token")
    assert [first, *of_a_grant, *rest] == _options(commands.commands["token"])


def _documented_options(name: str) -> list[str]:
    return re.findall(r"^\| `(--[\w-]+)` \|", section(CLI, f"sse-app {name}"), re.MULTILINE)


def _options(command: click.Command) -> list[str]:
    """The options of a command; of one that is on by default that which turns it off."""
    options = [option for option in command.params if isinstance(option, click.Option)]
    return [(option.secondary_opts if option.default is True else option.opts)[-1] for option in options]


def test_the_exit_statuses_are_those_of_the_commands() -> None:
    assert [int(row[0]) for row in table(CLI, "status", "meaning")] == list(Exit)


async def test_the_openapi_document_has_the_paths(sse_client: httpx.AsyncClient) -> None:
    document = (await sse_client.get("/openapi.json")).json()
    assert {"/events", "/broadcast"} <= set(document["paths"])


def test_arguments_claims_and_reasons_are_those_of_the_code() -> None:
    arguments = {name for row in table(AUTH, "argument", "meaning") for name in row[0].split(", ")}
    assert arguments == set(inspect.signature(grants.Grant.of).parameters)
    rows = table(AUTH, "claim", "what it grants")
    assert [row[0].split(",")[0] for row in rows[:3]] == list(SOURCES)
    assert set(re.findall(r"\w+", rows[0][1])) >= arguments - {"user", "expires_in"}
    reasons = [row[0] for row in table(AUTH, "reason", "what follows for EventSource")]
    assert set(reasons) == set(CloseReason) - {CloseReason.GONE, CloseReason.ERROR, CloseReason.DRAIN}


def test_the_tests_of_each_threat_exist() -> None:
    there = {name for file in (CHECKOUT / "tests").rglob("*.py") for name in TEST.findall(file.read_text())}
    rows = table(CHECKOUT / "docs" / "security.md", "attack", "what happens", "tests")
    named = {attack: set(tests.split(", ")) for attack, _, tests in rows}
    assert len(named) == len(rows)
    assert {attack: tests - there for attack, tests in named.items() if tests - there} == {}


def test_the_changelog_has_its_form() -> None:
    text = (CHECKOUT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == "[Unreleased]"
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
