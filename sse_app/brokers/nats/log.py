"""The two streams of a hub, its log and its idempotency keys, over one connection."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.js import api
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from sse_app.brokers.known import UNBOUNDED
from sse_app.brokers.limits import DEFAULTS, PAGE_BYTES, Limits
from sse_app.brokers.nats.connection import FAILURES, reason
from sse_app.brokers.nats.consumers import Consumers
from sse_app.brokers.nats.entries import Message
from sse_app.brokers.nats.feed import Feed, message_of
from sse_app.brokers.nats.url import Address
from sse_app.errors import BrokerUnavailable, LogFull, OutcomeUnknown, TooLarge
from sse_app.publication import Durability, Position

logger = logging.getLogger("sse_app")

COMMAND = 1.5  # seconds for publishing: a publisher is answered within 2 s
ANSWER = 2.5  # seconds for all other answers; a server that takes longer counts as gone
SETTLE = 1.0  # seconds after an election or a deletion until a server answers with its final state
PENDING_BYTES = 8 * 1024 * 1024  # that wait for the socket; with more, publishing is refused
HEADER_BYTES = 1024  # of a message beside its data, at most
SLACK = 1_000  # publications that the stream holds beyond the limit, so that feeds get all of a burst
WINDOW = 128  # messages of a batch that are sent before the first is acknowledged
KEYS_MAX = 100_000  # idempotency keys that are remembered at once
END_OF_TIME = 9e9  # Unix time; the server's nanoseconds end in 2262

UNREACHABLE = "The broker, a NATS server, cannot be reached; nothing was published. Try again in a few seconds."
REFUSED = "The broker, a NATS server, takes no publications now; nothing was published. Our log says why; try later."
FULL = (
    "The broker, a NATS server, has no room left; nothing was published. Give its stream more, or let it discard what "
    "is old."
)
UNKNOWN = (
    "The broker, a NATS server, did not answer: the event may be published or not. Publish it again with the same "
    "Idempotency-Key, and it is published once."
)
SOME = (
    "The broker, a NATS server, has taken a part of the batch, and the rest may be published or not. Publish the same "
    "batch again with the same keys, and each of its events is published once."
)

# Codes of JetStream's errors (err_code)
MESSAGE_TOO_LARGE = 10054
NAME_IN_USE = 10058
IN_PROCESS = 10158  # a message with the same id is being stored
WRONG_LAST_ID = 10070
WRONG_LAST_SEQUENCE = {10071, 10164}
NOT_STORED = 10077  # its text has the reason
NO_ROOM = {10002, 10023, 10028, 10047}  # for the account, on the server, in memory, on the disk


class GivenLimits(NamedTuple):
    """Publications, bytes and seconds that the log holds, and seconds that a key is remembered.

    None leaves a limit as it is.
    """

    history: int | None
    size: int | None
    age: float | None
    window: float | None


class State(NamedTuple):
    """The state of the log. ``oldest`` is the offset before the first message that its stream holds; the newest
    ``history`` of them count. Publications are accepted under ``subject``."""

    top: Position
    oldest: int
    history: int
    durability: Durability
    subject: str
    limits: Limits


class Claim(NamedTuple):
    """The answer to the claim of a key: the digest of what has the key, and what is remembered of where that is, which
    is nothing before it was published. ``sequence`` is that of the claim itself when it was made just now, else 0.
    """

    digest: str
    places: bytes = b""
    sequence: int = 0


class Log:
    """The streams, as one connection reaches them.

    Methods raise FAILURES, except those that publish, which name theirs. ``on_break`` is called when a feed breaks.
    """

    def __init__(self, client: Client, address: Address, limits: GivenLimits, on_break: Callable[[], object]) -> None:
        self._client, self._limits, self._on_break = client, limits, on_break
        self._js = client.jetstream(timeout=ANSWER)
        self._stream, self._keys = f"SSE_LOG_{address.name}", f"SSE_KEYS_{address.name}"
        self._consumers = Consumers(client, self._js, self._stream, ANSWER)
        self._subjects = f"sse-app.{address.name}"
        self._replicas = address.replicas
        self._subject = self._epoch = ""  # under which publications are accepted now, and their epoch
        self._size_limit = 0

    def check(self) -> None:
        """Raises ConnectionError when the connection is broken."""
        if not self._client.is_connected:
            raise ConnectionError("the connection was lost")

    # The streams

    async def ensure_streams(self) -> None:
        """Make the streams that are missing, and give all the limits that were named, if our account may."""
        history, size, age, window = self._limits
        keys = (await self._ensure_stream(self._keys_config())).config
        await self._adjust(keys, max_age=window)
        log = (await self._ensure_stream(self._log_config())).config
        ages = [seconds for seconds in (age or log.max_age, window or keys.max_age) if seconds]
        named = {"max_msgs": history and history + SLACK, "max_bytes": size, "max_age": age}
        await self._adjust(log, **named, duplicate_window=min(ages) if ages and (age or window) else None)

    async def _adjust(self, there: api.StreamConfig, **limits: float | None) -> None:
        named = {name: value for name, value in limits.items() if value is not None}
        if any(getattr(there, name) != value for name, value in named.items()):
            try:
                await self._js.update_stream(there, **named)
            except FAILURES as error:
                logger.warning("the stream %s keeps its limits, ours are refused: %s", there.name, reason(error))

    def _log_config(self) -> api.StreamConfig:
        return api.StreamConfig(
            name=self._stream,
            description="The log of an sse-app hub",
            subjects=[f"{self._subjects}.log.{secrets.token_hex(6)}"],
            storage=api.StorageType.FILE,
            num_replicas=self._replicas,
            max_msgs=(self._limits.history or DEFAULTS.publications) + SLACK,
            max_bytes=self._limits.size or DEFAULTS.size,
            max_age=(age := self._limits.age or DEFAULTS.age),
            duplicate_window=min(self._limits.window or DEFAULTS.window, age),  # a server refuses a longer one
        )

    def _keys_config(self) -> api.StreamConfig:
        return api.StreamConfig(
            name=self._keys,
            description="Idempotency keys of an sse-app hub",
            subjects=[f"{self._subjects}.key.*"],
            storage=api.StorageType.FILE,
            num_replicas=self._replicas,
            max_msgs_per_subject=1,
            max_msgs=KEYS_MAX,
            max_bytes=-1,
            max_age=self._limits.window or DEFAULTS.window,
            duplicate_window=0.1,  # not used: keys have no message ids
        )

    async def _ensure_stream(self, config: api.StreamConfig) -> api.StreamInfo:
        """Return a stream, and make it if there is none."""
        assert config.name is not None
        try:
            return await self._js.stream_info(config.name)
        except NotFoundError:
            if self._epoch and config.name == self._stream:
                # A stream that is made while NATS 2.9 still deletes the former one can lose its files.
                await asyncio.sleep(SETTLE)
        try:
            return await self._js.add_stream(config)
        except APIError as error:
            if error.err_code != NAME_IN_USE:  # another node has made it a moment ago
                raise
            return await self._js.stream_info(config.name)

    async def state(self) -> State:
        """Return the state of the log. It is made if there is none."""
        return self._state_of(await self._ensure_stream(self._log_config())) or await self.begin_anew("")

    async def begin_anew(self, epoch: str) -> State:
        """Give the log another epoch than this one, unless another node has: its sequence numbers may be those of other
        publications than before."""
        info = await self._js.stream_info(self._stream)
        state = self._state_of(info)
        if state is None or state.top.epoch == epoch:
            subjects = self._log_config().subjects
            state = self._state_of(await self._js.update_stream(info.config, subjects=subjects))
        assert state is not None
        return state

    def _state_of(self, info: api.StreamInfo) -> State | None:
        """Return the state that a stream's description tells, None if its subjects are not those of a log.

        The subject under which publications are accepted has a random part: a stream that is made anew has another one,
        so that a node which does not know that yet cannot publish. The epoch is a digest of it and of the time at which
        the stream was made.
        """
        subjects, state = info.config.subjects or [], info.state
        if len(subjects) != 1 or not subjects[0].startswith(f"{self._subjects}.log.") or set("*>") & set(subjects[0]):
            return None
        epoch = hashlib.sha256(f"{subjects[0]} {info.created}".encode()).hexdigest()[:12]
        self._size_limit = info.config.max_bytes or -1
        limit = info.config.max_msgs or -1
        history = UNBOUNDED if limit < 1 else limit - SLACK if limit > SLACK else limit
        durability: Durability = "none" if info.config.storage == api.StorageType.MEMORY else "log"
        size, age = max(0, info.config.max_bytes or 0), info.config.max_age or 0
        limits = Limits(history, size or UNBOUNDED, age or UNBOUNDED)
        top, oldest = Position(epoch, state.last_seq), max(0, state.first_seq - 1)
        return State(top, oldest, history, durability, subjects[0], limits)

    def publish_to(self, state: State) -> None:
        """Publish under the subject of this state from now on. The server refuses messages under a former subject."""
        self._subject, self._epoch = state.subject, state.top.epoch

    # Publishing

    async def append(self, data: bytes, message_id: str | None, deadline: float) -> tuple[Position, bool]:
        """Publish; returns the position, and True if that was done before with the same ``message_id``.

        Raises OutcomeUnknown, LogFull, BrokerUnavailable, TooLarge.
        """
        self.check_payload(data)
        return await self._append(data, self._headers(message_id), deadline)

    async def append_all(
        self, messages: Sequence[tuple[bytes, str]], deadline: float
    ) -> Sequence[tuple[Position, bool]]:
        """Publish data with message ids in their order, and return for each what ``append`` does.

        A window of them is sent at once. Each names the message before it, so that the server refuses all behind one
        that it did not store, or behind another publisher's. Those are sent again, the first of them unconditionally.
        Raises OutcomeUnknown, also when some are stored and others refused; else as ``append``.
        """
        stored: list[tuple[Position, bool]] = []
        window = WINDOW
        while rest := messages[len(stored) : len(stored) + window]:
            ids = (None, *(message_id for _, message_id in rest[:-1]))
            sending = (
                self._append(data, self._headers(message_id, before), deadline)
                for (data, message_id), before in zip(rest, ids, strict=True)
            )
            answers = await asyncio.gather(*sending, return_exceptions=True)
            before_round = len(stored)
            for answer in answers:
                if isinstance(answer, _OutOfTurn):
                    break
                if isinstance(answer, BaseException):
                    raise OutcomeUnknown(SOME) if stored else answer
                stored.append(answer)
            window = min(WINDOW, 2 * (len(stored) - before_round))
        return stored

    def check_payload(self, data: bytes) -> None:
        """Raises TooLarge for data that the server would refuse."""
        if len(data) + HEADER_BYTES > self._client.max_payload:
            raise TooLarge(f"The log takes publications of at most {self._client.max_payload - HEADER_BYTES:,} bytes.")

    def _headers(self, message_id: str | None, before: str | None = None) -> dict[str, str]:
        headers = {api.Header.EXPECTED_STREAM.value: self._stream}
        if message_id is not None:
            headers[api.Header.MSG_ID.value] = message_id
        if before is not None:
            headers[api.Header.EXPECTED_LAST_MSG_ID.value] = before
        return headers

    async def _append(self, data: bytes, headers: dict[str, str], deadline: float) -> tuple[Position, bool]:
        subject, epoch = self._subject, self._epoch
        self._check_sending()
        if 0 < self._size_limit < (size := _stored_size(subject, headers, data)):
            await self._make_room(size, deadline)  # else the server would acknowledge it and trim it at once
        try:
            ack = await self._js.publish(subject, data, _seconds_to(deadline), headers=headers)
        except nats.errors.TimeoutError as error:
            raise OutcomeUnknown(UNKNOWN) from error
        except APIError as error:
            raise _refused(error) from error
        except FAILURES as error:
            raise BrokerUnavailable(UNREACHABLE) from error
        if not ack.seq:  # a message with the same id is being stored
            raise OutcomeUnknown(UNKNOWN)
        return Position(epoch, ack.seq), bool(ack.duplicate)

    def _check_sending(self) -> None:
        if not self._client.is_connected or self._client.pending_data_size > PENDING_BYTES:
            raise BrokerUnavailable(UNREACHABLE)

    async def _make_room(self, size: int, deadline: float) -> None:
        """Raise the limit of the stream's bytes: a log holds its newest publication however large it is."""
        try:
            async with asyncio.timeout_at(deadline):
                info = await self._js.stream_info(self._stream)
                await self._js.update_stream(info.config, max_bytes=size)
        except APIError as error:
            raise _refused(error) from error
        except FAILURES as error:
            raise BrokerUnavailable(UNREACHABLE) from error
        self._size_limit = size

    async def claim(self, key: str, digest: str, deadline: float) -> Claim:
        """Return what has this key. A key that nothing had is given to what has this digest.

        Raises BrokerUnavailable.
        """
        self._check_sending()
        try:
            async with asyncio.timeout_at(deadline):
                for _ in range(3):
                    try:
                        if sequence := await self._claimed(key, digest):
                            return Claim(digest, sequence=sequence)
                    except NoStreamResponseError:  # the stream of the keys was deleted
                        await self._ensure_stream(self._keys_config())
                        continue
                    with suppress(NotFoundError):  # the key has expired in between
                        found = await self._js.get_last_msg(self._keys, self._key_subject(key))
                        known, _, places = (found.data or b"").partition(b" ")
                        return Claim(known.decode(), places)
        except FAILURES as error:
            raise BrokerUnavailable(UNREACHABLE) from error
        raise BrokerUnavailable(UNREACHABLE)

    async def _claimed(self, key: str, digest: str) -> int:
        """Claim a key, and return the sequence number of the claim, 0 if something has the key."""
        headers = {api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}
        try:
            ack = await self._js.publish(self._key_subject(key), digest.encode(), ANSWER, self._keys, headers)
        except APIError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise
            return 0
        return ack.seq

    async def release(self, claim: Claim) -> None:
        """Give back a key that was claimed just now, since nothing is published with it."""
        if claim.sequence:
            with suppress(*FAILURES):
                await self._js.delete_msg(self._keys, claim.sequence)

    async def remember(self, key: str, digest: str, places: object) -> None:
        """Store a position, or several, with the key, for when the server's duplicate window is over. No answer is
        waited for."""
        with suppress(*FAILURES):
            await self._client.publish(self._key_subject(key), f"{digest} {places}".encode())

    def _key_subject(self, key: str) -> str:
        return f"{self._subjects}.key.{hashlib.sha256(key.encode()).hexdigest()[:32]}"

    # Reading

    async def fetch(self, after: int, until: int, count: int) -> list[Message]:
        """Return the next messages in ``(after, until]``, ``count`` at most, fewer if they are large; none if all are
        gone."""
        async with self._consumers.consumer(start=after + 1) as consumer:
            raw, too_large = await self._consumers.pull(consumer, min(count, until - after), max_bytes=PAGE_BYTES)
            if too_large and not raw:
                raw, _ = await self._consumers.pull(consumer, 1)
        found = list(map(message_of, raw))
        if not found and await self.time_of(until) is not None:
            raise nats.errors.Error("a server of the cluster that was asked does not have the newest yet")
        return [message for message in found if message.offset <= until]

    async def time_of(self, offset: int) -> float | None:
        """Return the Unix time of a message, None if there is none. The stream's leader answers."""
        try:
            message = await self._js.get_msg(self._stream, offset)
        except NotFoundError:
            return None
        assert message.time is not None
        return message.time.timestamp()

    async def offset_before(self, time: float) -> int:
        """Return the offset before the first message at or after this Unix time."""
        # A microsecond earlier, since times of messages were rounded from nanoseconds to microseconds, up or down.
        moment = datetime.fromtimestamp(min(max(time, 1.0), END_OF_TIME), UTC) - timedelta(microseconds=1)
        async with self._consumers.consumer(start=moment) as consumer:
            assert consumer.delivered is not None
            return consumer.delivered.stream_seq

    def feed(self, after: int, take: Callable[[Message], None]) -> AbstractAsyncContextManager[Feed]:
        """Deliver all messages behind an offset: first those that there are, then each as it is stored."""
        return self._consumers.feed(after, take, self._on_break)


def _stored_size(subject: str, headers: dict[str, str], data: bytes) -> int:
    """Return the bytes that a message takes in its stream: a little more than fileStoreMsgSize of the server says."""
    return len(subject) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + len(data) + 64


def _seconds_to(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


class _OutOfTurn(Exception):
    """The message before this one is not the newest, so it was not stored."""


def _refused(error: APIError) -> LogFull | BrokerUnavailable | OutcomeUnknown | TooLarge | _OutOfTurn:
    if error.err_code == WRONG_LAST_ID:
        return _OutOfTurn()
    if error.err_code == IN_PROCESS:
        return OutcomeUnknown(UNKNOWN)
    if error.err_code == MESSAGE_TOO_LARGE:
        return TooLarge("The log takes no publications as large as this one; nothing was published.")
    if error.err_code in NO_ROOM or (error.err_code == NOT_STORED and "maximum" in (error.description or "")):
        return LogFull(FULL)
    logger.warning("NATS refused a publication: %s", reason(error))
    return BrokerUnavailable(REFUSED)
