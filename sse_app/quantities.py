"""Numbers as people write them in settings, options and URLs: ASCII digits, with a unit where one is defined.

``int`` and ``float`` read more than our documentation allows: digits of every script, ``1_000``, ``+5``, ``1e3``,
``inf``, white space. With them a typing mistake would pass for a number.
"""

import re
from collections.abc import Mapping

DURATIONS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
SIZES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "": 1}
_WHOLE = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)([A-Za-z]*)")
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def whole(text: str) -> int:
    """Return the number of ``10000``. Raises ValueError, as all functions here do."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(text)
    return int(text)


def number(text: str, units: Mapping[str, float] = {"": 1}) -> float:
    """Return the number of ``0.5`` or ``.5``, times the unit behind it. Units may include the empty one."""
    match = _NUMBER.fullmatch(text)
    if not match or match[2] not in units:
        raise ValueError(text)
    return float(match[1]) * units[match[2]]


def duration(text: str) -> float:
    """Return the seconds of ``15``, ``15s``, ``500ms``, ``5m``, ``24h`` or ``7d``."""
    return number(text, DURATIONS)


def size(text: str) -> int:
    """Return the bytes of ``65536``, ``64KiB``, ``1MiB`` or ``2GiB``."""
    try:
        return int(number(text, SIZES))
    except OverflowError:
        raise ValueError(text) from None


def truth(text: str) -> bool:
    """Return the truth of ``true``, ``yes``, ``on``, ``1`` or their opposites, in any case."""
    if text.lower() not in _TRUTH:
        raise ValueError(text)
    return _TRUTH[text.lower()]
