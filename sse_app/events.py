"""Server-Sent Events on the wire: one event, its encoding, and an incremental decoder.

The terms and the rules are those of the WHATWG HTML standard, section 9.2 (Server-sent events). Pure: no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum

from sse_app.characters import REFUSED, acceptable
from sse_app.errors import InvalidEvent, ReservedEvent

MEDIA_TYPE = "text/event-stream"
TYPE_MAX = 128  # characters
RETRY_DIGITS = 15  # 30,000 years. int() raises for more than 4,300 digits, and no stream may end its reader by that.
BOM = b"\xef\xbb\xbf"


class Notice(StrEnum):
    """The types of what the hub itself says on a stream. ``static/sse-app.js`` has the same list."""

    WELCOME = "welcome"
    GAP = "gap"
    CURSOR = "cursor"  # always without data, so that no client dispatches it (9.2.6)
    BYE = "bye"


# No publisher may use these, nor what begins with the prefix. `open` and `error` would fire the page's own EventSource
# handlers; `end`, `presence` and the prefix are kept for notices to come.
RESERVED_TYPES = frozenset({*map(str, Notice), "open", "error", "end", "presence"})
RESERVED_PREFIX = "$"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    ``data`` is text of any number of lines. ``type`` is what the standard calls the event type, ``id`` the last event
    ID, ``retry`` the reconnection time in milliseconds. Raises InvalidEvent for what would break out of its field
    (9.2.6: CR, LF; NUL in an id).
    """

    data: str
    type: str = "message"
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if not self.type or "\n" in self.type or "\r" in self.type:
            raise InvalidEvent("An event type must not be empty or contain a line break.")
        if self.id is not None and ("\n" in self.id or "\r" in self.id or "\0" in self.id):
            raise InvalidEvent("An event id must not contain a line break or NUL.")
        if self.retry is not None and self.retry < 0:
            raise InvalidEvent("retry is a number of milliseconds, 0 or more.")


def check_type(name: str) -> str:
    """Return a publisher's event type, or raise InvalidEvent, ReservedEvent."""
    if not isinstance(name, str):
        raise InvalidEvent("An event type is a str.")
    if name in RESERVED_TYPES or name.startswith(RESERVED_PREFIX):
        raise ReservedEvent("This event type is the hub's own, as all that begin with $; publish under another one.")
    if not 1 <= len(name) <= TYPE_MAX or not acceptable(name):
        raise InvalidEvent(f"An event type has 1 to {TYPE_MAX} characters; {REFUSED}.")
    return str.__str__(name)  # str() of an enum is its name


def encode(event: Event) -> bytes:
    """Return the event as one block of the stream, UTF-8 with LF line ends, ended by its blank line.

    CR and CRLF in the data become LF, as they must: a decoder cannot tell them apart (9.2.6).
    Raises InvalidEvent for text that UTF-8 cannot carry (lone surrogates).
    """
    try:
        lines = [] if event.retry is None else [b"retry: %d\n" % event.retry]
        if event.id is not None:
            lines += [b"id: ", event.id.encode(), b"\n"]
        if event.type != "message":
            lines += [b"event: ", event.type.encode(), b"\n"]
        data = event.data.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines += [b"data: ", data.replace(b"\n", b"\ndata: "), b"\n\n"]
    except UnicodeEncodeError:
        raise InvalidEvent("The event holds a lone surrogate, which UTF-8 cannot carry.") from None
    return b"".join(lines)


class EventDecoder:
    """Turn a stream that is cut at any byte back into events (9.2.6).

    ``last_event_id`` is the cursor: it moves with every block that carries an id, also with one that has no data and so
    yields no event. ``retry`` is the newest reconnection time in milliseconds, None until one came.
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._unfinished: list[bytes] = []  # the pieces of a line whose end has not come yet
        self._after_cr = False
        self._first_line = True
        self._data: list[str] = []
        self._type = ""
        self._id = ""
        self._block_retry: int | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that this chunk completes, in order."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\n" not in chunk and b"\r" not in chunk:
            self._unfinished.append(chunk)
            return []
        self._after_cr = chunk.endswith(b"\r")
        chunk = b"".join([*self._unfinished, chunk])
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._unfinished = [rest]
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", "replace").partition(":")
        self._field(name, value.removeprefix(" "))
        return None

    def _field(self, name: str, value: str) -> None:
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= RETRY_DIGITS:
                self.retry = self._block_retry = int(value)

    def _dispatch(self) -> Event | None:
        data, type, retry = self._data, self._type, self._block_retry
        self._data, self._type, self._block_retry = [], "", None
        self.last_event_id = self._id
        if not data:
            return None
        return Event("\n".join(data), type or "message", self._id or None, retry)
