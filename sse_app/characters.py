"""The characters that a name of ours may have: an event type, a topic."""

import re

# Control characters (C0, DEL, C1), among them every line end but two; those two; what turns the direction of the text
# around it, so that a page shows another name than the one that was compared; lone surrogates, which are not in UTF-8.
_REFUSED = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
REFUSED = "no control character, line end, bidi override or lone surrogate"


def acceptable(text: str) -> bool:
    """Return True when no character is refused. Invisible ones are not: joiners belong to words and to emoji (ZWNJ in
    Persian, ZWJ in families), U+00A0 and U+3000 to names, and what is unassigned differs from one Python to the next.
    """
    return text.isprintable() or not _REFUSED.search(text)  # what is printable has none of them, and is found faster
