"""Servers are started, recognised, and stopped again."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sse_app.bench import peers
from sse_app.bench.logs import LOGS
from sse_app.bench.peers import Server, check_server, nchan_command, serving, started
from sse_app.bench.process import usage
from sse_app.errors import BenchFailed, BenchRefused
from tests.support.peers import PATIENCE

PRINTS = "print('ready: http://127.0.0.1:4321/ and so on', flush=True); __import__('signal').pause()"

# A stand-in for nginx, which only listens where its configuration says.
NGINX = """#!{python}
import pathlib, re, signal, socket, sys
file = pathlib.Path(sys.argv[sys.argv.index("-c") + 1])
text = file.read_text()
assert "daemon off;" in text
server = socket.create_server(("127.0.0.1", int(re.search(r"listen 127\\.0\\.0\\.1:(\\d+)", text)[1])))
signal.pause()
"""


def test_a_started_server_is_stopped_also_after_an_error() -> None:
    with contextlib.suppress(ZeroDivisionError), started((sys.executable, "-c", PRINTS)) as server:
        assert server.url == "http://127.0.0.1:4321"
        assert server.pid
        assert usage(server.pid)
        raise ZeroDivisionError
    assert server.pid
    assert usage(server.pid) is None


def test_a_server_that_does_not_start_says_why() -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('port: out of range')")
    with pytest.raises(BenchFailed, match="port: out of range"), started(command):
        pass


def test_a_server_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "STOP_SECONDS", 0)
    ignores = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PRINTS}"
    with started((sys.executable, "-c", ignores)) as server:
        pass
    assert server.pid
    assert usage(server.pid) is None


def test_a_url_is_let_be_and_its_process_found() -> None:
    with started((sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1")) as server:
        for _ in range(2):
            with serving(server.url) as same:
                assert same == (server if sys.platform == "linux" else Server(server.url, None))
    with serving(server.url) as same:
        assert same.pid is None  # nothing listens there any more


@pytest.fixture
def nginx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for nginx and its module, found as the real ones are."""
    script = tmp_path / "nginx"
    script.write_text(NGINX.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(peers, "NCHAN_MODULE", script)
    return script


def test_nchan_is_started_with_a_configuration_of_its_own_and_stopped(nginx: Path) -> None:
    check_server("nchan")
    with serving("nchan") as server:
        assert server.pid
        assert usage(server.pid)
    assert usage(server.pid) is None


def test_the_configuration_of_nchan_listens_on_loopback_and_writes_nowhere_else(nginx: Path, tmp_path: Path) -> None:
    command = nchan_command(tmp_path, 4321)
    assert command == (str(nginx), "-e", "stderr", "-c", str(tmp_path / "nginx.conf"))
    text = (tmp_path / "nginx.conf").read_text()
    assert re.findall(r"listen (\S+)", text) == ["127.0.0.1:4321"]
    assert set(re.findall(r"(?<= )/[^\s;]+(?=;)", text)) - {str(nginx)} == {
        f"{tmp_path}/{name}" for name in ("nginx.pid", "body", "proxy", "fastcgi", "uwsgi", "scgi")
    }


def here(name: str) -> bool:
    """True when this server can be measured on this machine."""
    with contextlib.suppress(BenchRefused):
        check_server(name)
        return True
    return False


@pytest.mark.parametrize("kind", [kind for kind in LOGS if here(kind)])
def test_a_log_of_its_own_is_empty_and_gone_with_its_server(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    receipts = []
    for _ in range(2):
        with serving(kind) as server:
            assert len(list(tmp_path.iterdir())) == 1
            receipts.append(httpx.post(f"{server.url}/broadcast", json={}, timeout=PATIENCE).json())
        assert not list(tmp_path.iterdir())
    assert [receipt["id"].rpartition("-")[2] for receipt in receipts] == ["1", "1"]
    assert {receipt["durable"] for receipt in receipts} == {"fsync" if kind == "sqlite" else "log"}


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_a_log_whose_server_is_not_installed_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(BenchRefused, match=f"apt install {kind}-server"):
        check_server(kind)


def test_nchan_that_is_not_installed_is_refused_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "NCHAN_MODULE", Path("/nonexistent"))
    with pytest.raises(BenchRefused, match="apt install nginx-core libnginx-mod-nchan"):
        check_server("nchan")


@pytest.mark.parametrize("name", ["ngnix", "127.0.0.1:8000", "http://192.0.2.1", "https://127.0.0.1"])
def test_what_is_no_server_is_refused(name: str) -> None:
    with pytest.raises(BenchRefused):
        check_server(name)


if here("nchan"):

    def test_the_real_nginx_accepts_the_configuration(tmp_path: Path) -> None:
        done = subprocess.run([*nchan_command(tmp_path, 4321), "-t"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
