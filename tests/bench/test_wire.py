"""Chunks, answers and markers, wherever two reads divide them."""

import json

import pytest

from sse_app.bench.wire import HEADS_MAX, Answers, ChunkedDecoder, event_data, find_markers, marker_pattern, request
from tests.bench.fake_hub import chunk


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n2\r\n\r\n\r\n3;name=value\r\nxyz\r\n0\r\n\r\n", b"a\r\nxyz"),
        (b"00A \t;x\r\n0123456789\r\n00\r\nTrailer: 1\r\n\r\n", b"0123456789"),
        (b"1f\r\n" + b"\r\n0\r\n\r\n" * 4 + b"abc\r\n0\r\n\r\n", b"\r\n0\r\n\r\n" * 4 + b"abc"),
        (b"0\r\n\r\n", b""),
    ],
)
def test_chunked_body_is_the_same_wherever_it_is_cut(wire: bytes, body: bytes) -> None:
    for first in range(len(wire) + 1):
        for second in range(first, len(wire) + 1):
            decoder = ChunkedDecoder()
            parts = [decoder.feed(part) for part in (wire[:first], wire[first:second], wire[second:])]
            assert b"".join(parts) == body
            assert decoder.ended


def test_chunked_body_comes_byte_by_byte() -> None:
    decoder = ChunkedDecoder()
    assert b"".join(decoder.feed(bytes([byte])) for byte in chunk(b"data: x\n\n") * 3) == b"data: x\n\n" * 3
    assert decoder.between_chunks
    assert not decoder.ended


@pytest.mark.parametrize(
    "wire", [b"x\r\n", b"-5\r\nhello\r\n", b"0x5\r\nhello", b"5\r\nhelloX\r\n", b"\r\n\r\n", b"1_0\r\n", b"f" * 20_000]
)
def test_what_is_not_chunked_is_an_error(wire: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        ChunkedDecoder().feed(wire)


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200),
        (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\n{", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 503 Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 503),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"SSH-2.0-what\r\n\r\n", 0),
    ],
)
def test_answer_is_complete_or_not(wire: bytes, status: int | None) -> None:
    answers = Answers()
    assert answers.status(wire) == status
    assert answers.status(wire) == status  # its head is known now


def test_a_known_head_says_how_much_must_follow() -> None:
    answers, head = Answers(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    assert [answers.status(head + body) for body in (b"{}", b"{", b"", b"[]")] == [200, None, None, 200]


def test_not_every_head_is_remembered() -> None:
    answers = Answers()
    for number in range(2 * HEADS_MAX):
        assert answers.status(b"HTTP/1.1 204 No Content\r\nX: %d\r\n\r\n" % number) == 204
    assert len(answers._heads) <= HEADS_MAX


@pytest.mark.parametrize("payload", [1, 60, 100, 5000])
def test_event_data_is_json_of_the_size_asked_for_that_holds_its_marker(payload: int) -> None:
    data = event_data("beef", 12, 345, payload)
    assert json.loads(data)
    assert len(data) == max(payload, len('{"bench":"@beef.12.345!"}'))
    batch, rest = find_markers(marker_pattern("beef"), data)
    assert batch
    assert (batch.numbers, batch.sent, rest) == ([12], [345], b"")


def test_a_request_has_each_event_in_a_line() -> None:
    assert request(b"Content-Length: ", [b"{}"]) == b"Content-Length: 2\r\n\r\n{}"
    assert request(b"Content-Length: ", [b"{}", b"[1]"]) == b"Content-Length: 6\r\n\r\n{}\n[1]"


def test_markers_of_another_run_are_none() -> None:
    assert find_markers(marker_pattern("beef"), b"data: @cafe.1.2!\n\n") == (None, b"")
