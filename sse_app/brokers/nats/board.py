"""The board in NATS: its entries in streams of JetStream, its messages on a subject that keeps nothing.

    claim, replace -> publish, if the newest message of the key is still the one that was read
    list -> a consumer of the subjects of the kind
    send -> the subject of messages, to which each node is subscribed -> messages()

There is a stream for each kind, so that each has bounds of its own: tickets, of which any user may have many, leave
room for revocations. It holds one message for each key: the entry, with a header that says when it ends. That is the
Unix time of the node that wrote it, since servers before 2.11 have no lifetimes of single messages; the clocks of the
nodes have to agree. What has ended is removed by one of the nodes that use the kind, once a minute.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from sse_app.brokers.board import TTL, check_entry, check_key, check_kind, check_message, check_value, kind_of
from sse_app.brokers.messages import Messages
from sse_app.brokers.nats.connection import FAILURES
from sse_app.brokers.nats.consumers import Consumers
from sse_app.brokers.nats.log import NAME_IN_USE, NO_ROOM, NOT_STORED, PENDING_BYTES, WRONG_LAST_SEQUENCE
from sse_app.brokers.nats.nodes import Nodes
from sse_app.brokers.nats.url import Address
from sse_app.errors import BrokerError, BrokerUnavailable, LogFull

DEADLINE = 1.5  # seconds for an entry or a message: a stream begins, or is told to come back, within 2 s
LISTING = 10.0  # seconds for all pages of a list
LAG = 0.05  # seconds until a server of a cluster that does not have the newest entries yet is asked again
SWEEP = 60.0  # seconds between two removals of what has ended
SWEEPING = 60.0  # seconds that one takes at most; the next goes on
DELETIONS_AT_ONCE = 64
PAGE_COUNT, PAGE_BYTES = 256, 256 * 1024  # of entries that are read at once
ENTRIES_MAX = 200_000  # of a kind

ENDS = "SSE-App-Ends"  # the header: whole microseconds of Unix time
# The last parts of subjects that no key has: of what each list and each sweep writes, which is there from the start, so
# that both go on in a stream that is full; and of the entry that says who sweeps.
MARK, TURN = "=", "=turn"

PROBE = b"v0"  # a message for nobody

UNREACHABLE = (
    "The broker, a NATS server, cannot be reached, or does not answer: what was asked may be done or not. Try again in "
    "a few seconds."
)
FULL = "The broker, a NATS server, has no room left for what hubs keep for each other; nothing was kept. Try later."


class _Entry(NamedTuple):
    """The newest entry of a key, ended or not. ``revision`` is the sequence number of its message."""

    revision: int
    value: bytes
    ends: float


class NatsBoard:
    """The board in NATS. An entry is as durable as a publication, ``durable`` or not; at most 200,000 of each kind.

    ``client`` returns the connection, or None without one.
    """

    def __init__(
        self,
        address: Address,
        nodes: Nodes,
        client: Callable[[], Client | None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._nodes, self._client, self._wall = nodes, client, wall
        self._streams, self._replicas = f"SSE_BOARD_{address.name}", address.replicas
        self._kinds: set[str] = set()  # that were written or listed here, and are swept
        self._subjects, self._subject = f"sse-app.{address.name}.board", f"sse-app.{address.name}.messages"
        self._messages = Messages(nodes.name)
        self._subscribed_on: Client | None = None

    @property
    def name(self) -> str:
        return self._nodes.name

    def nodes(self) -> Collection[str]:
        return self._nodes.names()

    # Entries

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        check_entry(key, value, ttl)
        return await self._claim(key, value, ttl)

    async def _claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        async with self._in_time(DEADLINE) as js:
            revision = 0  # of no message
            while not await self._write(js, key, value, self._wall() + ttl, revision):
                if (there := await self._read(js, key)) is not None and there.ends > self._wall():
                    return there.value
                revision = 0 if there is None else there.revision
            return None

    async def put(self, key: str, value: bytes, ttl: float, *, durable: bool = False) -> None:
        check_entry(key, value, ttl)
        async with self._in_time(DEADLINE) as js:
            await self._write(js, key, value, self._wall() + ttl)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        check_entry(key, new, ttl)
        check_value(old)
        async with self._in_time(DEADLINE) as js:
            while (there := await self._read(js, key)) is not None:
                if there.value != old or there.ends <= self._wall():
                    return False
                if await self._write(js, key, new, self._wall() + ttl, there.revision):
                    return True
            return False

    async def get(self, key: str) -> bytes | None:
        check_key(key)
        async with self._in_time(DEADLINE) as js:
            there = await self._read(js, key)
        return there.value if there is not None and there.ends > self._wall() else None

    async def delete(self, key: str) -> None:
        check_key(key)
        async with self._in_time(DEADLINE) as js:
            if (there := await self._read(js, key)) is not None:
                await self._remove(js, kind_of(key), there.revision)

    async def list(self, kind: str) -> dict[str, bytes]:
        check_kind(kind)
        async with self._in_time(LISTING) as js:
            # Any server of a cluster may serve a consumer: once it has this mark, it has all that was written before.
            mark = await self._write(js, f"{kind}.{MARK}", b"", 0.0)
            found = dict[str, bytes]()
            async for message in self._read_all(js, kind, mark):
                key = message.subject.removeprefix(f"{self._subjects}.")
                if _ends(message.headers) > self._wall() and key != f"{kind}.{TURN}":
                    found[key] = message.data
        return found

    @asynccontextmanager
    async def _in_time(self, seconds: float) -> AsyncIterator[JetStreamContext]:
        """Give the connection to a caller. Raises BrokerUnavailable without one, and when it fails; LogFull."""
        client = self._connected()
        try:
            async with asyncio.timeout(seconds):
                yield client.jetstream(timeout=seconds)
        except APIError as error:
            if error.err_code in NO_ROOM or error.err_code == NOT_STORED:
                raise LogFull(FULL) from error
            raise BrokerUnavailable(UNREACHABLE) from error
        except FAILURES as error:
            raise BrokerUnavailable(UNREACHABLE) from error

    def _connected(self) -> Client:
        client = self._client()
        if client is None or not client.is_connected or client.pending_data_size > PENDING_BYTES:
            raise BrokerUnavailable(UNREACHABLE)
        return client

    # The streams. Methods raise FAILURES.

    def _stream(self, kind: str) -> str:
        return f"{self._streams}_{kind}"

    async def _write(
        self, js: JetStreamContext, key: str, value: bytes, ends: float, revision: int | None = None
    ) -> int:
        """Write an entry, and return its revision. With a revision, and another one at this key now, return 0."""
        self._kinds.add(kind_of(key))
        headers = {ENDS: str(round(ends * 1_000_000))}
        if revision is not None:
            headers[api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(revision)
        try:
            try:
                ack = await js.publish(f"{self._subjects}.{key}", value, headers=headers)
            except NoStreamResponseError:
                await self._make_stream(js, kind_of(key))
                ack = await js.publish(f"{self._subjects}.{key}", value, headers=headers)
        except APIError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise
            return 0
        return ack.seq

    async def _make_stream(self, js: JetStreamContext, kind: str) -> None:
        config = api.StreamConfig(
            name=self._stream(kind),
            description="What the nodes of an sse-app hub keep for each other",
            subjects=[f"{self._subjects}.{kind}.*"],
            storage=api.StorageType.FILE,
            num_replicas=self._replicas,
            max_msgs_per_subject=1,
            max_msgs=ENTRIES_MAX,
            discard=api.DiscardPolicy.NEW,  # rather refuse an entry than drop another one
            max_bytes=-1,
            max_age=TTL,
            duplicate_window=0.1,  # not used: entries have no message ids
        )
        try:
            await js.add_stream(config)
        except APIError as error:
            if error.err_code != NAME_IN_USE:  # another node has made it a moment ago
                raise
        await self._write(js, f"{kind}.{MARK}", b"", 0.0, 0)

    async def _read(self, js: JetStreamContext, key: str) -> _Entry | None:
        """Return the newest message of a key. The stream's leader answers."""
        try:
            message = await js.get_last_msg(self._stream(kind_of(key)), f"{self._subjects}.{key}")
        except NotFoundError:
            return None
        assert message.seq is not None
        return _Entry(message.seq, message.data or b"", _ends(message.headers))

    async def _remove(self, js: JetStreamContext, kind: str, revision: int) -> None:
        """Remove a message, unless it is gone: another one has taken its place."""
        try:
            await js.delete_msg(self._stream(kind), revision)
        except APIError:
            with suppress(NotFoundError):
                await js.get_msg(self._stream(kind), revision)
                raise

    async def _read_all(
        self, js: JetStreamContext, kind: str, until: int, *, headers_only: bool = False
    ) -> AsyncIterator[Msg]:
        """Return the messages of a kind up to a revision, which has one of them, or a later one."""
        consumers = Consumers(self._connected(), js, self._stream(kind), DEADLINE)
        subject, newest = f"{self._subjects}.{kind}.*", 0
        async with consumers.consumer(start=1, subject=subject, headers_only=headers_only) as consumer:
            while newest < until:
                messages, _ = await consumers.pull(consumer, PAGE_COUNT, max_bytes=PAGE_BYTES)
                if not messages:
                    await asyncio.sleep(LAG)
                for message in messages:
                    newest = message.metadata.sequence.stream
                    yield message

    # Messages

    async def send(self, message: bytes) -> None:
        check_message(message)
        try:
            await self._connected().publish(self._subject, self._messages.frame(message))
        except FAILURES as error:
            raise BrokerUnavailable(UNREACHABLE) from error
        # No answer is waited for. Client.flush() tells nothing, since its PING overtakes what is still to be written,
        # and when it is cancelled nats-py stops reading (2.16). The turn of the loop lets it write.
        await asyncio.sleep(0)

    def messages(self) -> AsyncIterator[bytes]:
        return self._messages.read()

    async def listen(self, client: Client) -> None:
        """Receive what the other nodes send, on a connection. Raises FAILURES."""
        if self._subscribed_on is not client:
            await client.subscribe(self._subject, cb=self._on_message)
            self._subscribed_on = client
            # A server does not confirm a subscription, it only forbids one: the probe that comes back is the proof.
            await client.publish(self._subject, PROBE)

    async def _on_message(self, message: Msg) -> None:
        self._nodes.hears = True
        self._messages.on_frame(message.data)

    # What has ended

    async def run(self) -> None:
        """Remove what has ended once in SWEEP seconds, as long as the broker is open: one of the nodes does."""
        task = asyncio.current_task()
        # On Python 3.11 wait_for, which nats-py uses, may swallow the cancellation that ends this.
        while task is None or not task.cancelling():
            await asyncio.sleep(SWEEP * random.uniform(0.5, 1))
            for kind in sorted(self._kinds):
                with suppress(BrokerError):
                    if await self._takes_turn(kind):
                        await self.sweep(kind)

    async def _takes_turn(self, kind: str) -> bool:
        try:
            return await self._claim(f"{kind}.{TURN}", self.name.encode(), SWEEP / 2) is None
        except LogFull:  # before anybody had the first turn
            return True

    async def sweep(self, kind: str) -> None:
        """Remove what has ended of a kind. Raises BrokerError."""
        async with self._in_time(SWEEPING) as js:
            first, others = await self._ended(js, kind)
            if first:
                await js.purge_stream(self._stream(kind), seq=first + 1, subject=f"{self._subjects}.{kind}.*")
            for start in range(0, len(others), DELETIONS_AT_ONCE):
                some = others[start : start + DELETIONS_AT_ONCE]
                await asyncio.gather(*(self._remove(js, kind, revision) for revision in some))

    async def _ended(self, js: JetStreamContext, kind: str) -> tuple[int, Sequence[int]]:
        """Return what has ended: the newest entry before the first one that has not, 0 for none, and all others.

        Entries of a kind often end in the order in which they were written: then one request removes them.
        """
        until = await self._write(js, f"{kind}.{MARK}", b"", 0.0)
        first, others, standing = 0, list[int](), False
        async for message in self._read_all(js, kind, until, headers_only=True):
            name = message.subject.rpartition(".")[2]
            revision = message.metadata.sequence.stream
            if name == MARK or _ends(message.headers) > self._wall():  # a list of another node may wait for its mark
                standing = True
            elif standing:
                others.append(revision)
            else:
                first = revision
        return first, others


def _ends(headers: dict[str, str] | None) -> float:
    """Return when an entry ends, 0 if it is none of ours."""
    said = (headers or {}).get(ENDS, "")
    return int(said) / 1_000_000 if re.fullmatch(r"\d{1,17}", said, re.ASCII) else 0.0
