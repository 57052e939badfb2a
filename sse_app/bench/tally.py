"""The account of a run: the events published, those that each subscriber has got, and when they came."""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sse_app.bench.wire import Batch, ChunkedDecoder, find_markers, marker_pattern

MEMO_MAX = 256  # reads whose events are remembered


def percentile(counts: Mapping[int, int], share: float) -> int | None:
    """Return the smallest value that at least `share` of all counted values do not exceed (nearest rank)."""
    rank = max(1, math.ceil(share * sum(counts.values())))
    for value in sorted(counts):
        rank -= counts[value]
        if rank <= 0:
            return value
    return None


class Times(defaultdict[int, int]):
    """Durations in ns, to 10 bits, and how often each came."""

    def __init__(self) -> None:
        super().__init__(int)

    def since(self, moments: Sequence[int], now: int) -> None:
        """Count the time from each of the moments until now."""
        for moment in moments:
            took = now - moment
            shift = took.bit_length() - 10
            self[took >> shift << shift if shift > 0 else took] += 1


class Tally:
    """The events published and delivered, over all subscribers of a run.

    `owed` counts the deliveries that are still to come if all goes well: the publishers' window and the end of a
    run wait for it. Lost and doubled events are counted from their numbers.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.pattern = marker_pattern(run)
        self.memo: dict[bytes, Batch | None] = {}
        self.streams: set[Subscriber] = set()
        self.slow = 0  # streams that nobody reads
        self.published = 0
        self.failed: set[int] = set()  # numbers whose POST failed: nobody is owed them
        self.failed_posts = 0
        self.owed = 0
        self.deliveries = 0
        self.doubled = 0
        self.ended: list[Subscriber] = []  # those that the server closed
        self.bytes = 0
        self.calls = 0  # callbacks of the event loop for streams
        self.last_arrival = 0
        self.late = Times()
        self.answers = Times()  # of the POSTs that were answered with success
        self.last_answer = 0
        self.first_error: str | None = None
        self._wake_below = -1
        self._moved = asyncio.Event()

    def error(self, text: str) -> None:
        """Keep the first error for the report."""
        self.first_error = self.first_error or text

    def begin(self) -> None:
        """Measure from here on: all counts but lost and doubled start again."""
        self.deliveries = self.bytes = self.last_arrival = self.last_answer = 0
        self.late.clear()
        self.answers.clear()

    def publish(self) -> int:
        """Return the number of the next event, which is owed to every open stream from now on."""
        self.published += 1
        self.owed += len(self.streams)
        return self.published

    def answered(self, asked: int, now: int) -> None:
        """Count a POST that was answered with success."""
        self.last_answer = now
        self.answers.since((asked,), now)

    def fail(self, numbers: Sequence[int], why: str) -> None:
        """Note that the POST of these events failed: they are owed to nobody, and not counted where they come after
        all.
        """
        self.error(why)
        self.failed_posts += 1
        self.owed -= sum(1 for stream in self.streams for number in numbers if stream.lacks(number))
        self.failed.update(numbers)
        self._wake()

    def opened(self, chunked: bool, behind: int = 0) -> "Subscriber":
        """Return a new stream, to be counted, which is owed the last `behind` events as well."""
        stream = Subscriber(self, chunked, behind)
        self.streams.add(stream)
        self.owed += behind
        return stream

    def closed(self, stream: "Subscriber") -> None:
        """Note that the server ended a stream: the events that it still owed are lost."""
        self.owed -= stream.lost()
        self.streams.remove(stream)
        stream.until = self.published
        self.ended.append(stream)
        self.error("the server ended a stream")
        self._wake()

    def lost(self) -> int:
        """Return the number of deliveries that were due and did not come."""
        return sum(stream.lost() for stream in itertools.chain(self.streams, self.ended))

    def arrived(self, sent: Sequence[int], now: int) -> None:
        """Count deliveries that came for the first time."""
        self.deliveries += len(sent)
        self.owed -= len(sent)
        self.last_arrival = now
        self.late.since(sent, now)
        if self.owed <= self._wake_below:
            self._wake()

    def _wake(self) -> None:
        self._wake_below = -1
        self._moved.set()
        self._moved.clear()

    async def until_owed(self, window: int, patience: float) -> bool:
        """Wait until a stream lacks fewer than `window` events on average.

        Return False when nothing came for `patience` seconds, or when no stream is left.
        """
        while self.streams and self.owed > (most := (window - 1) * len(self.streams)):
            self._wake_below = max(self._wake_below, most)
            before = self.last_arrival
            try:
                async with asyncio.timeout(patience):
                    await self._moved.wait()
            except TimeoutError:
                if self.last_arrival == before:
                    self.error(f"nothing came for {patience:g} s")
                    return False
        return bool(self.streams)


class Subscriber:
    """The numbers of the events that came on one stream."""

    __slots__ = ("_body", "_carry", "_clean", "_missing", "_tally", "highest", "until")

    def __init__(self, tally: Tally, chunked: bool, behind: int = 0) -> None:
        self._tally = tally
        self._body = ChunkedDecoder() if chunked else None
        self._carry = b""
        self._clean = True  # between chunks and between markers: equal bytes mean equal events
        self._missing: set[int] = set()  # numbers passed over so far
        self.highest = tally.published - behind
        self.until: int | None = None  # how many events were published when the server closed

    def take(self, data: bytes, now: int) -> bool:
        """Count the events in a read. Return False at the end of the stream. Raises `ValueError` for bytes that are not
        chunked.
        """
        tally = self._tally
        tally.bytes += len(data)
        batch = tally.memo[data] if self._clean and data in tally.memo else self._parse(data)
        if batch:
            tally.arrived(self._fresh(batch), now)
        return not (self._body and self._body.ended)

    def _parse(self, data: bytes) -> Batch | None:
        tally, was_clean = self._tally, self._clean
        body = self._body.feed(data) if self._body else data
        batch, self._carry = find_markers(tally.pattern, self._carry + body)
        self._clean = not self._carry and (self._body is None or self._body.between_chunks)
        if was_clean and self._clean:
            if len(tally.memo) >= MEMO_MAX:
                tally.memo.clear()
            tally.memo[data] = batch
        return batch

    def _fresh(self, batch: Batch) -> list[int]:
        """Return the sending times of the events that came for the first time."""
        if batch.whole and batch.low == self.highest + 1 and not self._missing and not self._tally.failed:
            self.highest = batch.high
            return batch.sent
        return [sent for number, sent in zip(batch.numbers, batch.sent, strict=True) if self._take(number)]

    def _take(self, number: int) -> bool:
        if self.lacks(number):
            self._missing.update(range(self.highest + 1, number))
            self._missing.discard(number)
            self.highest = max(self.highest, number)
            return number not in self._tally.failed
        self._tally.doubled += 1
        return False

    def lacks(self, number: int) -> bool:
        """Return True when this event has not come yet."""
        return number > self.highest or number in self._missing

    def lost(self) -> int:
        """Return the number of events that were published without failing and have not come."""
        due = self._tally.published if self.until is None else self.until
        excused = sum(1 for number in self._tally.failed if number <= due and self.lacks(number))
        return due - self.highest + len(self._missing) - excused
