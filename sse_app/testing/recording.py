"""Streams recorded to a file, and replayed without a hub.

A recording is the text of an HTTP response, as ``curl -iN`` shows it: the head, a blank line, and the body byte for
byte. It can be read in a review, written by hand, and made with curl from any server:

    HTTP/1.1 200 OK
    content-type: text/event-stream; charset=utf-8

    id: 4f1c2a9be07d-1
    data: hello
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from os import PathLike
from pathlib import Path
from typing import Self

import anyio
from starlette.requests import Request as ASGIRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app.events import MEDIA_TYPE, Event, EventDecoder
from sse_app.testing.libraries import Response

HEAD = re.compile(rb"HTTP/[\d.]+ (\d{3})[^\r\n]*\r?\n((?:[^\r\n]+\r?\n)*)\r?\n")
# What a replay needs of a head. A date, a cookie or a server's name would only make a fixture change.
KEPT_HEADERS = ("content-type", "cache-control", "access-control-allow-origin")


@dataclass(frozen=True)
class Recording:
    """A response: ``body`` as it came, ``status``, and those of the ``headers`` that a replay needs, in lower case."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": f"{MEDIA_TYPE}; charset=utf-8"})

    @property
    def events(self) -> list[Event]:
        """The events of the body."""
        return EventDecoder().feed(self.body)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file of ``save``, of ``curl -iN``, or written by hand. Raises ValueError for one that has no head."""
        raw = Path(path).read_bytes()
        head = HEAD.match(raw)
        if head is None:
            raise ValueError("No recording: one begins with HTTP/1.1 200 OK, header lines and a blank line.")
        fields = (line.partition(":") for line in head[2].decode("latin-1").splitlines())
        return cls(raw[head.end() :], int(head[1]), _kept({name.lower(): value.strip() for name, _, value in fields}))

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file. A body with CR line ends wants ``*.sse -text`` in .gitattributes."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        Path(path).write_bytes("\n".join([*lines, "", ""]).encode("latin-1") + self.body)

    def behind(self, last_event_id: str) -> bytes:
        """The body behind the block with this id: what a client that resumes has not read. All of it for an id that is
        not in it.
        """
        decoder, read = EventDecoder(), 0
        for line in self.body.splitlines(keepends=True):
            decoder.feed(line)
            read += len(line)
            if decoder.last_event_id == last_event_id:
                return self.body[read:]
        return self.body


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in KEPT_HEADERS if name in headers}


async def record(response: Response, *, count: int | None = None) -> Recording:
    """Read a streaming response of httpx or httpx2 until ``count`` events have come, or to its end. A welcome counts.

    The client's read timeout bounds the wait for the next bytes. Raises ValueError for a count below 1.
    """
    if count is not None and count < 1:
        raise ValueError("A recording has at least 1 event.")
    decoder, body, read = EventDecoder(), list[bytes](), 0
    head = response.status_code, _kept(response.headers)
    async for chunk in response.aiter_raw():
        for line in chunk.splitlines(keepends=True):
            body.append(line)
            read += len(decoder.feed(line))  # a line completes at most one event
            if read == count:
                return Recording(b"".join(body), *head)
    return Recording(b"".join(body), *head)


def replay(recording: Recording, *, size: int | None = None, hold: bool = True) -> ASGIApp:
    """An ASGI app that answers every GET with a recording: for ``StreamingASGITransport``, and for pages with ``live``.

    A client that comes back with a Last-Event-ID of the recording gets what is behind it, so that resuming can be
    tested too.

    size: bytes of a chunk; a line without it.
    hold: keep the stream open behind its last byte, as a hub does. Without it the body ends.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("A replay has no lifespan, and no websockets.")
        cursor = ASGIRequest(scope).headers.get("last-event-id", "")
        allowed = scope["method"] in ("GET", "HEAD")
        body = recording.behind(cursor) if cursor else recording.body
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in recording.headers.items()]
        status = recording.status if allowed else HTTPStatus.METHOD_NOT_ALLOWED
        await send({"type": "http.response.start", "status": int(status), "headers": headers if allowed else []})
        if scope["method"] == "GET":
            await _send_body(_pieces(body, size), hold, receive, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


async def _send_body(pieces: Iterator[bytes], hold: bool, receive: Receive, send: Send) -> None:
    """Send a body until its client leaves."""
    async with anyio.create_task_group() as tasks:

        async def stop_when_client_leaves() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(stop_when_client_leaves)
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not hold:
            tasks.cancel_scope.cancel()


def _pieces(body: bytes, size: int | None) -> Iterator[bytes]:
    if size is None:
        yield from body.splitlines(keepends=True)
        return
    for start in range(0, len(body), size):
        yield body[start : start + size]
