"""The log in a SQLite file and its disk: written before it is acknowledged, full, read-only, damaged, gone."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count as numbers
from pathlib import Path
from typing import NamedTuple

import pytest

from sse_app import AsyncPublisher
from sse_app.config import ENV_PREFIX
from tests.chaos.client import (
    BEGIN,
    Answer,
    Connection,
    Stream,
    ids_of,
    offset_of,
    post,
    publish_all,
    replayed,
    stats,
    streams,
    texts_of,
    until,
)
from tests.chaos.conftest import Server, count
from tests.chaos.launch import launched
from tests.chaos.test_drain import ENDED

PATIENCE = 30  # seconds until a refused start has ended
DISK = 8 * 1024 * 1024


async def readiness(server: Server) -> Answer:
    async with await Connection.open(server.port) as connection:
        return await connection.request("GET", "/readyz")


async def until_readiness(server: Server, status: int) -> Answer:
    async def so() -> bool:
        return (await readiness(server)).status == status

    await until(so, f"/readyz answers {status}")
    return await readiness(server)


# --- on the disk before it is acknowledged (G2) ---


class Call(NamedTuple):
    """A system call of the server, with the places of its first and last line in the trace."""

    name: str
    file: str
    begun: int
    ended: int
    line: str


BEGUN = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\(\d+<(?P<file>[^>]*)>")
RESUMED = re.compile(r"^(?P<thread>\d+) +<\.\.\. \w+ resumed>")


def calls_of(trace: Path) -> Iterator[Call]:
    """The calls in the order of their ends. For calls of two threads at a time strace has a line for begin and end."""
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(trace.read_text(errors="replace").splitlines()):
        if found := BEGUN.match(line):
            call = Call(found["name"], found["file"], number, number, line)
            if line.endswith("<unfinished ...>"):
                unfinished[found["thread"]] = call
            else:
                yield call
        elif (found := RESUMED.match(line)) and (begun := unfinished.pop(found["thread"], None)):
            yield begun._replace(ended=number, line=begun.line + line)


def synced_before_acknowledged(trace: Path, path: Path) -> list[bool]:
    """Return for each POST, in the order of the answers, True when a sync of the WAL began after the request was read,
    and had returned before the 200 was written.
    """
    asked: dict[str, int] = {}
    last_sync = -1  # where the latest sync that has returned began
    kept = []
    for call in calls_of(trace):
        if call.name in ("fdatasync", "fsync"):
            if call.file == f"{path}-wal" and call.line.endswith("= 0"):
                last_sync = max(last_sync, call.begun)
        elif "POST /broadcast" in call.line:
            asked[call.file] = call.ended
        elif '"HTTP/1.1 200' in call.line and call.file in asked:
            kept.append(last_sync > asked.pop(call.file))
    return kept


@pytest.fixture
def strace(tmp_path: Path) -> tuple[str, ...]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    calls = "fsync,fdatasync,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg"
    # -D: the server stays a child of this process; -y: descriptors are shown with their files
    return ("strace", "-D", "-f", "-y", "-s", "40", "-o", f"{tmp_path}/trace", "-e", f"trace={calls}")


@pytest.mark.parametrize("sync", ["full", "normal"])
async def test_the_log_is_on_the_disk_before_a_publication_is_acknowledged(
    tmp_path: Path, path: Path, strace: tuple[str, ...], sync: str
) -> None:
    each = count(ci=60, full=2_000)
    with launched(tmp_path / "log", "--broker", f"sqlite:///{path}?sync={sync}", within=strace) as server:
        for connections in (1, 8):
            await publish_all(server.port, [b"x" * 100] * each, connections)
        durable = (await post(server.port, "x")).json["durable"]
        server.terminate()
        await server.exit_code()
    kept = synced_before_acknowledged(tmp_path / "trace", path)
    print(f"sync={sync}: {sum(kept)} of {len(kept)} synced before they were acknowledged")
    assert len(kept) == 2 * each + 1
    if sync == "full":
        assert durable == "fsync"
        assert all(kept)
    else:  # without the sync the test must fail
        assert durable == "log"
        assert not all(kept)


KEEPS = """
import asyncio, os, sys
from pathlib import Path
from sse_app.brokers.sqlite import SQLiteBroker

async def main():
    async with SQLiteBroker(Path(sys.argv[1])) as broker:
        for durable in (True, False):
            for number in range(int(sys.argv[2])):
                os.write(1, b"asked")
                await broker.board.put(f"a.{number}", b"x" * 300, 3600, durable=durable)
                os.write(1, b"durable" if durable else b"kept")

asyncio.run(main())
"""


def synced_before_kept(trace: Path, board: Path) -> Iterator[tuple[bool, bool]]:
    """Yield for each entry if it was to be durable, and if a sync of the WAL came between the call and its return."""
    synced = False
    for call in calls_of(trace):
        if call.name in ("fdatasync", "fsync"):
            synced |= call.file == f"{board}-wal" and call.line.endswith("= 0")
        elif '"asked"' in call.line:
            synced = False
        elif '"durable"' in call.line or '"kept"' in call.line:
            yield '"durable"' in call.line, synced


def test_a_durable_entry_of_the_board_is_on_the_disk_before_it_is_kept(
    tmp_path: Path, path: Path, strace: tuple[str, ...]
) -> None:
    each = count(ci=60, full=2_000)
    waits = (part for part in strace if part != "-D")  # strace ends last, when all of the trace is written
    command = (*waits, sys.executable, "-c", KEEPS, str(path), str(each))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=10 * PATIENCE)
    kept = list(synced_before_kept(tmp_path / "trace", Path(f"{path}-board")))
    assert [durable for durable, _ in kept] == [True] * each + [False] * each
    assert all(synced for durable, synced in kept if durable)
    assert not all(synced for durable, synced in kept if not durable), "without the sync the test must fail"


# --- full (G4) ---


@contextmanager
def mounted(directory: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk takes root")
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk") as directory:
        yield directory


def fill(disk: Path) -> Path:
    """Fill the disk. Return the file that fills it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


async def test_a_full_disk_refuses_what_it_cannot_keep_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Path
) -> None:
    log = tmp_path / "log"
    texts = (f"{number} {'x' * 20_000}" for number in numbers())
    kept, refused = list[str](), list[str]()
    with launched(log, "--broker", f"sqlite:///{disk}/hub.db") as server:

        async def publish() -> Answer:
            text = next(texts)
            answer = await post(server.port, text)
            (kept if answer.status == 200 else refused).append(text)
            return answer

        async with streams(server.port, 3) as readers:
            first = (await publish()).json["id"]
            for times in range(1, count(ci=2, full=10) + 1):
                ballast = fill(disk)
                while len(refused) < 3 * times:
                    answer = await publish()
                assert (answer.status, answer.json["code"]) == (507, "log_full")
                assert (await readiness(server)).json["code"] == "log_full"
                assert (await readiness(server)).status == 507
                assert (await stats(server.port))["subscribers"] == 3
                ballast.unlink()
                await until_readiness(server, 200)
                answer = await publish()
                assert answer.status == 200
                for reader in readers:
                    await reader.until_offset(offset_of(answer.json["id"]))
                    assert texts_of(reader) == kept
                    assert reader.offsets == list(range(1, len(kept) + 1))
        replay = await replayed(server.port, first.partition("-")[0] + BEGIN)
    assert texts_of(replay) == kept
    assert replay.offsets == list(range(1, len(kept) + 1))
    assert not set(refused) & set(kept)
    print(f"{len(kept)} kept, {len(refused)} refused")
    assert "Traceback" not in log.read_text()


async def test_a_log_whose_disk_was_full_when_its_server_was_killed_is_read_and_then_goes_on(
    tmp_path: Path, disk: Path
) -> None:
    flags = ("--broker", f"sqlite:///{disk}/hub.db")
    with launched(tmp_path / "log", *flags) as server:
        ids = [(await post(server.port, "x" * 20_000)).json["id"] for _ in range(20)]
        ballast = fill(disk)
        answer = await post(server.port, "x" * 200_000)
        while answer.status == 200:
            ids.append(answer.json["id"])
            answer = await post(server.port, "x" * 200_000)
        server.kill()
    with launched(tmp_path / "log", *flags) as server:
        replay = await replayed(server.port, ids[0].partition("-")[0] + BEGIN)
        assert ids_of(replay) == ids
        assert (await post(server.port, "x" * 200_000)).status == 507
        ballast.unlink()
        await until_readiness(server, 200)
        assert offset_of((await post(server.port, "after")).json["id"]) == len(ids) + 1


# --- read-only, damaged, of another program (G5) ---


def refused(*flags: str) -> str:
    """The one line of a server that refuses to start."""
    command = [sys.executable, "-m", "sse_app", "serve", "--port", "0", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode not in (0, -9)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
async def cursors(path: Path) -> list[str]:
    """The ids of the publications in a closed file."""
    async with AsyncPublisher(f"sqlite:///{path}", create=True) as publisher:
        return [(await publisher.publish(f"{number} {'x' * 5_000}")).id for number in range(20)]


def replace_by_text(path: Path) -> None:
    path.write_text("This is a letter to a friend, and no database at all. " * 100)


def damage_a_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_another_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE friends (name TEXT)")


def replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_copy(path: Path) -> None:
    copy = shutil.copy(path, f"{path}.copy")
    os.rename(copy, path)


def set_aside(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.parent.glob(f"{path.name}.corrupt-*") if "-wal" not in file.name}


@pytest.mark.parametrize("harm", [replace_by_text, damage_a_page, cut_off])
async def test_a_damaged_file_stops_the_start_and_is_set_aside_when_that_is_asked_for(
    tmp_path: Path, path: Path, cursors: list[str], harm: Callable[[Path], None]
) -> None:
    flags, log = ("--broker", f"sqlite:///{path}"), tmp_path / "log-of-the-recovery"
    harm(path)
    damaged = contents(path)
    line = refused(*flags)
    assert str(path) in line
    assert "--recover" in line
    assert contents(path) == damaged
    with launched(log, *flags, "--recover") as server:
        ((aside, content),) = set_aside(path).items()
        assert content == damaged
        (line,) = log.read_text().splitlines()
        assert str(aside) in line
        for cursor in cursors:
            assert await gap_of(server, cursor) == "epoch"
        new = (await post(server.port, "new")).json["id"]
        assert new not in cursors
        server.kill()
    with launched(log, *flags, "--recover") as server:  # now --recover has nothing to do
        assert (await stats(server.port))["top"] == new
        assert list(set_aside(path)) == [aside]


def contents(path: Path) -> bytes | list[str]:
    return os.listdir(path) if path.is_dir() else path.read_bytes()


async def gap_of(server: Server, cursor: str) -> str:
    """The reason of the gap that a client with this cursor gets."""
    async with await Stream.open(server.port, cursor) as stream:
        await stream.until(lambda: len(stream.events) == 2)
    assert stream.events[1].type == "gap"
    return str(json.loads(stream.events[1].data)["reason"])


@pytest.mark.parametrize("harm", [replace_by_another_database, replace_by_a_directory])
async def test_what_is_no_log_stops_the_start_and_is_left_alone(
    path: Path, cursors: list[str], harm: Callable[[Path], None]
) -> None:
    harm(path)
    before = contents(path)
    for flags in ((), ("--recover",)):
        assert str(path) in refused("--broker", f"sqlite:///{path}", *flags)
        assert contents(path) == before


def test_a_directory_that_is_not_there_stops_the_start(path: Path) -> None:
    assert str(path.parent / "nowhere" / "hub.db") in refused("--broker", f"sqlite:///{path.parent}/nowhere/hub.db")


async def test_a_read_only_disk_stops_the_start(disk: Path, cursors: list[str], path: Path) -> None:
    for suffix in ("", "-top"):
        shutil.copy(f"{path}{suffix}", disk)
    make_read_only(disk)
    for flags in ((), ("--recover",)):
        line = refused("--broker", f"sqlite:///{disk}/hub.db", *flags)
        assert f"{disk}/hub.db" in line
        assert "ead-only" in line


@pytest.mark.parametrize("harm", [Path.unlink, replace_by_a_copy])
async def test_a_file_that_vanishes_makes_the_log_unavailable_and_streams_stay(
    tmp_path: Path, path: Path, harm: Callable[[Path], object]
) -> None:
    log = tmp_path / "log"
    with launched(log, "--broker", f"sqlite:///{path}", "--drain", "5") as server:
        async with streams(server.port, 3) as readers:
            id = (await post(server.port, "before")).json["id"]
            harm(path)
            for _ in range(3):
                answer = await post(server.port, "lost")
                assert (answer.status, answer.json["code"]) == (503, "log_unavailable")
                assert int(answer.headers["retry-after"]) > 0
            assert (await readiness(server)).json["code"] == "log_unavailable"
            now = await stats(server.port)
            assert (now["subscribers"], now["top"]) == (3, id)
            assert "gone" in now["trouble"]
            async with streams(server.port, 1) as (late,):
                assert late.events[0].id == id
            server.terminate()
            for reader in readers:
                await reader.to_the_end()
                assert texts_of(reader) == ["before"]
                assert reader.events[-1].type == "bye"
            assert await server.exit_code() in ENDED
    (line,) = log.read_text().splitlines()
    assert str(path) in line


async def test_a_file_that_is_put_back_is_a_log_again(tmp_path: Path, path: Path) -> None:
    with launched(tmp_path / "log", "--broker", f"sqlite:///{path}") as server:
        first = (await post(server.port, "before")).json["id"]
        os.rename(path, f"{path}.away")
        await until_readiness(server, 503)
        os.rename(f"{path}.away", path)
        await until_readiness(server, 200)
        assert offset_of((await post(server.port, "after")).json["id"]) == offset_of(first) + 1
