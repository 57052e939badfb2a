"""The bytes on the wire, without any I/O: chunks, answers, and the markers in the events."""

import re
from collections.abc import Sequence
from typing import NamedTuple

HEAD_MAX = 16_384  # bytes
MARKER_MAX = 64  # bytes
HEADS_MAX = 256  # heads of answers that are remembered

_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)


class ChunkedDecoder:
    """A decoder of the chunked transfer coding (RFC 9112 section 7.1), for pieces cut anywhere. It ignores trailers."""

    __slots__ = ("_left", "_rest", "ended")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk still to come
        # The line end before a size belongs to the chunk before. As a part of the size line it allows one pattern for
        # all sizes; the first size gets here the line end that it lacks.
        self._rest = b"\r\n"
        self.ended = False

    @property
    def between_chunks(self) -> bool:
        """True when the next byte starts a chunk, as at the beginning."""
        return not self._left and self._rest == b"\r\n" and not self.ended

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`. Raises `ValueError` when it is not chunked."""
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
        """Keep the beginning of a size line. Raises `ValueError` when it cannot become one."""
        if not b"\r\n".startswith(rest[:2]) or b"\r\n" in rest[2:] or len(rest) > HEAD_MAX:
            raise ValueError("not a chunk size")
        self._rest = rest


def status_of(head: bytes) -> int:
    """Return the status in a response's head, 0 when it is none."""
    found = _STATUS.match(head)
    return int(found[1]) if found else 0


def is_chunked(head: bytes) -> bool:
    """Return True when the body after this head is chunked."""
    return _CHUNKED.search(head) is not None


class Answers:
    """The reader of the answers to POSTs, one at a time for each connection.

    It remembers heads: within a second, whose `date` they carry, a server's are equal, and one that was parsed before
    is a dictionary lookup (0.3 us instead of 4).
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[int, int | None]] = {}

    def status(self, data: bytes) -> int | None:
        """Return the status of an answer that is there with its whole body, else None. Raises `ValueError` when its
        body is not what its head says.
        """
        head, end, body = data.partition(b"\r\n\r\n")
        if not end:
            return None
        status, length = self._heads.get(head) or self._parse(head)
        complete = _all_chunks(body) if length is None else len(body) >= length
        return status if complete else None

    def _parse(self, head: bytes) -> tuple[int, int | None]:
        """Return the status, and the length of the body: None when it comes in chunks."""
        length = _LENGTH.search(head)
        parsed = status_of(head), None if is_chunked(head) else int(length[1]) if length else 0
        if len(self._heads) >= HEADS_MAX:
            self._heads.clear()
        self._heads[head] = parsed
        return parsed


def _all_chunks(body: bytes) -> bool:
    decoder = ChunkedDecoder()
    decoder.feed(body)
    return decoder.ended and body.endswith(b"\r\n\r\n")  # trailers included: the next answer follows


def marker(run: str, number: int) -> bytes:
    """Return how the marker of an event begins."""
    return b"@%b.%d." % (run.encode(), number)


def event_data(run: str, number: int, sent: int, size: int) -> bytes:
    """Return an event's data, of `size` bytes or what its marker needs. It is JSON: some hubs take nothing else."""
    text = f'{{"bench":"@{run}.{number}.{sent}!'
    return (text.ljust(size - 2, "x") + '"}').encode()


def request(head: bytes, events: Sequence[bytes]) -> bytes:
    """Return a request: its head up to the value of Content-Length, and the data of events, a line each."""
    body = b"\n".join(events)
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)


def marker_pattern(run: str) -> re.Pattern[bytes]:
    """Return the pattern that finds number and time in the data of a run's events."""
    return re.compile(rb"@" + run.encode() + rb"\.(\d+)\.(\d+)!")


class Batch(NamedTuple):
    """The events found in one read: their numbers and sending times."""

    numbers: list[int]
    sent: list[int]
    low: int
    high: int
    whole: bool  # each number from low to high once, in whatever order


def find_markers(pattern: re.Pattern[bytes], text: bytes) -> tuple[Batch | None, bytes]:
    """Return the markers in `text`, and the beginning of one at its end that the next read completes."""
    found = pattern.findall(text)
    start = text.rfind(b"@")
    rest = text[start:] if start > text.rfind(b"!") and len(text) - start < MARKER_MAX else b""
    if not found:
        return None, rest
    numbers, sent = [int(number) for number, _ in found], [int(moment) for _, moment in found]
    low, high = min(numbers), max(numbers)
    return Batch(numbers, sent, low, high, high - low + 1 == len(numbers) == len(set(numbers))), rest
