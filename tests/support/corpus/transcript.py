"""The transcript of a history: a block for each step of its script, a line for each line on the wire.

Control characters and what is not ASCII are escaped as in Python, and a character that comes 41 times or more is
``{x*8192}``, so that a recorded history can be read, searched and compared in any editor.
"""

import base64
import re
from hashlib import sha256

_RUN = re.compile(r"(.)\1{40,}", re.DOTALL)
_ESCAPED_RUN = re.compile(r"(\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|[^\\])\1{40,}")


def escaped(line: str) -> str:
    """A line of a stream as it stands in a transcript."""
    text = shortened(line, _RUN).encode("unicode_escape").decode("ascii")
    return f"{text[:-1]}\\x20" if text.endswith(" ") else text  # editors drop spaces there


def shortened(text: str, run: re.Pattern[str] = _ESCAPED_RUN) -> str:
    """The text, in which no character comes more than 40 times in a row."""
    return run.sub(lambda found: f"{{{found[1]}*{len(found[0]) // len(found[1])}}}", text)


def lines_of(data: bytes) -> list[str]:
    """The lines of a piece of a stream, escaped; an unfinished one says so."""
    *lines, rest = data.decode("utf-8", "surrogateescape").split("\n")
    return [escaped(line) for line in lines] + ([f"{escaped(rest)} (unfinished)"] if rest else [])


class Transcript:
    """The blocks of one history."""

    def __init__(self, title: str) -> None:
        self._lines = [title]

    def begin(self, step: str) -> None:
        self._lines.append(step)

    def add(self, *lines: str) -> None:
        self._lines += [f"  {line}" if line else "" for line in lines]

    def text(self) -> str:
        return "\n".join([*self._lines, ""])


def blocks_of(text: str) -> list[str]:
    """The blocks of a transcript: each begins with a line that is not indented."""
    return re.split(r"\n(?=\S)", text.removesuffix("\n"))


def digest_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def marks_of(text: str) -> str:
    """A character for each block, which locates a difference. Of 64 blocks that differ one has the same by chance."""
    marks = (base64.urlsafe_b64encode(sha256(block.encode()).digest()[:3])[:1] for block in blocks_of(text))
    return b"".join(marks).decode()
