"""The servers that can be measured: our own over each log, the naive design, nginx with nchan, and any at a URL.

They are part of the package because `sse-app bench --against naive` (or `nchan`) is a command for users: figures of a
server mean little without those of another one, measured in the same minute on the same machine.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from sse_app.bench.logs import LOGS, program, temporary
from sse_app.bench.process import listener, separate_cores
from sse_app.bench.target import resolve
from sse_app.errors import BenchFailed, BenchRefused

OURS = "sse-app"
START_SECONDS = 20.0
STOP_SECONDS = 20.0  # the server's drain takes 10 s by default

SERVE = (sys.executable, "-u", "-m", "sse_app", "serve", "--port", "0")
NAIVE = (sys.executable, "-u", "-m", "uvicorn", "--factory", "sse_app.bench.naive:create_app", "--port", "0")
NAIVE_OPTIONS = ("--no-access-log", "--backlog", "4096")

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")  # where Debian has it
NCHAN_MISSING = (
    "nchan: there is no nginx with the nchan module here; Debian has it: apt install nginx-core libnginx-mod-nchan"
)
# Bodies stay in memory: nginx's workers may not be allowed into the directory.
NCHAN_CONFIG = """\
load_module {module};
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 20000; multi_accept on; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  client_max_body_size 1m;
  client_body_buffer_size 1m;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  nchan_shared_memory_size 512M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /broadcast {{
      nchan_publisher http;
      nchan_channel_id main;
      nchan_message_buffer_length 1000;
      nchan_message_timeout 1m;
    }}
    location = /events {{
      nchan_subscriber eventsource;
      nchan_channel_id main;
      nchan_subscriber_first_message newest;
    }}
  }}
}}
"""

_ADDRESS = re.compile(rb"http://127\.0\.0\.1:\d+(?=[/\s])")


class Server(NamedTuple):
    """A running server. Without a pid its CPU time and memory are not known."""

    url: str
    pid: int | None


def check_server(name: str) -> None:
    """Raise BenchRefused for a server that cannot be measured: nchan without its module, a log without its server, a
    URL of another machine.
    """
    if name == "nchan":
        _nginx()
    elif name in ("redis", "nats"):
        program(name)
    elif name not in (OURS, "sqlite", "naive"):
        if "://" not in name:
            raise BenchRefused(f"{name}: servers are {OURS}, {', '.join(LOGS)}, naive, nchan and URLs")
        resolve(name)


@contextlib.contextmanager
def serving(name: str, flags: Sequence[str] = ()) -> Iterator[Server]:
    """Start a server by its name on other cores than the load's, and stop it after the block. A server at a URL is
    neither started nor stopped.

    name: `sse-app`; `sqlite`, `redis` or `nats` for our own server over such a log, which is empty; `naive`, `nchan`,
        or a URL
    flags: more flags for our own server. Blocks while the server starts and stops. Raises `BenchFailed` with the end of
    its output when it does not start.
    """
    with contextlib.ExitStack() as stack:
        leave = stack.enter_context(separate_cores())
        match name:
            case "sse-app":
                server = stack.enter_context(started((*SERVE, *flags)))
            case "sqlite" | "redis" | "nats":
                url = stack.enter_context(_log(name))
                server = stack.enter_context(started((*SERVE, *flags, "--broker", url)))
            case "naive":
                server = stack.enter_context(started((*NAIVE, *NAIVE_OPTIONS)))
            case "nchan":
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sse-app-bench-")))
                port = _free_port()
                command = nchan_command(directory, port)
                server = stack.enter_context(started(command, f"http://127.0.0.1:{port}"))
            case _:
                server = Server(name, listener(resolve(name).port))
        leave()
        yield server


@contextlib.contextmanager
def _log(kind: str) -> Iterator[str]:
    """Yield the URL of a log that is empty, and gone after the block, as is the server that it needs."""
    with contextlib.ExitStack() as stack:
        directory, port = stack.enter_context(tempfile.TemporaryDirectory(prefix="sse-app-bench-")), _free_port()
        log = temporary(kind, Path(directory), port)
        if log.command:
            stack.enter_context(started(log.command, f"http://127.0.0.1:{port}"))
        yield log.url


@contextlib.contextmanager
def started(command: Sequence[str], url: str | None = None) -> Iterator[Server]:
    """Run a server until the end of the block, then stop it with SIGTERM.

    Within 20 s it must listen at `url`, or else print its address (`http://127.0.0.1:PORT`).
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield Server(_address(process, log.fileno(), url), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: int, url: str | None) -> str:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        ended = process.poll() is not None  # asked before its output is read, so that none is overlooked
        if url and not ended and _listens(url):
            return url
        if not url and (found := _ADDRESS.search(os.pread(log, 1 << 20, 0))):
            return found[0].decode()
        if ended:
            break
        time.sleep(0.02)
    output = os.pread(log, 1 << 20, 0).decode(errors="replace").strip()[-2000:]
    raise BenchFailed(f"the server did not start:\n{output}")


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 80)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def nchan_command(directory: Path, port: int) -> tuple[str, ...]:
    """Write nginx's configuration into `directory`, and return the command that starts it in the foreground."""
    file = directory / "nginx.conf"
    file.write_text(NCHAN_CONFIG.format(module=NCHAN_MODULE, directory=directory, port=port))
    return (_nginx(), "-e", "stderr", "-c", str(file))


def _nginx() -> str:
    nginx = shutil.which(
        "nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    )  # which is not on every user's PATH
    if not nginx or not NCHAN_MODULE.exists():
        raise BenchRefused(NCHAN_MISSING)
    return nginx
