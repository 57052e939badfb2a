"""Servers in special surroundings: with few descriptors, in a network namespace; and their costs."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sse_app.config import ENV_PREFIX
from tests.chaos.conftest import Server, listening_port


@contextmanager
def launched(
    log: Path, *flags: str, within: Sequence[str] = (), module: Sequence[str] = ("sse_app",)
) -> Iterator[Server]:
    """`sse-app serve` on a free port, started by the command ``within``, with its log in a file. ``module`` is a module
    to run in its place, with arguments.
    """
    command = [*within, sys.executable, "-m", *module, "serve", "--port", "0", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    with (
        log.open("a") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment) as process,
    ):
        try:
            yield Server(process, listening_port(process))
        finally:
            process.kill()


def cpu_seconds(server: Server) -> float:
    """The processor time of a process so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kernel_buffers(port: int) -> tuple[int, int]:
    """The number of the server's TCP connections, and the bytes in their send buffers (w of ss's skmem)."""
    command = ["ss", "--tcp", "--memory", "--numeric", "--no-header", "state", "connected", f"sport = :{port}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    waiting = [int(size) for size in re.findall(r"skmem:\([^)]*\bw(\d+),", shown)]
    return len(waiting), sum(waiting)


async def nothing_for(seconds: float) -> None:
    """Let real time pass without work of the test: while a server is stopped, or to measure its idle cost."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)
