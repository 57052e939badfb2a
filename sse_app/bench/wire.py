"""What goes over the wire, without any I/O: chunks, answers, and the markers in the events."""

import re
from typing import NamedTuple

HEAD_MAX = 16_384
MARKER_MAX = 64

_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class ChunkedDecoder:
    """Chunked transfer coding (RFC 9112 section 7.1), fed with whatever the socket gave. Trailers are ignored."""

    __slots__ = ("_left", "_rest", "ended")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk still to come
        # The line end before a size belongs to the chunk before; taken as part of the size line there is one
        # pattern for all sizes, and the first one gets the line end that it lacks.
        self._rest = b"\r\n"
        self.ended = False

    @property
    def between_chunks(self) -> bool:
        """Whether the next byte starts a chunk, as it did at first."""
        return not self._left and self._rest == b"\r\n" and not self.ended

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. Raises `ValueError` when it is not chunked."""
        data, self._rest = self._rest + data, b""
        parts, position = [], 0
        while not self.ended:
            if self._left:
                part = data[position : position + self._left]
                parts.append(part)
                position += len(part)
                self._left -= len(part)
                if self._left:
                    break
            size = _CHUNK.match(data, position)
            if not size:
                self._keep(data[position:])
                break
            self._left = int(size[1], 16)
            self.ended = not self._left
            position = size.end()
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _keep(self, rest: bytes) -> None:
        """Wait for the rest of what may become a size line."""
        if not b"\r\n".startswith(rest[:2]) or b"\r\n" in rest[2:] or len(rest) > HEAD_MAX:
            raise ValueError("not a chunk size")
        self._rest = rest


def status_of(head: bytes) -> int:
    """The status of a response head, 0 for what is none."""
    found = _STATUS.match(head)
    return int(found[1]) if found else 0


def is_chunked(head: bytes) -> bool:
    """Whether the body after a head comes in chunks."""
    return _CHUNKED.search(head) is not None


def answer(data: bytes) -> int | None:
    """The status of a whole response with its body, None while some of it has yet to come."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    if is_chunked(head):
        decoder = ChunkedDecoder()
        decoder.feed(body)
        complete = decoder.ended and data.endswith(b"\r\n\r\n")  # all of it: the next answer follows on the connection
    else:
        length = _LENGTH.search(head)
        complete = len(body) >= (int(length[1]) if length else 0)
    return status_of(head) if complete else None


def event_data(run: str, number: int, sent: int, size: int) -> str:
    """An event's data: JSON, since some hubs take nothing else, of `size` bytes if the marker leaves that room."""
    marker = f'{{"bench":"@{run}.{number}.{sent}!'
    return marker.ljust(size - 2, "x") + '"}'


def marker_pattern(run: str) -> re.Pattern[bytes]:
    """What finds the number and the time in the data of a run's events."""
    return re.compile(rb"@" + run.encode() + rb"\.(\d+)\.(\d+)!")


class Batch(NamedTuple):
    """The events found in one read: their numbers and when each was sent."""

    numbers: list[int]
    sent: list[int]
    low: int
    high: int
    whole: bool  # each number from low to high once, in whatever order


def find_markers(pattern: re.Pattern[bytes], text: bytes) -> tuple[Batch | None, bytes]:
    """The markers in `text`, and a started one at its end that the next read has to complete."""
    found = pattern.findall(text)
    start = text.rfind(b"@")
    rest = text[start:] if start > text.rfind(b"!") and len(text) - start < MARKER_MAX else b""
    if not found:
        return None, rest
    numbers, sent = [int(number) for number, _ in found], [int(moment) for _, moment in found]
    low, high = min(numbers), max(numbers)
    return Batch(numbers, sent, low, high, high - low + 1 == len(numbers) == len(set(numbers))), rest
