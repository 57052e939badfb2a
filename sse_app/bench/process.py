"""The processes of a server: their CPU time and memory, the one that listens, and the cores that they may use."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"  # the state in /proc/net/tcp


class Usage(NamedTuple):
    """The use of a process and its children: CPU seconds since their start, resident KB now."""

    cpu: float
    rss_kb: int


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    parent: int
    cpu: float
    rss_kb: int


def usage(pid: int) -> Usage | None:
    """Return CPU time and memory of a process and its descendants, or None when it has ended."""
    table = {row.pid: row for row in (from_proc() if sys.platform == "linux" else from_ps())}
    if pid not in table:
        return None
    family = {pid}
    while more := {row.pid for row in table.values() if row.parent in family} - family:
        family |= more
    return Usage(sum(table[member].cpu for member in family), sum(table[member].rss_kb for member in family))


def from_proc() -> Iterator[Process]:
    """Yield the processes of Linux."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # a process may end meanwhile
            # proc(5): after the name in parentheses, state is field 3, ppid 4, utime 14, stime 15, rss 24 (pages)
            fields = (entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / tick
            yield Process(int(entry.name), int(fields[1]), cpu, int(fields[21]) * page // 1024)


def from_ps() -> Iterator[Process]:
    """Yield the processes of macOS and other systems without /proc."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,rss=,time="], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        pid, parent, rss, spent = line.split()
        yield Process(int(pid), int(parent), cpu_seconds(spent), int(rss))


def cpu_seconds(text: str) -> float:
    """Return the seconds in a CPU time of `ps`: `[[days-]hours:]minutes:seconds[.hundredths]`."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86_400 * int(days or 0)


def listener(port: int) -> int | None:
    """Return the process that listens on a port of this machine, of several the parent, or None if it is not known."""
    if sys.platform != "linux":
        return None
    inodes = set(_listening(port))
    owners = {row.pid: row.parent for row in from_proc() if inodes & _sockets(row.pid)}
    eldest = [pid for pid, parent in owners.items() if parent not in owners]
    return eldest[0] if len(eldest) == 1 else None


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # a kernel without IPv6
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # it ended, or is another user's
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry.path))
    return found


def two_cores() -> bool:
    """Return True when server and load can each have cores of their own."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def separate_cores() -> Iterator[Callable[[], None]]:
    """Run this process on all cores but the last, where a child that is started inherits them, and after a call of the
    yielded function on the last core alone.
    """
    if sys.platform != "linux" or not two_cores():
        yield lambda: None
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield lambda: os.sched_setaffinity(0, cores[-1:])
    finally:
        os.sched_setaffinity(0, cores)
