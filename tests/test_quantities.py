"""Numbers are written in ASCII digits, as documented, and in no other form that Python accepts."""

from collections.abc import Callable

import pytest

from sse_app.quantities import duration, number, size, truth, whole

READERS = (whole, number, duration, size, truth)
NOT_A_NUMBER = (
    *("", " ", "5 ", " 5", "5\n", "\t5", "5 s", "5\u00a0s"),  # white space
    *("١١", "５", "५", "²", "Ⅷ", "五"),  # digits of other scripts, and other numeric characters
    *("+5", "-5", "1_000", "1,000", "1e3", "0x10", "1.", ".", "1.5.5", "5Ki", "inf", "nan", "Infinity", "5 5", "five"),
)


def reads(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("text", NOT_A_NUMBER, ids=ascii)
def test_what_is_not_plain_digits_is_refused(read: Callable[[str], object], text: str) -> None:
    assert not reads(read, text)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole, "0", 0),
        (whole, "007", 7),
        (number, "0.5", 0.5),
        (number, ".5", 0.5),
        (number, "8", 8.0),
        (duration, "2.5", 2.5),
        (duration, "500ms", 0.5),
        (duration, "1.5h", 5400.0),
        (duration, "7d", 604_800.0),
        (size, "65536", 65_536),
        (size, "12B", 12),
        (size, "1.5KiB", 1536),
        (size, "2GiB", 2 * 1024**3),
        (truth, "Yes", True),
        (truth, "off", False),
        (truth, "0", False),
    ],
)
def test_what_is_documented_is_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((whole, text) for text in ("1.5", "5s", "9" * 5000)),
        *((number, text) for text in ("5s", "5B")),
        *((duration, text) for text in ("5S", "5KiB", "5y")),
        *((size, text) for text in ("5s", "5KB", "5kib", "9" * 400)),
        *((truth, text) for text in ("2", "maybe", "да", "ｔｒｕｅ")),
    ],
)
def test_a_unit_of_something_else_is_refused(read: Callable[[str], object], text: str) -> None:
    assert not reads(read, text)
