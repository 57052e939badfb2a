"""A broker's server in a process of its own, on loopback: started, killed, frozen."""

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
CHECKS = 1_000  # of a server that starts, 20 ms apart


class BrokerProcess:
    """A server on a port that it keeps over restarts. A subclass has its ``command``, and says when it ``answers``."""

    command: Sequence[str]

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start the process, and return once it answers."""
        self._process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        for _ in range(CHECKS):
            if self.answers():
                return
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
                break
        raise AssertionError(f"{self.command[0]} does not start: {self._log.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process without ending it: it keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until then its threads answer

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
