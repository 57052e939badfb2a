"""`serve --workers`: several processes are one server, whichever of them answers, and whichever of them dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.chaos.client import Connection, Stream, offset_of, offsets, publish_all, stats, streams, until, until_stats
from tests.chaos.conftest import Server, count
from tests.chaos.launch import launched

ENDED = (FileNotFoundError, ProcessLookupError)  # errors of reading /proc of a process that ends meanwhile


def workers_of(server: Server) -> list[int]:
    """The process ids of the workers: the children that hold the server's sockets."""
    found = []
    for child in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split():
        with suppress(*ENDED):  # the process has ended meanwhile
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ENDED:
        return False


def imports(pid: int) -> bool:
    """Return True once the process has loaded asyncio, which is an early import of a worker."""
    with suppress(*ENDED):
        return "_asyncio" in Path(f"/proc/{pid}/maps").read_text()
    return False


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/hub.db"


async def test_two_workers_are_one_hub(database: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with launched(log, "--workers", "2", "--drain", "1", "--broker", database) as server:
        first, second = workers_of(server)
        before = descriptors(first), descriptors(second)
        async with streams(server.port, 40) as readers:
            await until_stats(server.port, subscribers=40)
            assert descriptors(first) > before[0], "both have got some"
            assert descriptors(second) > before[1]
            await publish_all(server.port, [b"x" * 100] * 200, connections=8)
            for reader in readers:
                await reader.until_offset(200)
                assert reader.offsets == list(range(1, 201))

            async def summed() -> bool:
                answers = [(await stats(server.port))["totals"] for _ in range(8)]
                return all((each["published"], each["delivered"]) == (200, 8_000) for each in answers)

            await until(summed, "every worker answers for both")
        await until_stats(server.port, subscribers=0)
        server.terminate()
        assert await server.exit_code() == 0
    assert log.read_text() == ""


async def test_what_one_worker_acknowledged_can_be_resumed_from_at_the_other(database: str, tmp_path: Path) -> None:
    with launched(tmp_path / "log", "--workers", "2", "--drain", "1", "--broker", database) as server:
        for number in range(1, count(ci=100, full=1_000)):
            async with await Connection.open(server.port) as publisher:
                cursor = await publisher.publish(str(number))
            async with await Stream.open(server.port, cursor=cursor) as reader:
                await reader.until(lambda: bool(reader.events))
                welcome = reader.events[0]
                assert (welcome.id, offset_of(cursor)) == (cursor, number)
                assert not reader.of_type("gap")


async def test_a_worker_that_dies_is_replaced_and_its_clients_come_back_without_loss(
    database: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with launched(log, "--workers", "2", "--drain", "1", "--broker", database) as server:
        async with streams(server.port, 20) as readers:
            await publish_all(server.port, [b"before"] * 10)
            for reader in readers:
                await reader.until_offset(10)
            await until_stats(server.port, subscribers=20)
            victim = workers_of(server)[0]
            os.kill(victim, signal.SIGKILL)

            async def replaced() -> bool:
                return victim not in workers_of(server) and len(workers_of(server)) == 2

            await until(replaced, "another worker is there")
            await publish_all(server.port, [b"after"] * 10)
            for reader in readers:
                while not reader.over and offset_of(reader.cursor) < 20:
                    await reader.read()
                if not reader.complete and offset_of(reader.cursor) < 20:  # a stream of the killed worker
                    async with await Stream.open(server.port, cursor=reader.cursor) as again:
                        await again.until_offset(20)
                        assert offsets([*reader.events, *again.events]) == list(range(1, 21))
                else:
                    assert reader.offsets == list(range(1, 21))
        server.terminate()
        assert await server.exit_code() == 0
    assert log.read_text().splitlines() == ["a worker ended with status -9; another one takes its place"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_planned_stop_drains_every_worker(database: str, tmp_path: Path, sign: signal.Signals) -> None:
    with launched(tmp_path / "log", "--workers", "2", "--drain", "5", "--broker", database) as server:
        async with streams(
            server.port, 8
        ) as readers:  # few streams, since after SIGINT all have to end within a second
            await publish_all(server.port, [b"x"] * 10)
            for reader in readers:
                await reader.until_offset(10)  # also the streams of the other worker have it, from the log
            server.process.send_signal(sign)
            for reader in readers:
                await reader.to_the_end()
                assert reader.complete
                assert [len(reader.of_type(type)) for type in ("welcome", "bye")] == [1, 1]
                assert reader.offsets == list(range(1, 11))
        assert await server.exit_code() == 0
    assert (tmp_path / "log").read_text() == ""


@contextmanager
def starting(log: Path, *flags: str) -> Iterator[Server]:
    """A server that does not listen yet, in a process group of its own as a shell starts it, with its log in a file."""
    command = [sys.executable, "-m", "sse_app", "serve", "--port", "0", *flags]
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, text=True, start_new_session=True) as process,
    ):
        try:
            yield Server(process, port=0)
        finally:
            process.kill()


async def test_ctrl_c_while_workers_start_ends_them_without_a_word(database: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with starting(log, "--workers", "2", "--broker", database) as server:

        async def importing() -> bool:
            return len(pids := workers_of(server)) == 2 and all(map(imports, pids))

        await until(importing, "both workers are at their imports")
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        assert await server.exit_code() == 0
    assert log.read_text() == ""


async def test_workers_end_with_a_parent_that_was_killed(database: str, tmp_path: Path) -> None:
    with launched(tmp_path / "log", "--workers", "2", "--drain", "0.2", "--broker", database) as server:
        pids = workers_of(server)
        async with await Stream.open(server.port) as reader:
            server.kill()
            await reader.to_the_end()
            assert reader.complete

            async def gone() -> bool:
                return not any(map(running, pids))

            await until(gone, "no worker is left")


def test_a_log_that_cannot_be_opened_is_one_line_whatever_the_number_of_workers(tmp_path: Path) -> None:
    (tmp_path / "hub.db").write_bytes(b"x" * 8_192)
    log = f"sqlite:///{tmp_path}/hub.db"
    command = [sys.executable, "-m", "sse_app", "serve", "--port", "0", "--workers", "3", "--broker", log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert f"{tmp_path}/hub.db cannot be opened: file is not a database." in done.stderr
