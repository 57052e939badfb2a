"""The Content-Types that a publication may have."""

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sse_app import content_type
from sse_app.content_type import CACHED_MAX, UTF8_LABELS, is_json
from sse_app.errors import UnsupportedType


@pytest.mark.parametrize(
    ("given", "json"),
    [
        ("text/plain", False),
        ("application/json", True),
        ("Application/JSON", True),
        ("application/vnd.api+json", True),
        ("application/cloudevents+JSON; charset=utf-8", True),
        ("application/json-seq", False),
        ("application/x-www-form-urlencoded", False),
        ("text/plain;charset=UTF-8", False),
        ("text/plain \t;\t charset=utf-8", False),
        ("text/plain; CHARSET=utf-8", False),
        ('text/plain; charset="utf-8"', False),
        ('text/plain; charset=" UTF-8 "', False),
        ("text/plain; charset=", False),
        ('text/plain; charset=""', False),
        ("text/plain; charset=; charset=utf-8", False),
        ("application/json;", True),
        ("application/json; ;; charset=utf-8;", True),
        ('application/json; profile="https://example.com/a;b\\"c; charset=latin-1"', True),
        ('text/plain; name="\xe9\t"; charset=utf8', False),
        (f"application/json; x={'y' * CACHED_MAX}", True),
    ],
)
def test_json_is_told_from_text(given: str, json: bool) -> None:
    assert is_json(given) is json


@pytest.mark.parametrize("label", sorted(UTF8_LABELS))
def test_every_label_of_utf8_and_of_its_subset_is_utf8(label: str) -> None:
    for spelt in (label, label.upper(), f'"{label}"'):
        assert not is_json(f"text/plain; charset={spelt}")


@pytest.mark.parametrize(
    "given",
    [
        "", " ", "text", "json", "/", "text/", "/plain", "text//plain", "text/plain/x", "text /plain", "te\xe9t/plain",
        "text/plain, text/plain", "text/plain charset=utf-8", "text/plain; charset", "text/plain; =utf-8",
        "text/plain; charset =utf-8", "text/plain; charset= utf-8", "text/plain; charset=utf 8",
        "text/plain; charset=\xe9", 'text/plain; charset="utf-8', 'text/plain; charset=utf-8"',
        'text/plain; charset="utf-8"x', 'text/plain; x="\0"',
        "text/plain; charset*=utf-8''x", "text/plain; charset*0=utf-8", "text/plain; charset*0=y; charset*=utf-8''x",
        f"text/plain; charset*{'9' * 5000}=x", "text/plain; charset*=%00'%00'%00", f"text/plain{'; x' * 5000}",
        f'text/plain; x="{"a" * 100_000}', f"text/plain{';' * 100_000}=",
    ],
    ids=lambda given: ascii(given[:40]),
)  # fmt: skip
def test_what_is_malformed_is_refused(given: str) -> None:
    with pytest.raises(UnsupportedType, match="malformed"):
        is_json(given)


@pytest.mark.parametrize(
    "given",
    [
        "multipart/form-data; boundary=x", "MULTIPART/mixed", "text/plain; charset=latin-1",
        "text/plain; charset=utf-16",
        'application/json; charset="utf-8x"', 'text/plain; charset="\xe9"',
        "text/plain; charset=utf-8; charset=latin-1",
        "text/plain; charset=utf-8; charset=utf-8", "text/plain; charset=utf-7", "text/plain; charset=%75tf-8",
    ],
)  # fmt: skip
def test_what_is_neither_json_nor_text_in_utf8_is_refused(given: str) -> None:
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UnsupportedType, match="data as it is"):
            is_json(given)


@given(
    st.text(st.characters(max_codepoint=255))
    | st.text('/;="\\ charset*text+json-utf8\t,', max_size=40).map("a/b;".__add__)
)
@example("a/b;charset*0*=\xe9")
def test_whatever_comes_is_json_or_text_or_refused(given: str) -> None:
    with suppress(UnsupportedType):
        assert is_json(given) in (True, False)


def test_no_long_one_is_kept() -> None:
    kept = content_type._cached.cache_info().currsize
    for number in range(9):
        is_json(f"text/plain; x={number}{'y' * CACHED_MAX}")
    assert content_type._cached.cache_info().currsize == kept
