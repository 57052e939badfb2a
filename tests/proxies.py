"""Real proxies before a hub, each with a configuration of its test: nginx, Caddy, HAProxy.

Each is a context manager: configuration in, URL out. It listens on a free port of 127.0.0.1, as plain HTTP.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sse_app.bench.peers import started
from tests.peers import reserved_port

# Bodies stay in memory: workers may not be allowed into the directory.
NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{}}
http {{
  access_log off;
  client_body_buffer_size 1m;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  {http}
  server {{
    listen 127.0.0.1:{port} reuseport;
    {server}
  }}
}}
"""

CADDY = """\
{{
  admin off
  auto_https off
  log {{
    level ERROR
  }}
}}
http://:{port} {{ # for any Host
  bind 127.0.0.1
{site}
}}
"""

HAPROXY = """\
defaults
  mode http
  timeout connect 20s
  timeout client 60s
  timeout server 60s
frontend here
  bind 127.0.0.1:{port}
{frontend}
{rest}
"""


@contextmanager
def nginx(server: str, *, http: str = "") -> Iterator[str]:
    """An nginx with these directives in its ``server`` and ``http`` blocks."""
    command = needed("nginx", "nginx")
    with _directory() as directory, reserved_port() as port:
        file = directory / "nginx.conf"
        file.write_text(NGINX.format(directory=directory, port=port, server=server, http=http))
        with started((command, "-e", "stderr", "-c", str(file)), _url(port)):
            yield _url(port)


@contextmanager
def caddy(site: str) -> Iterator[str]:
    """A Caddy with these lines in its site block."""
    command = needed("caddy", "caddy")
    with _directory() as directory, reserved_port() as port:
        file = directory / "Caddyfile"
        file.write_text(CADDY.format(port=port, site=site))
        homes = [f"{name}={directory}" for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")]
        run = (command, "run", "--adapter", "caddyfile", "--config", str(file))
        with started(("env", *homes, *run), _url(port)):
            yield _url(port)


@contextmanager
def haproxy(frontend: str, *, rest: str = "") -> Iterator[str]:
    """An HAProxy with these lines in its frontend; ``rest`` are whole sections, such as its backends."""
    command = needed("haproxy", "haproxy")
    with _directory() as directory, reserved_port() as port:
        file = directory / "haproxy.cfg"
        file.write_text(HAPROXY.format(port=port, frontend=frontend, rest=rest))
        with started((command, "-db", "-f", str(file)), _url(port)):
            yield _url(port)


def needed(command: str, package: str) -> str:
    """Where a command is; a loud skip without it, and a failure in CI."""
    found = shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"No {command} here: what needs it is NOT TESTED. On Debian: apt-get install {package}")
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sse-app-tests-") as name:
        yield Path(name)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
