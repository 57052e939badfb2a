"""Opening the file of a log: what is not one, what is damaged, what others hold, and the URLs that name it."""

import gc
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sse_app.brokers import open_broker
from sse_app.brokers.sqlite import opening
from sse_app.brokers.sqlite.schema import SCHEMA_VERSION
from sse_app.errors import ConfigError, LogUnavailable
from sse_app.events import Event
from sse_app.publication import Draft, Position
from sse_app.topics import TopicFilter
from tests.support.sqlite_log import append, open_log, reading

LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


def refusal(path: Path, kind: type[Exception] = LogUnavailable) -> str:
    with pytest.raises(kind) as refused:
        open_log(path)
    text = str(refused.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def make_log(path: Path) -> None:
    """So long that its pages are many."""
    file = open_log(path, "off")
    append(file, *("x" * 1_000 for _ in range(100)))
    file.close()


def damage(path: Path) -> bytes:
    """Overwrite a page in the middle. Returns all of it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 4096)
    return path.read_bytes()


# --- what is not a log ---


def test_what_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_text("Dear diary, " * 1_000)
    assert "--recover" in refusal(path)
    assert path.read_text() == "Dear diary, " * 1_000


def test_a_database_of_something_else_is_refused_and_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE diary (day, text); INSERT INTO diary VALUES (1, 'dear')")
    before = path.read_bytes()
    assert "something else" in refusal(path, ConfigError)
    with pytest.raises(ConfigError, match="something else"):
        open_log(path, "full", "boot", recover=True)
    assert path.read_bytes() == before, "not even its journal mode is changed"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (0, "no version that there was"),
        (SCHEMA_VERSION + 1, f"format {SCHEMA_VERSION + 1}, of a newer version .* knows {SCHEMA_VERSION} at most"),
    ],
)
def test_a_log_of_another_version_is_refused_and_left_as_it_is(path: Path, version: int, words: str) -> None:
    make_log(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    assert re.search(words, refusal(path, ConfigError))
    assert path.read_bytes() == before


def test_without_its_directory_it_is_refused(path: Path) -> None:
    assert "directory" in refusal(path / "deeper" / "hub.db")
    assert not path.exists()


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    assert "It has to be a file" in refusal(path)


def test_a_refused_log_holds_nothing_open(path: Path) -> None:
    path.write_text("no database" * 1_000)
    refusal(path)
    gc.collect()  # what other tests have left is closed now, not in between
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        refusal(path)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


# --- damage ---


def test_a_damaged_page_is_found_and_refused(path: Path) -> None:
    make_log(path)
    content = damage(path)
    assert "--recover" in refusal(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(b"no database" * 1_000)])
def test_recovering_sets_a_damaged_log_aside_and_begins_a_new_one(path: Path, harm: object) -> None:
    make_log(path)
    with reading(path) as reader:
        epoch = reader.state().epoch
    assert callable(harm)
    harm(path)
    content = path.read_bytes()
    file = open_log(path, "full", "boot-1", recover=True)
    (aside,) = path.parent.glob("hub.db.corrupt-*")
    assert aside.read_bytes() == content
    assert file.state.epoch != epoch
    assert append(file, "new") == [Position(file.state.epoch, 1)]
    file.close()
    assert open_then_close(path) == Position(file.state.epoch, 1)


def open_then_close(path: Path, *, recover: bool = False) -> Position:
    file = open_log(path, "full", "boot-1", recover=recover)
    file.close()
    return file.state.position


def test_recovering_a_sound_log_changes_nothing(path: Path) -> None:
    make_log(path)
    assert open_then_close(path, recover=True) == open_then_close(path)
    assert not list(path.parent.glob("*corrupt*"))


def test_the_newest_of_a_damaged_log_are_set_aside_with_it(path: Path) -> None:
    """The newest may stand in its WAL alone, when its process was killed."""
    make_log(path)
    file = open_log(path)
    append(file, "the newest")
    wal = Path(f"{path}-wal")
    newest = wal.read_bytes()
    file.close()
    path.write_bytes(b"no database" * 1_000)
    wal.write_bytes(newest)
    open_then_close(path, recover=True)
    (aside,) = path.parent.glob("hub.db.corrupt-*-wal")
    assert aside.read_bytes() == newest


# --- locked by others ---


def test_a_log_that_stays_locked_is_refused_when_patience_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PATIENCE", 0.05)
    make_log(path)
    process = subprocess.Popen(
        [sys.executable, "-c", LOCKS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert "Another process keeps it locked" in refusal(path)
    finally:
        process.kill()
        process.communicate()
    assert open_then_close(path).offset == 100


def test_a_log_that_is_locked_for_a_moment_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_log(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        naps: list[float] = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                other.execute("ROLLBACK")

        monkeypatch.setattr(time, "sleep", nap)
        assert open_then_close(path).offset == 100
    assert len(naps) == 3


def test_a_log_that_is_being_opened_is_waited_for_by_others(path: Path) -> None:
    """Of processes that start together one makes the tables, and all have its epoch."""
    code = (
        "import sys; from pathlib import Path; from tests.support.sqlite_log import open_log, append;"
        "file = open_log(Path(sys.argv[1])); append(file, 'x'); print(file.state.epoch); file.close()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    epochs = {process.communicate(timeout=30)[0] for process in processes}
    assert len(epochs) == 1
    assert open_then_close(path) == Position(epochs.pop().strip(), 3)


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///hub.db", "hub.db"),
        ("SQLite:///hub.db", "hub.db"),
        ("sqlite:///data/hub.db", "data/hub.db"),
        ("sqlite:///./hub.db", "hub.db"),
        ("sqlite:///my%20hub.db", "my hub.db"),
        ("sqlite:///50%25%3Fa%23b.db", "50%?a#b.db"),
        ("sqlite:///a#b.db", "a#b.db"),
        ("sqlite:///caf%C3%A9.db", "café.db"),
        ("sqlite:///hub.db?sync=normal", "hub.db"),
        ("sqlite:////{here}/hub.db", "hub.db"),
        ("sqlite:////{here}/hub.db?sync=full", "hub.db"),
    ],
)
async def test_a_url_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    async with open_broker(url.format(here=str(tmp_path).lstrip("/"))) as broker:
        await broker.publish(Draft(Event("x")))
        monkeypatch.chdir("/")  # a relative one was meant from where it was opened
        assert len(await broker.newest(1, TopicFilter(), None)) == 1
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite://hub.db",
        "sqlite://host/hub.db",
        "sqlite://[/hub.db",
        "sqlite:///:memory:",
        "sqlite:///a%00b",
        "sqlite://?sync=full",
    ],
)
def test_a_url_of_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="names a file"):
        open_broker(url)


@pytest.mark.parametrize("query", ["sync", "sync=", "sync=off", "sync=FULL", "snyc=full", "sync=full&x=1"])
def test_an_option_that_there_is_not_is_refused(query: str) -> None:
    with pytest.raises(ConfigError, match="takes one option"):
        open_broker(f"sqlite:///hub.db?{query}")


@pytest.mark.parametrize(("query", "durable"), [("", "fsync"), ("?sync=full", "fsync"), ("?sync=normal", "log")])
def test_it_says_how_durable_it_is(query: str, durable: str) -> None:
    assert open_broker(f"sqlite:///hub.db{query}").durability == durable


@pytest.mark.parametrize(("sync", "level"), [("full", 2), ("normal", 1)])
def test_a_commit_waits_for_the_disk_as_it_was_told_to(path: Path, sync: str, level: int) -> None:
    file = open_log(path, sync)
    assert file.log._connection.execute("PRAGMA synchronous").fetchone() == (level,)
    assert file.log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    file.close()
