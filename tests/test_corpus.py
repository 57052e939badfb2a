"""The wire is as it was recorded, byte for byte, in 2,000 histories; see ``tests/support/corpus``."""

import pytest

from tests.support.corpus import changes
from tests.support.corpus.changes import with_matched_topics
from tests.support.corpus.play import play
from tests.support.corpus.recording import EVERY, Recording, Row, differences
from tests.support.corpus.scripts import HISTORIES, script
from tests.support.corpus.transcript import blocks_of, lines_of

PART = 50  # histories in one test
WELCOME = '  data: {{"message":"Welcome!","topics":{},"last":{{"id":"e-1","topics":{}}},"retry":1}}\n'


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


@pytest.mark.parametrize(
    ("patterns", "topics", "named"),
    [
        ("[]", '["a","b/c"]', '["a","b/c"]'),
        ('["a"]', '["a","a/b","b"]', '["a"]'),
        ('["a/*"]', '["a","a/b","a/b/c"]', '["a/b"]'),
        ('["a/**"]', '["b","a","a/b","a/b/c","ab"]', '["a","a/b","a/b/c"]'),
        ('["**"]', '["a","b/c"]', '["a","b/c"]'),
        ('["*"]', '["a","b/c"]', '["a"]'),
        ('["a/*/c","b"]', '["a/x/c","a/x","b","b/c"]', '["a/x/c","b"]'),
        ('["a.b"]', '["a.b","axb"]', '["a.b"]'),
        (r'["\xfc/*"]', r'["\xfc/1","u/1"]', r'["\xfc/1"]'),
        ('["a"]', "[]", "[]"),
    ],
)
def test_a_welcome_by_the_rule_names_the_topics_that_its_filter_matches(patterns: str, topics: str, named: str) -> None:
    around = "  data: {}\n"
    before, after = (f"{around}{WELCOME.format(patterns, names)}{around}" for names in (topics, named))
    assert with_matched_topics(before) == after


def test_the_change_since_the_recording_is_held_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording.load()
    number = next(number for number, text in recording.whole.items() if with_matched_topics(text) != text)
    text = recording.whole[number]
    monkeypatch.setattr(changes, "LAST_NAMES_MATCHED_TOPICS", True)
    assert recording.difference(number, text) is not None
    assert recording.difference(number, with_matched_topics(text)) is None
    monkeypatch.setattr(changes, "LAST_NAMES_MATCHED_TOPICS", False)
    assert recording.difference(number, with_matched_topics(text)) is not None


def test_a_transcript_shows_every_byte_on_one_line_each() -> None:
    data = b"data: a \n\ndata: \xff\xe2\x80\xa8\x00" + b"x" * 50
    assert lines_of(data) == [r"data: a\x20", "", r"data: \udcff\u2028\x00{x*50} (unfinished)"]
    assert blocks_of("one\n  a\n\n  b\ntwo\n") == ["one\n  a\n\n  b", "two"]
