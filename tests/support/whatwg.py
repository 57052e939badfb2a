"""A reference parser of event streams, as the WHATWG HTML standard words it (9.2.5, 9.2.6). The oracle of the tests.

It takes a whole stream, one character after the other, is plain and slow, and shares no code with ``sse_app``.
"""

from dataclasses import dataclass, field

LF, CR, BOM = "\n", "\r", "\ufeff"


@dataclass(frozen=True)
class Dispatched:
    """An event as the page's handler gets it."""

    type: str
    data: str
    last_event_id: str


@dataclass
class Stream:
    """The state of a browser's parser, and the events that it has dispatched (9.2.6)."""

    events: list[Dispatched] = field(default_factory=list)
    last_event_id: str = ""
    reconnection_time: int | None = None
    fields: list[tuple[str, str]] = field(default_factory=list)  # every field seen, also ignored ones; not comments
    _data_buffer: str = ""
    _event_type_buffer: str = ""
    _last_event_id_buffer: str = ""

    def line(self, line: str) -> None:
        if line == "":
            self._dispatch()
        elif line[0] == ":":
            pass
        elif ":" in line:
            name = line[: line.index(":")]
            value = line[line.index(":") + 1 :]
            if value != "" and value[0] == " ":
                value = value[1:]
            self._process(name, value)
        else:
            self._process(line, "")

    def _process(self, name: str, value: str) -> None:
        self.fields.append((name, value))
        if name == "event":
            self._event_type_buffer = value
        elif name == "data":
            self._data_buffer += value + LF
        elif name == "id":
            if "\0" not in value:
                self._last_event_id_buffer = value
        elif name == "retry" and value != "" and all(character in "0123456789" for character in value):
            self.reconnection_time = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = self._last_event_id_buffer
        if self._data_buffer != "":
            data = self._data_buffer[:-1]
            self.events.append(Dispatched(self._event_type_buffer or "message", data, self.last_event_id))
        self._data_buffer = ""
        self._event_type_buffer = ""


def parse(stream: bytes) -> Stream:
    """Parse a whole stream; an unfinished line and an unfinished block at its end are discarded."""
    text = stream.decode("utf-8", "replace")
    if text.startswith(BOM):
        text = text[1:]
    result, line, position = Stream(), "", 0
    while position < len(text):
        character = text[position]
        position += 1
        if character not in (CR, LF):
            line += character
            continue
        if character == CR and text[position : position + 1] == LF:
            position += 1
        result.line(line)
        line = ""
    return result
