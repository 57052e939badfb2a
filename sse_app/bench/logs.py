"""The logs other than memory that our own server is measured over: each new, and gone after the run."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from sse_app.errors import BenchRefused

LOGS = ("sqlite", "redis", "nats")


class Log(NamedTuple):
    """A log's URL, and the command of the server that it needs."""

    url: str
    command: tuple[str, ...] | None = None


def temporary(kind: str, directory: Path, port: int) -> Log:
    """Return a log that keeps what it writes in `directory`; a server of its own listens at `port` on loopback.

    Raises BenchRefused when there is no such server here.
    """
    match kind:
        case "sqlite":
            return Log(f"sqlite:///{directory}/hub.db")
        case "redis":
            where = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory))
            # As docs/brokers.md has it: written to a file, which is synced once a second.
            return Log(f"redis://127.0.0.1:{port}", (program(kind), *where, "--save", "", "--appendonly", "yes"))
        case _:
            where = ("--addr", "127.0.0.1", "--port", str(port), "--store_dir", str(directory))
            return Log(f"nats://127.0.0.1:{port}", (program(kind), *where, "--jetstream"))


def program(kind: str) -> str:
    """Return the path of the server that a log needs, `redis-server` or `nats-server`. Raises BenchRefused for none."""
    # Debian's nats-server is in /usr/sbin, which is not on every user's PATH.
    found = shutil.which(f"{kind}-server", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if not found:
        raise BenchRefused(f"{kind}: there is no {kind}-server here; Debian has it: apt install {kind}-server")
    return found
