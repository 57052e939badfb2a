"""The recording of all histories, and the comparison of a present transcript with it.

For each history a line: its number, the digest of its transcript, and a character for each block, which locates a
difference. Of every 50th history the whole transcript follows, so that a change of the wire can be read in it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from itertools import zip_longest
from pathlib import Path
from typing import Self

from tests.support.corpus.play import play
from tests.support.corpus.scripts import HISTORIES
from tests.support.corpus.transcript import blocks_of, digest_of, marks_of

PATH = Path(__file__).with_name("recorded.txt")
EVERY = 50  # of so many histories the last is recorded as a whole

TITLE = """\
The wire of {count:,} histories, made by `python3 -m tests.support.corpus --record`; tests/support/corpus/__init__.py
says when that may be done. In them: {found}.
"""

# Signs of the cases that must occur in the histories: of what does not occur the recording proves nothing.
WANTED = {
    "welcomes": r"^  event: welcome$",
    "resumed": r'"recovered":true',
    "complete": r'"complete":true',
    "incomplete": r'"complete":false',
    "trimmed": r'^  data: \{"requested":.*"reason":"trimmed"\}$',
    "other epochs": r'^  data: \{"requested":.*"reason":"epoch"\}$',
    "ahead": r'^  data: \{"requested":.*"reason":"ahead"\}$',
    "malformed": r'^  data: \{"requested":.*"reason":"malformed"\}$',
    "moved cursors": r"^  event: cursor$",
    "heartbeats": r"^  :$",
    "byes": r"^  event: bye$",
    "told to come back": r"^  -> \w+\n  retry: \d+\n$",
    "reused keys": r"KeyReused|key_reused",
    "overloaded": r"Overloaded| overloaded",
}


@dataclass(frozen=True)
class Row:
    digest: str
    marks: str

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(digest_of(text), marks_of(text))

    def __str__(self) -> str:
        return f"{self.digest} {self.marks}"


class Recording:
    """``rows`` by number, ``whole`` transcripts by number."""

    def __init__(self, rows: dict[int, Row], whole: dict[int, str]) -> None:
        self.rows, self.whole = rows, whole

    @classmethod
    def load(cls) -> Self:
        title, *transcripts = re.split(r"^(?=history \d+ )", PATH.read_text("utf-8"), flags=re.MULTILINE)
        rows = {}
        for line in title.split("\n\n")[1].splitlines():
            number, digest, marks = line.split(" ")
            rows[int(number)] = Row(digest, marks)
        return cls(rows, {int(text.split(" ", 2)[1]): text for text in transcripts})

    def difference(self, number: int, text: str) -> str | None:
        """Return in words the difference of this present transcript from the recorded one; None when both are equal."""
        row, whole = self.rows[number], self.whole.get(number)
        if digest_of(text) == row.digest:
            return None
        if whole is None:
            return _located(number, text, row.marks)
        lines = unified_diff(whole.splitlines(), text.splitlines(), "recorded", "now", lineterm="", n=6)
        return "\n".join([f"history {number} is not what was recorded:", *lines])


def _located(number: int, text: str, marks: str) -> str:
    """Return the first block that differs from the recording, which has only a mark of each block."""
    blocks = zip_longest(blocks_of(text), marks_of(text), marks)
    differing = next((block or "its end" for block, now, before in blocks if now != before), "one with the same mark")
    where = f"the first step that differs is now\n\n{differing}"
    return (
        f"history {number} is not what was recorded: {where}\n\n"
        f"`python3 -m tests.support.corpus --show {number}` shows all of it, on this tree and on one before the change."
    )


def differences(numbers: Iterable[int]) -> Iterator[str]:
    """Play these histories, and yield the differences from the recording."""
    recording = Recording.load()
    for number in numbers:
        if found := recording.difference(number, play(number)):
            yield found


def record() -> str:
    """Play all histories and write the recording. Return the cases that occur in them."""
    texts = [play(number) for number in range(HISTORIES)]
    found = _found(texts)
    rows = "\n".join(f"{number} {Row.of(text)}" for number, text in enumerate(texts))
    title = TITLE.format(count=HISTORIES, found=found)
    PATH.write_text(f"{title}\n{rows}\n\n{''.join(texts[EVERY - 1 :: EVERY])}", "utf-8")
    return found


def _found(texts: list[str]) -> str:
    counts = {name: sum(len(re.findall(sign, text, re.MULTILINE)) for text in texts) for name, sign in WANTED.items()}
    missing = [name for name, count in counts.items() if not count]
    assert not missing, f"not in any history: {', '.join(missing)}"
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
