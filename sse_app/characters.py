"""The characters that an event type or a topic may have."""

import re

# Control characters (C0, DEL, C1), which include all line ends but U+2028 and U+2029; these two; bidi controls, which
# make a page show another name than the one that was compared; lone surrogates, which UTF-8 cannot encode.
_REFUSED = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
REFUSED = "no control character, line end, bidi override or lone surrogate"


def acceptable(text: str) -> bool:
    """Return True when no character is refused. Invisible characters are accepted: joiners belong to words and to emoji
    (ZWNJ in Persian, ZWJ in families), U+00A0 and U+3000 to names. Unassigned ones are too: Pythons differ in them.
    """
    return text.isprintable() or not _REFUSED.search(text)  # isprintable() is faster, and excludes all refused ones
