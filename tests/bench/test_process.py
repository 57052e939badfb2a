"""CPU time and memory of a process, read from the system."""

import os
import socket
import subprocess
import sys
import time

import pytest

from sse_app.bench.process import cpu_seconds, listener, separate_cores, two_cores, usage


def test_usage_of_this_process_includes_its_children() -> None:
    before, alone = time.process_time(), usage(os.getpid())
    assert alone
    assert alone.rss_kb > 1000
    assert alone.cpu >= before - 0.1  # the kernel counts in ticks
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout
        child.stdout.readline()
        inner, both = usage(child.pid), usage(os.getpid())
        child.communicate(b"\n")
    assert inner
    assert both
    assert inner.rss_kb > 1000
    assert both.rss_kb >= inner.rss_kb + 1000
    assert usage(child.pid) is None


def test_process_table_of_ps_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = "    1     0  11000   1:02.50\n  300     1   2048   0:00.25\n  301   300   1024 1-02:03:04\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, printed, ""))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert usage(300) == (0.25 + 93_784, 3072)
    assert usage(302) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:01.23", 1.23), ("12:34", 754), ("1:00:01", 3601), ("2-00:00:00", 172_800)]
)
def test_cpu_time_of_ps(text: str, seconds: float) -> None:
    assert cpu_seconds(text) == pytest.approx(seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_who_listens_is_found_by_the_port() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert listener(port) is None  # the test holds the port, so that no other process can listen there
        server.listen()
        assert listener(port) == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_of_a_parent_and_its_workers_the_parent_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        command = [sys.executable, "-c", "input()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, close_fds=False) as worker:
            assert listener(server.getsockname()[1]) == os.getpid()
            worker.communicate(b"\n")


@pytest.mark.skipif(not two_cores(), reason="there is but one core")
def test_server_and_load_run_on_different_cores() -> None:
    cores = os.sched_getaffinity(0)
    with separate_cores() as leave:
        first = os.sched_getaffinity(0)
        leave()
        last = os.sched_getaffinity(0)
    assert (first | last, first & last, len(last)) == (cores, set(), 1)
    assert os.sched_getaffinity(0) == cores
