"""A real nginx before real hubs: a location for each way to set it up."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sse_app.doctor import answers, delivery, opening
from tests.support.peers import PATIENCE, reserved_port
from tests.support.proxies import needed, whole_nginx
from tests.support.web import live_hub
from tests.test_docs import CHECKOUT, blocks

ORIGIN = "https://app.example"

DOCUMENTED = next(block.text for block in blocks(CHECKOUT / "docs" / "doctor.md") if block.language == "nginx")

# The planted faults by location; {hub} and {other} are hubs with logs of their own, on {closed} nothing listens. The
# impatient location has its timeout for the stream alone: a busy machine may take as long for another answer.
LOCATIONS = {
    "good": DOCUMENTED.removeprefix("location / {").strip().removesuffix("}").replace("http://127.0.0.1:8000", "{hub}"),
    # With a header of its own a location inherits none, not even Host.
    "untouched": 'proxy_pass {hub}/; proxy_set_header Connection "";',
    "without-port": "proxy_pass {hub}/; proxy_set_header Host $host;",
    "buffered": "proxy_pass {hub}/; proxy_ignore_headers X-Accel-Buffering;",
    "compressed": "proxy_pass {hub}/; gzip on; gzip_types text/event-stream; gzip_proxied any;",
    "impatient": "proxy_pass {hub}/; "
    "location /impatient/events {{ proxy_pass {hub}/events; proxy_read_timeout 500ms; }}",
    "no-cursor": 'proxy_pass {hub}/; proxy_set_header Host $http_host; proxy_set_header Last-Event-ID "";',
    "no-cors": "proxy_pass {hub}/; proxy_hide_header Access-Control-Allow-Origin;",
    "double-cors": "proxy_pass {hub}/; add_header Access-Control-Allow-Origin *;",
    "small": "proxy_pass {hub}/; client_max_body_size 100k;",
    "wrong-host": "proxy_pass {hub}/; proxy_set_header Host hub.internal;",
    "clinging": "proxy_pass {hub}/; proxy_ignore_client_abort on;",
    "cacheable": "proxy_pass {hub}/; proxy_hide_header Cache-Control; add_header Cache-Control max-age=60;",
    "no-query": 'set $args ""; proxy_pass {hub}/;',
    "two-logs": "proxy_pass http://two_logs/; proxy_set_header Host $http_host;",
    "prefixed": "proxy_pass {hub};",
    "nobody": "proxy_pass {closed}/;",
    "guarded": "deny all;",
    "moved": "return 301 https://elsewhere.example/events;",
    "a-page": "default_type text/html; return 200 hello;",
}

HTTP = """\
  proxy_set_header Host $http_host; # for those without headers of their own
  ssl_certificate {directory}/certificate.pem;
  ssl_certificate_key {directory}/key.pem;
  upstream two_logs {{ server {hub}; server {other}; }}
  server {{
    listen 127.0.0.1:{tls} ssl http2 reuseport;
    {locations}
  }}
  server {{
    listen 127.0.0.1:{tls_without_http2} ssl reuseport;
    location / {{ proxy_pass http://{hub}; }}
  }}
  server {{
    listen 127.0.0.1:{plain} reuseport;
    location / {{ proxy_pass http://{hub}; }}
  }}
"""


@dataclass(frozen=True)
class Nginx:
    tls: int
    tls_without_http2: int
    plain: int

    def url(self, location: str) -> str:
        return f"https://127.0.0.1:{self.tls}/{location}"


@pytest.fixture(scope="module")
def _nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nginx, Path]]:
    directory = tmp_path_factory.mktemp("nginx")
    certificate = make_certificate(directory)
    with ExitStack() as stack:
        hubs = [stack.enter_context(live_hub(cors_origins=(ORIGIN,))) for _ in range(2)]
        tls, without, plain, closed = (stack.enter_context(reserved_port()) for _ in range(4))
        hub, other = (f"127.0.0.1:{hub.port}" for hub in hubs)
        places = {"hub": f"http://{hub}", "closed": f"http://127.0.0.1:{closed}"}
        locations = (f"location /{name}/ {{ {text.format(**places)} }}" for name, text in LOCATIONS.items())
        http = HTTP.format(
            directory=directory,
            hub=hub,
            other=other,
            tls=tls,
            tls_without_http2=without,
            plain=plain,
            locations="\n    ".join(locations),
        )
        stack.enter_context(whole_nginx(http, plain))
        yield Nginx(tls, without, plain), certificate


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the doctor's limits of time: a busy machine is no slow proxy."""
    monkeypatch.setattr(opening, "SLOW_SECONDS", PATIENCE)
    for module in (answers, delivery):
        monkeypatch.setattr(module, "ARRIVAL_SECONDS", PATIENCE)


@pytest.fixture
def nginx(_nginx: tuple[Nginx, Path], monkeypatch: pytest.MonkeyPatch) -> Nginx:
    """The nginx of all locations, whose certificate is trusted."""
    server, certificate = _nginx
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return server


def make_certificate(directory: Path) -> Path:
    """Make a self-signed certificate for 127.0.0.1, with its key beside it."""
    certificate = directory / "certificate.pem"
    command = [needed("openssl", "openssl"), "req", "-x509", "-nodes", "-days", "2"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(directory / "key.pem"), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return certificate
