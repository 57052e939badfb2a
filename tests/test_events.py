"""Events on the wire, byte by byte, and the decoder against an independent implementation of the standard."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sse_app.errors import InvalidEvent, ReservedEvent
from sse_app.events import RESERVED_TYPES, TYPE_MAX, Event, EventDecoder, Notice, check_type, encode
from tests.support import whatwg
from tests.test_characters import REFUSED, UNUSUAL

STATIC = Path(__file__).parent.parent / "static"
# Characters that break framing, that look as if they did, and that a careless decoder gets wrong.
SPECIAL = ["\r", "\n", "\r\n", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\ufeff", "😀", " ", ":", "é"]
FIELDS = ["data:", "event: x", "id: 9", "retry: 1", "data", "\n\n", ":", "\ndata: y\n\nevent: open"]
texts = st.lists(st.one_of(st.sampled_from(SPECIAL + FIELDS), st.text(max_size=8)), max_size=8).map("".join)
lines = texts.map(lambda text: text.replace("\r", "").replace("\n", ""))
ids = lines.map(lambda text: text.replace("\0", ""))
events = st.builds(
    Event,
    data=texts,
    type=lines.filter(bool),
    id=st.none() | ids,
    retry=st.none() | st.integers(0, 10**9),
)
# Streams of any server, valid or not: whole fields, pieces of fields, and any bytes.
FRAGMENTS = [b"data", b":", b" ", b"id", b"id: 7", b"id:\n\n", b"id: \0\n", b"event: x", b"retry: 12", b"0"]
BREAKS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"\xef", b"\xe2\x82", b"\xac", b"\xf0\x9f\x98\x80"]
EVENT = [b"data: a\n\n"]
streams = st.lists(st.sampled_from(FRAGMENTS + BREAKS + EVENT) | st.binary(max_size=4), max_size=30).map(b"".join)


def newlines(text: str) -> str:
    """The text with each line end as a decoder returns it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decoded(*chunks: bytes) -> whatwg.Stream:
    """The events that EventDecoder reads from a stream in these pieces, in the oracle's form."""
    decoder, result = EventDecoder(), whatwg.Stream()
    for chunk in chunks:
        for event in decoder.feed(chunk):
            result.events.append(whatwg.Dispatched(event.type, event.data, event.id or ""))
    result.last_event_id, result.reconnection_time = decoder.last_event_id, decoder.retry
    return result


def expected(stream: bytes) -> whatwg.Stream:
    """The events of the oracle, without the fields that only the oracle has."""
    parsed = whatwg.parse(stream)
    return whatwg.Stream(parsed.events, parsed.last_event_id, parsed.reconnection_time)


# --- encoding ---


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (Event("hello"), b"data: hello\n\n"),
        (Event(""), b"data: \n\n"),
        (Event("a\nb"), b"data: a\ndata: b\n\n"),
        (Event("a\r\nb\rc\n\rd"), b"data: a\ndata: b\ndata: c\ndata: \ndata: d\n\n"),
        (Event("\n"), b"data: \ndata: \n\n"),
        (Event("a\n"), b"data: a\ndata: \n\n"),
        (Event(" a"), b"data:  a\n\n"),
        (Event("\0\x85\u2028\ufeff"), "data: \0\x85\u2028\ufeff\n\n".encode()),
        (Event("😀"), b"data: \xf0\x9f\x98\x80\n\n"),
        (Event("a", "message"), b"data: a\n\n"),
        (Event("a", "tick"), b"event: tick\ndata: a\n\n"),
        (Event("a", " :"), b"event:  :\ndata: a\n\n"),
        (Event("a", id="e-1"), b"id: e-1\ndata: a\n\n"),
        (Event("a", id=""), b"id: \ndata: a\n\n"),
        (Event("a", retry=0), b"retry: 0\ndata: a\n\n"),
        (Event("a", "t", "i", 3000), b"retry: 3000\nid: i\nevent: t\ndata: a\n\n"),
    ],
)
def test_encode_gives_exactly_these_bytes(event: Event, wire: bytes) -> None:
    assert encode(event) == wire


def test_a_thousand_lines_are_a_thousand_data_fields() -> None:
    wire = encode(Event("\n".join(map(str, range(1_000)))))
    assert whatwg.parse(wire).fields == [("data", str(number)) for number in range(1_000)]


@given(events)
@example(Event("x\n\nevent: error\ndata: y\n\n"))
@example(Event("\r"))
@settings(max_examples=5 * settings().max_examples)  # A1: 10,000 with --hypothesis-profile=thorough
def test_any_event_is_one_event_with_its_own_fields_for_a_browser(event: Event) -> None:
    sentinel = Event("sentinel", "sentinel", "sentinel")
    parsed = whatwg.parse(encode(sentinel) + encode(event) + encode(sentinel))
    id = "sentinel" if event.id is None else event.id
    assert parsed.events[1:-1] == [whatwg.Dispatched(event.type, newlines(event.data), id)]
    assert parsed.events[0] == parsed.events[2] == whatwg.Dispatched("sentinel", "sentinel", "sentinel")
    assert parsed.reconnection_time == event.retry
    names = [name for name, _ in parsed.fields[3:-3]]
    assert names.count("data") == newlines(event.data).count("\n") + 1
    assert set(names) - {"data", "event", "id", "retry"} == set()


@given(st.sampled_from("\n\r"), texts, texts)
def test_a_line_break_in_type_or_id_is_refused(line_end: str, before: str, after: str) -> None:
    text = before + line_end + after
    with pytest.raises(InvalidEvent):
        Event("a", type=text)
    with pytest.raises(InvalidEvent):
        Event("a", id=text)


@pytest.mark.parametrize("wrong", [{"type": ""}, {"id": "a\0b"}, {"retry": -1}])
def test_an_event_that_a_browser_would_misread_cannot_be_made(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidEvent):
        Event("a", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("event", [Event("\ud800"), Event("a", "\udfff"), Event("a", id="\udc80")])
def test_a_lone_surrogate_is_refused(event: Event) -> None:
    with pytest.raises(InvalidEvent, match="surrogate"):
        encode(event)


# --- types that publishers may use ---


@pytest.mark.parametrize(
    "type",
    [
        "message",
        "tick",
        "order created",
        "héllo",
        "x" * TYPE_MAX,
        "Open",
        ":",
        "a$",
        "endless",
        *(f"a{char}b" for char in UNUSUAL),
    ],
    ids=ascii,
)
def test_a_type_of_acceptable_characters_is_allowed(type: str) -> None:
    assert check_type(type) == type


@pytest.mark.parametrize("type", [*sorted(RESERVED_TYPES), "$", "$presence", "$" * (TYPE_MAX + 1)])
def test_the_hubs_own_types_are_reserved(type: str) -> None:
    assert {"open", "error", "welcome", "gap", "bye", "cursor", "end", "presence"} == RESERVED_TYPES
    with pytest.raises(ReservedEvent):
        check_type(type)


def test_pages_have_the_same_list_of_notices() -> None:
    script = (STATIC / "sse-app.js").read_text()
    notices = re.search(r"^const \[(.*)\] = \[(.*)\];", script, re.MULTILINE)
    assert notices
    assert notices[1].split(", ") == list(Notice.__members__)
    assert re.findall('"([a-z]+)"', notices[2]) == list(Notice)
    assert f"NOTICES = new Set([{', '.join(Notice.__members__)}]);" in script


@pytest.mark.parametrize("type", ["", "x" * (TYPE_MAX + 1), *(f"a{char}b" for char in REFUSED)], ids=ascii)
def test_a_type_with_a_refused_character_is_refused(type: str) -> None:
    with pytest.raises(InvalidEvent):
        check_type(type)


# --- decoding ---

LONG = b":" + b"x" * 2_000


@pytest.mark.parametrize(
    ("stream", "events", "last_event_id", "retry"),
    [  # in the order of the web platform tests eventsource/format-*, with our own bytes
        pytest.param(b"\xef\xbb\xbfdata:a\n\n\xef\xbb\xbfdata:b\n\ndata:c\n\n", "a c", "", None, id="bom"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata:a\n\ndata:b\n\n", "b", "", None, id="bom-2"),
        pytest.param(b"data:a\r:\0\n:\r\ndata:b\n" + LONG + b"\rdata:c\n:data\n\n", "a/b/c", "", None, id="comments"),
        pytest.param(b"retry:900\ndata:a\n\nid:i\ndata:b", "a", "", 900, id="data-before-final-empty-line"),
        pytest.param(b"data:\n\ndata\ndata\n\ndata:a\n\n", " / a", "", None, id="field-data"),
        pytest.param(b"event: \ndata:a\n\n", "a", "", None, id="field-event-empty"),
        pytest.param(b"event:t\ndata:a\n\ndata:b\n\n", "t:a b", "", None, id="field-event"),
        pytest.param(b"id:1\ndata:a\n\ndata:b\n\n", "a@1 b@1", "1", None, id="field-id"),
        pytest.param("id:…\ndata:…\n\n".encode(), "…@…", "…", None, id="field-id-2"),
        pytest.param(b"id:1\ndata:a\n\nid\ndata:b\n\ndata:c\n\n", "a@1 b c", "", None, id="field-id-3"),
        pytest.param(b"id:1\ndata:a\n\nid:2\0\ndata:b\n\n", "a@1 b@1", "1", None, id="field-id-null"),
        pytest.param(
            b"data:\0\ndata:  b\rData:x\ndata\0:x\n\0data:x\nda-ta:x\rdata_x\ndata:\r\n data:x\ndata:c\n\n",
            "\0/_b//c",
            "",
            None,
            id="field-parsing",
        ),
        pytest.param(b"retry:900\nretry:100x\nretry:-1\nretry:1.5\ndata:a\n\n", "a", "", 900, id="field-retry-bogus"),
        pytest.param("retry:²\nretry:٣\ndata:a\n\n".encode(), "a", "", None, id="retry of other digits"),
        pytest.param(b"retry\ndata:a\n\n", "a", "", None, id="field-retry-empty"),
        pytest.param(b"retry:0900\ndata:a\n\n", "a", "", 900, id="field-retry"),
        pytest.param(b"data:a\n data\ndata\nfoo:x\nonlytext\n:note\ndata:b\n\n", "a//b", "", None, id="field-unknown"),
        pytest.param(b"data:\ta\rdata: \ndata:b\n\n", "\ta//b", "", None, id="leading-space"),
        pytest.param(b"data:a\r\ndata\ndata:b\r\n\r", "a//b", "", None, id="newlines"),
        pytest.param(b"data:\0\n\n\n\n", "\0", "", None, id="null-character"),
        pytest.param("data:ok…\n\n".encode(), "ok…", "", None, id="utf-8"),
        pytest.param(b"data:\xff\xe2\x82\n\n", "\ufffd\ufffd", "", None, id="not utf-8"),
        pytest.param(b"id: 5\n\n", None, "5", None, id="an id alone moves the cursor"),
        pytest.param(b"id: 5\nevent: cursor\n\ndata: a\n\n", "a@5", "5", None, id="no type of a block without data"),
        pytest.param(b"retry: 1\n\n: idle\n\n", None, "", 1, id="no event at all"),
    ],
)
def test_streams_of_every_format_are_read_as_browsers_do(
    stream: bytes, events: str | None, last_event_id: str, retry: int | None
) -> None:
    """In the table an event is ``type:data@id``; ``/`` is a line end in the data and ``_`` a space."""

    def written(event: whatwg.Dispatched) -> str:
        type = "" if event.type == "message" else f"{event.type}:"
        id = event.last_event_id and f"@{event.last_event_id}"
        return type + event.data.replace(" ", "_").replace("\n", "/") + id

    for result in (decoded(stream), decoded(*(stream[at : at + 1] for at in range(len(stream)))), expected(stream)):
        assert (None if not result.events else " ".join(map(written, result.events))) == events
        assert (result.last_event_id, result.reconnection_time) == (last_event_id, retry)


def test_a_decoded_event_carries_the_retry_of_its_own_block() -> None:
    first, second = EventDecoder().feed(b"retry: 7\ndata: a\n\ndata: b\n\n")
    assert (first, second) == (Event("a", retry=7), Event("b"))


def test_a_retry_of_thousands_of_digits_does_not_break_the_reader() -> None:
    assert decoded(b"retry: 5\nretry: " + b"1" * 5_000 + b"\ndata: a\n\n").reconnection_time == 5


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_every_cut_gives_the_same_events(line_end: bytes) -> None:
    stream = "\ufeffretry: 5\nid: é\ndata: 😀\ndata:\n\n: idle\n\nevent: t\ndata: b\n\nid: 2\nevent: c\n\n".encode()
    stream = stream.replace(b"\n", line_end)
    whole = expected(stream)
    assert [event.data for event in whole.events] == ["😀\n", "b"]
    for cut in range(len(stream) + 1):
        assert decoded(stream[:cut], stream[cut:]) == whole, cut


@given(streams, st.data())
@settings(max_examples=5 * settings().max_examples)
def test_any_stream_cut_anywhere_is_read_as_the_standard_says(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = expected(stream)
    assert decoded(*pieces) == whole
    assert decoded(*(stream[at : at + 1] for at in range(len(stream)))) == whole


@given(st.lists(events, max_size=5))
def test_what_was_encoded_is_decoded(sent: list[Event]) -> None:
    stream = b"".join(map(encode, sent))
    result = decoded(stream)
    assert result == expected(stream)
    assert [(event.type, event.data) for event in result.events] == [
        (event.type, newlines(event.data)) for event in sent
    ]


def test_between_a_cr_and_its_lf_nothing_is_lost_or_doubled() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [Event("a")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: b\r") == []
    assert decoder.feed(b"\n\r\n") == [Event("b")]
