"""Whatever happens to the file of a log, no id is given out twice (C6): what may have lost some begins an epoch."""

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers.sqlite.opening import LogFile
from sse_app.brokers.sqlite.watermark import WatermarkFile
from sse_app.errors import LogUnavailable
from sse_app.publication import Position
from sse_app.topics import TopicFilter
from tests.support.sqlite_log import END, append, open_log, reading

Files = dict[str, bytes]  # by what comes behind the log's own name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


def kill(file: LogFile) -> None:
    """The process ends, and cleans up nothing: the kernel closes its files."""
    file.log.close()
    file.nodes.close()
    file.watermark.close()


def left_by(path: Path, *texts: str) -> Position:
    """A log that was closed as it should be."""
    file = open_log(path)
    positions = append(file, *texts)
    file.close()
    return positions[-1]


def reopened(path: Path, sync: str = "full", boot: str = "boot-1") -> Position:
    file = open_log(path, sync, boot)
    file.close()
    return file.state.position


def files_of(path: Path) -> Files:
    files = {suffix: Path(f"{path}{suffix}") for suffix in ("", "-wal", "-top")}
    return {suffix: file.read_bytes() for suffix, file in files.items() if file.exists()}


def put_back(path: Path, files: Files, *, anew: bool = False) -> None:
    """Over the files there are, or as new ones in their place."""
    for suffix in ("", "-wal", "-shm", "-top"):
        file = Path(f"{path}{suffix}")
        if suffix not in files or anew:
            file.unlink(missing_ok=True)
    for suffix, content in files.items():
        Path(f"{path}{suffix}").write_bytes(content)


def change(path: Path, statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()


def contents(path: Path) -> dict[Position, str]:
    found: dict[Position, str] = {}
    with reading(path) as reader:
        position, top = Position("", 0), reader.state().position
        while position != top:
            page = reader.replay(position, END, TopicFilter())
            found |= {item.position: item.event.data for item in page.publications}
            position = page.end
    return found


# --- it stays ---


def test_a_log_that_was_closed_goes_on_where_it_was(path: Path) -> None:
    top = left_by(path, *"abc")
    assert reopened(path) == top
    assert left_by(path, "d") == top.next()


def test_a_log_whose_process_was_killed_goes_on_where_it_was(path: Path) -> None:
    file = open_log(path)
    (top,) = append(file, "a")
    kill(file)
    assert reopened(path) == top


def test_the_same_backup_put_back_over_the_same_file_changes_nothing(path: Path) -> None:
    top = left_by(path, *"abc")
    put_back(path, files_of(path))
    assert reopened(path) == top


def test_whoever_else_has_it_open_keeps_the_epoch(path: Path) -> None:
    one = open_log(path)
    append(one, "a")
    other = open_log(path)
    assert append(other, "b") == [one.state.position._replace(offset=2)]
    one.close()
    assert append(other, "c") == [one.state.position._replace(offset=3)]
    other.close()
    assert reopened(path) == one.state.position._replace(offset=3)


# --- the database is not what it was ---


def test_a_database_that_is_gone_begins_anew(path: Path) -> None:
    top = left_by(path, *"abc")
    path.unlink()
    found = reopened(path)
    assert (found.epoch != top.epoch, found.offset) == (True, 0)


def test_a_database_of_no_bytes_begins_anew(path: Path) -> None:
    top = left_by(path, *"abc")
    path.write_bytes(b"")
    found = reopened(path)
    assert (found.epoch != top.epoch, found.offset) == (True, 0)


@pytest.mark.parametrize("anew", [False, True], ids=["over the file", "as a new file"])
@pytest.mark.parametrize("wal", [False, True], ids=["database alone", "with its wal"])
def test_an_older_backup_put_back_begins_an_epoch_and_keeps_what_is_in_it(path: Path, anew: bool, wal: bool) -> None:
    left_by(path, *"ab")
    file = open_log(path)
    append(file, "c")
    backup = files_of(path)
    del backup["-top"]
    if wal:
        assert backup["-wal"], "the newest publication is in it"
    else:
        del backup["-wal"]
    (top,) = append(file, "lost")
    file.close()
    mark = Path(f"{path}-top").read_bytes()

    put_back(path, {**backup, "-top": mark}, anew=anew)
    found = reopened(path)
    assert found.epoch != top.epoch
    assert list(contents(path).values()) == (["a", "b", "c"] if wal else ["a", "b"])
    assert left_by(path, "d") == found.next()
    assert reopened(path) == found.next(), "once is enough"


def test_a_copy_in_place_of_the_database_begins_an_epoch(path: Path) -> None:
    top = left_by(path, *"abc")
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    assert reopened(path).epoch != top.epoch


def test_a_log_cut_short_by_hand_begins_an_epoch(path: Path) -> None:
    top = left_by(path, *"abcde")
    change(path, "DELETE FROM log WHERE offset > 3; UPDATE state SET top = 3")
    found = reopened(path)
    assert (found.epoch != top.epoch, found.offset) == (True, 3)


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM log WHERE offset > 3",
        "DELETE FROM log WHERE offset = 3",
        "DELETE FROM log",
        "UPDATE log SET offset = 99 WHERE offset = 3",
        "DELETE FROM state",
    ],
)
def test_a_log_with_holes_is_damaged(path: Path, harm: str) -> None:
    left_by(path, *"abcde")
    change(path, harm)
    with pytest.raises(LogUnavailable, match="--recover"):
        open_log(path)
    file = open_log(path, "full", "boot-1", recover=True)
    assert file.state.top == 0
    file.close()


# --- how far it was is not known ---


def test_without_a_watermark_it_begins_an_epoch(path: Path) -> None:
    top = left_by(path, *"abc")
    Path(f"{path}-top").unlink()
    found = reopened(path)
    assert (found.epoch != top.epoch, found.offset) == (True, 3)


@pytest.mark.parametrize(
    "garbage",
    [
        lambda mark: b"",
        lambda mark: b"\xff" * 128,
        lambda mark: b"junk\n",
        lambda mark: b"a b c d",
        lambda mark: mark.replace(b" 3 ", b" x "),
        lambda mark: mark.replace(b" 3 ", b" 4 "),
        lambda mark: b" ".join([*mark.split()[:2], b"7", *mark.split()[3:]]),
    ],
    ids=["empty", "no text", "a word", "words", "no number", "it was further", "of another file"],
)
def test_with_a_watermark_that_does_not_fit_it_begins_an_epoch(path: Path, garbage: Callable[[bytes], bytes]) -> None:
    top = left_by(path, *"abc")
    mark = Path(f"{path}-top")
    mark.write_bytes(garbage(mark.read_bytes()))
    assert reopened(path).epoch != top.epoch
    assert left_by(path, "d").offset == 4


def test_a_watermark_that_turns_into_garbage_while_it_is_used_is_written_again(path: Path) -> None:
    file = open_log(path)
    append(file, "a")
    Path(f"{path}-top").write_bytes(b"a b c d".ljust(128))
    assert file.watermark.position() is None
    (top,) = append(file, "b")
    assert file.watermark.position() == top
    Path(f"{path}-top").write_bytes(b"a b c d".ljust(128))
    file.close()
    assert reopened(path).epoch != top.epoch


def test_a_watermark_does_not_fall(path: Path) -> None:
    file = open_log(path)
    first, _, last = append(file, *"abc")
    file.advance(first)  # out of order
    assert file.watermark.position() == last
    file.close()


# --- the machine goes down ---


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Return what a power failure leaves of the watermark: its content when it was synced last."""
    files: Files = {}
    fsync = os.fsync

    def synced(file: int) -> None:
        fsync(file)
        files["-top"] = os.pread(file, 128, 0)

    monkeypatch.setattr(os, "fsync", synced)
    return files


@pytest.mark.parametrize("then", ["normal", "full"])
def test_commits_that_a_power_failure_may_have_cost_begin_an_epoch(path: Path, disk: Files, then: str) -> None:
    file = open_log(path, "normal")
    append(file, *"abc")
    database = files_of(path)
    (lost,) = append(file, "lost")
    kill(file)
    put_back(path, {**database, **disk})
    assert reopened(path, then, "boot-2").epoch != lost.epoch


def test_commits_after_another_process_closed_the_log_are_no_safer(path: Path, disk: Files) -> None:
    one, other = open_log(path, "normal"), open_log(path, "normal")
    append(one, *"abc")
    other.close()
    database = files_of(path)
    (lost,) = append(one, "lost")
    kill(one)
    put_back(path, {**database, **disk})
    assert reopened(path, "normal", "boot-2").epoch != lost.epoch


def test_commits_that_another_process_did_not_sync_are_no_safer_with_one_that_does(path: Path, disk: Files) -> None:
    hasty = open_log(path, "normal")
    careful = open_log(path, "full")
    append(careful, *"abc")
    database = files_of(path)
    (lost,) = append(hasty, "lost")
    kill(hasty)
    kill(careful)
    put_back(path, {**database, **disk})
    assert reopened(path, "full", "boot-2").epoch != lost.epoch


def test_what_was_synced_survives_the_machine(path: Path, disk: Files) -> None:
    file = open_log(path, "full")
    *_, top = append(file, *"abc")
    database = files_of(path)
    kill(file)
    put_back(path, {**database, **disk})
    assert reopened(path, "full", "boot-2") == top


def test_a_log_that_was_closed_before_the_machine_went_down_goes_on(path: Path, disk: Files) -> None:
    file = open_log(path, "normal")
    *_, top = append(file, *"abc")
    file.close()
    put_back(path, {**files_of(path), **disk})
    assert reopened(path, "normal", "boot-2") == top


def test_a_log_whose_process_was_killed_and_whose_machine_lives_goes_on(path: Path) -> None:
    file = open_log(path, "normal")
    *_, top = append(file, *"abc")
    kill(file)
    assert reopened(path, "normal") == top


def test_a_watermark_says_nothing_of_another_file(path: Path) -> None:
    left_by(path, "a")
    mark = WatermarkFile(path)
    assert mark.read() is not None
    path.unlink()
    assert mark.read() is None
    mark.close()


# --- whatever happens ---

happenings = st.lists(
    st.tuples(st.just("publish"), st.integers(1, 3))
    | st.sampled_from(["close", "kill", "backup", "over", "anew", "delete", "forget", "reboot"]).map(
        lambda name: (name, 0)
    ),
    max_size=12,
)


class Life:
    """A log and all that was ever acknowledged of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.boot = path, 1
        self.given: dict[Position, str] = {}
        self.backup: Files = {}
        self.open()

    def open(self) -> None:
        self.file = open_log(self.path, "normal", f"boot-{self.boot}")
        self.disk = files_of(self.path)
        held = contents(self.path)
        self.given |= {position: held[position] for position in held.keys() - self.given.keys()}
        assert {position: self.given[position] for position in held} == held, "an id names one publication"
        epoch = self.file.state.epoch
        assert {item for item in self.given if item.epoch == epoch} == held.keys(), "what it no longer has, it names"

    def publish(self, count: int) -> None:
        texts = [str(random.getrandbits(64)) for _ in range(count)]
        for position, text in zip(append(self.file, *texts), texts, strict=True):
            assert position not in self.given, "an id was given out twice"
            self.given[position] = text

    def happen(self, name: str, count: int) -> None:
        if name == "publish":
            self.publish(count)
            return
        if name == "backup":
            self.backup = {suffix: content for suffix, content in files_of(self.path).items() if suffix != "-top"}
            return
        self.file.close() if name == "close" else kill(self.file)
        mark = Path(f"{self.path}-top")
        if name in ("over", "anew") and self.backup:
            put_back(self.path, {**self.backup, "-top": mark.read_bytes()}, anew=name == "anew")
        elif name == "delete":
            put_back(self.path, {"-top": mark.read_bytes()})
        elif name == "forget":
            mark.unlink()
        elif name == "reboot":  # and all is lost that was not on the disk
            self.boot += 1
            put_back(self.path, self.disk)
        self.open()


@given(happenings)
def test_no_id_is_ever_given_out_twice(happenings: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as directory:
        life = Life(Path(directory) / "hub.db")
        for name, count in happenings:
            life.happen(name, count)
        life.happen("close", 0)
        life.file.close()
