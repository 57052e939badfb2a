"""Windows as far as it can be imitated elsewhere: the package is imported in a process without Unix's own modules."""

import subprocess
import sys

import pytest

from tests.test_cli import PATIENCE, environment

UNIX_ONLY = ("resource", "fcntl", "termios", "pwd", "grp", "pty", "tty", "syslog", "readline", "uvloop")
SIGNALS = ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
# Other packages support Windows by themselves, and are imported before Unix's modules are hidden.
WINDOWS = f"""
import asyncio, multiprocessing, platform, pathlib, shutil, signal, socket, sqlite3, ssl, subprocess, sys, tempfile
import anyio, click, httpx, msgspec, rich, sse_starlette, starlette, uvicorn
for name in {UNIX_ONLY}:
    sys.modules[name] = None
for name in {SIGNALS}:
    delattr(signal, name)
sys.platform = "win32"
import sse_app
"""
HUB = """
async def main():
    async with sse_app.Hub() as hub, hub.subscribe() as subscriber:
        await hub.publish("hello")
        received = b""
        while b"data: hello" not in received:
            received += await subscriber.read()
asyncio.run(main())
"""
CREATE = "sse_app.create_app(sse_app.Config(max_subscribers=None))"


def on_windows(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WINDOWS + code]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("code", ["for name in sse_app.__all__: getattr(sse_app, name)", HUB, CREATE])
def test_the_package_is_imported_and_a_hub_runs(code: str) -> None:
    done = on_windows(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_says_what_to_use_instead() -> None:
    done = on_windows("from sse_app.cli import main; main(['serve'])")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "WSL" in done.stderr


def test_a_log_in_a_file_says_so_too() -> None:
    done = on_windows("""
try:
    sse_app.open_broker("sqlite:///hub.db")
except sse_app.SSEAppError as error:
    print(error)
""")
    assert (done.returncode, done.stderr) == (0, "")
    assert "WSL" in done.stdout
