"""The wire is as it was recorded, byte for byte, in 2,000 histories; see ``tests/support/corpus``."""

import pytest

from tests.support.corpus.play import play
from tests.support.corpus.recording import EVERY, Recording, Row, differences
from tests.support.corpus.scripts import HISTORIES, script
from tests.support.corpus.transcript import blocks_of, lines_of

PART = 50  # histories in one test


@pytest.mark.parametrize("first", range(0, HISTORIES, PART))
def test_the_wire_is_as_it_was_recorded(first: int) -> None:
    found = list(differences(range(first, first + PART)))
    assert not found, "\n\n".join([f"{len(found)} of {PART} histories differ. The first ones:", *found[:3]])


# The corpus itself


def test_each_history_is_recorded_and_each_fiftieth_whole() -> None:
    recording = Recording.load()
    assert list(recording.rows) == list(range(HISTORIES))
    assert list(recording.whole) == list(range(EVERY - 1, HISTORIES, EVERY))
    for number, text in recording.whole.items():
        assert Row.of(text) == recording.rows[number]


def test_a_script_is_made_of_its_number_alone() -> None:
    assert script(7) == script(7)
    assert script(7) != script(8)


@pytest.mark.parametrize("whole", [True, False], ids=["recorded whole", "recorded as a digest"])
def test_one_other_byte_is_told_with_its_place(whole: bool) -> None:
    recording, number = Recording.load(), EVERY - 1
    text = play(number)
    assert recording.difference(number, text) is None
    if not whole:
        del recording.whole[number]
    difference = recording.difference(number, text.replace("\n  event: bye\n", "\n  event: Bye\n"))
    assert difference is not None
    assert "  event: Bye\n" in difference
    assert ("-  event: bye\n" in difference) == whole


def test_a_transcript_shows_every_byte_on_one_line_each() -> None:
    data = b"data: a \n\ndata: \xff\xe2\x80\xa8\x00" + b"x" * 50
    assert lines_of(data) == [r"data: a\x20", "", r"data: \udcff\u2028\x00{x*50} (unfinished)"]
    assert blocks_of("one\n  a\n\n  b\ntwo\n") == ["one\n  a\n\n  b", "two"]
