"""The characters that a name may have."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.characters import acceptable

BIDI = [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))]
REFUSED = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029", *BIDI, "\ud800", "\udfff"]
# ZWNJ, ZWJ, a family, no-break and ideographic space, soft hyphen, zero-width space and BOM, marks of direction that
# override nothing, a private and an unassigned character.
UNUSUAL = [
    "\u200c",
    "\u200d",
    "👩‍👩‍👧",
    "\xa0",
    "\u3000",
    "\xad",
    "\u200b",
    "\ufeff",
    "\u200e",
    "\u200f",
    "\ue000",
    "\U000e0fff",
]


@pytest.mark.parametrize("char", REFUSED, ids=ascii)
def test_what_controls_and_what_cannot_be_sent_is_refused(char: str) -> None:
    assert not acceptable(f"a{char}b")


@pytest.mark.parametrize("char", UNUSUAL, ids=ascii)
def test_what_is_merely_unusual_is_not(char: str) -> None:
    assert acceptable(f"a{char}b")


@given(st.text(st.characters(), max_size=20))
def test_of_any_text_it_is_those_characters_alone(text: str) -> None:
    """This holds also for text that Python calls printable, for which the check has a short way."""
    assert acceptable(text) == (not re.search(f"[{''.join(map(re.escape, REFUSED[:-2]))}\ud800-\udfff]", text))
