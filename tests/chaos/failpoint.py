"""`python -m tests.chaos.failpoint PLACE COUNT serve ...`: a hub on SQLite that kills itself at its COUNT-th commit.

PLACE says how far the commit comes: ``committed`` to the file alone; ``marked``, also to the watermark beside the file;
``awake``, also to the other processes. The hub's own subscribers and the publisher never learn of the commit.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from sse_app.brokers.sqlite.nodes import Nodes
from sse_app.brokers.sqlite.opening import LogFile
from sse_app.brokers.tail import QueuedTail
from sse_app.cli import main

PLACES = {"committed": (LogFile, "advance"), "marked": (Nodes, "wake"), "awake": (QueuedTail, "announce")}


def kill_at(place: str, count: int) -> None:
    cls, name = PLACES[place]
    genuine: Callable[..., None] = getattr(cls, name)
    commits = 0

    def counted(*arguments: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == count:
            os.kill(os.getpid(), signal.SIGKILL)
        genuine(*arguments)

    setattr(cls, name, counted)


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    main(sys.argv[3:])
