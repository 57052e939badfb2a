"""Real proxies before a hub, each with a configuration of its test: nginx, Caddy, HAProxy, Apache.

Each is a context manager: configuration in, URL out. It listens on a free port of 127.0.0.1, as plain HTTP.
``documented`` runs a configuration that the docs show.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sse_app.bench.peers import started
from tests.support.peers import reserved_port

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
  {shown}
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
{shown}
"""

HAPROXY = """\
defaults
  mode http
  timeout connect 20s
  timeout client 60s
  timeout server 60s
{shown}
"""

# Without a share of the cores (ListenCoresBucketsRatio) Apache does not share its port (SO_REUSEPORT).
APACHE = """\
ServerRoot {directory}
ServerName localhost
PidFile {directory}/pid
ErrorLog /dev/stderr
LogLevel crit
Mutex pthread
User nobody
Group nogroup
ListenCoresBucketsRatio 4096
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule alias_module {modules}/mod_alias.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
{shown}
"""
APACHE_MODULES = Path("/usr/lib/apache2/modules")  # where Debian has them

SHOWN_HUB = re.compile(r"(?<=127\.0\.0\.1:)80\d\d")
# The line of a proxy of the docs that says where it listens: as it is shown, and as it is run.
LISTENS = {
    "nginx": ("listen 8080;", "listen 127.0.0.1:{port} reuseport;"),
    "caddy": (":8080 {{", ":{port} {{\n    bind 127.0.0.1"),
    "haproxy": ("bind :8080\n", "bind 127.0.0.1:{port}\n"),
    "apache": ("Listen 8080\n<VirtualHost *:8080>", "Listen 127.0.0.1:{port}\n<VirtualHost *:{port}>"),
}


@contextmanager
def nginx(server: str, *, http: str = "") -> Iterator[str]:
    """An nginx with these directives in its ``server`` and ``http`` blocks."""
    with reserved_port() as port:
        listen = f"listen 127.0.0.1:{port} reuseport;"
        with whole_nginx(f"{http}\nserver {{ {listen}\n{server}\n}}", port) as url:
            yield url


@contextmanager
def caddy(site: str) -> Iterator[str]:
    """A Caddy with these lines in its site block, for any Host."""
    with reserved_port() as port, _caddy(f"http://:{port} {{\nbind 127.0.0.1\n{site}\n}}", port) as url:
        yield url


@contextmanager
def haproxy(frontend: str, *, rest: str = "") -> Iterator[str]:
    """An HAProxy with these lines in its frontend; ``rest`` are whole sections, such as its backends."""
    with reserved_port() as port:
        sections = f"frontend here\n  bind 127.0.0.1:{port}\n{frontend}\n{rest}"
        with _haproxy(sections, port) as url:
            yield url


def shown_hubs(shown: str) -> list[str]:
    """The ports of the hubs behind a proxy of the docs."""
    return sorted(set(SHOWN_HUB.findall(shown)))


@contextmanager
def documented(language: str, shown: str, hubs: Sequence[int]) -> Iterator[str]:
    """The proxy of a fenced block of the docs, run as it is shown but for where it listens and where its hubs do.

    A block of nginx without a ``server`` is the content of one.
    """
    if language == "nginx" and "server {" not in shown:
        shown = f"server {{\nlisten 8080;\n{shown}\n}}"
    ports = dict(zip(shown_hubs(shown), hubs, strict=True))
    shown = SHOWN_HUB.sub(lambda match: str(ports[match[0]]), shown)
    run = {"nginx": whole_nginx, "caddy": _caddy, "haproxy": _haproxy, "apache": _apache}[language]
    with reserved_port() as port:
        before, after = (listens.format(port=port) for listens in LISTENS[language])
        assert shown.count(before) == 1, f"{before!r} is not in\n{shown}"
        with run(shown.replace(before, after), port) as url:
            yield url


@contextmanager
def whole_nginx(http: str, port: int) -> Iterator[str]:
    """An nginx with this in its ``http`` block, of which a ``server`` listens on the port."""
    command = needed("nginx", "nginx")
    with _file(NGINX, http) as file, started((command, "-e", "stderr", "-c", file), _url(port)):
        yield _url(port)


@contextmanager
def _caddy(shown: str, port: int) -> Iterator[str]:
    command = needed("caddy", "caddy")
    with _file(CADDY, shown) as file:
        homes = [f"{name}={Path(file).parent}" for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")]
        run = (command, "run", "--adapter", "caddyfile", "--config", file)
        with started(("env", *homes, *run), _url(port)):
            yield _url(port)


@contextmanager
def _haproxy(shown: str, port: int) -> Iterator[str]:
    command = needed("haproxy", "haproxy")
    with _file(HAPROXY, shown) as file, started((command, "-db", "-f", file), _url(port)):
        yield _url(port)


@contextmanager
def _apache(shown: str, port: int) -> Iterator[str]:
    command = needed("apache2", "apache2-bin")
    with _file(APACHE, shown) as file, started((command, "-f", file, "-D", "FOREGROUND"), _url(port)):
        yield _url(port)


@contextmanager
def _file(whole: str, shown: str) -> Iterator[str]:
    """A configuration file in a directory of its own: the shown lines within the frame that a test needs."""
    with tempfile.TemporaryDirectory(prefix="sse-app-tests-") as directory:
        file = Path(directory, "configuration")
        file.write_text(whole.format(directory=directory, modules=APACHE_MODULES, shown=shown))
        yield str(file)


def needed(command: str, package: str) -> str:
    """The path of a command; without it the test is skipped, which in CI is a failure."""
    found = shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"No {command} here: what needs it is NOT TESTED. On Debian: apt-get install {package}")
    return found


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
