"""Publishing without a hub: from a task queue, a management command, a cron job.

A publisher appends to the log that a hub delivers from. So it takes the broker URL of that hub, whose log must be one
that processes can share.

    publisher = Publisher("sqlite:///hub.db")
    publisher.publish({"number": 42}, topic="orders/42")

    async with AsyncPublisher("sqlite:///hub.db") as publisher:
        await publisher.publish({"number": 42}, topic="orders/42")
"""

import asyncio
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Self, Unpack

from sse_app.brokers import open_broker
from sse_app.config import Config, LogOptions, PublisherOptions, check_names
from sse_app.drafts import Drafts
from sse_app.errors import ConfigError
from sse_app.loop_thread import LoopThread
from sse_app.publication import Draft, PublishOptions, Receipt


class AsyncPublisher:
    """Publishes to the log at a broker URL. ``settings`` are those of the log, ``body_max``, ``batch_bytes`` and
    ``require_topic``; give the same as to the hub.

    A log file that does not exist is an error, since no hub delivers from a new file in the wrong directory. ``create``
    makes it, for publishing before the first start of the hub.

    Raises ConfigError for a URL of no broker, or of a log that lives in one process, and entering it a BrokerError for
    a log that cannot be opened.
    """

    def __init__(self, url: str, *, create: bool = False, **settings: Unpack[PublisherOptions]) -> None:
        check_names("publisher", settings, PublisherOptions.__annotations__)
        config = Config(**{"broker": url, **settings})  # type: ignore[arg-type]  # it reads texts as well
        if config.broker.lower().startswith("memory:"):
            raise ConfigError("memory:// lives in the hub's own process; publish with its hub.publish() or over HTTP.")
        of_log = {name: getattr(config, name) for name in settings if name in LogOptions.__annotations__}
        if config.broker.lower().startswith("sqlite:"):
            of_log["create"] = create
        self._broker = open_broker(config.broker, **of_log)
        self._body_max, self._batch_bytes = config.body_max, config.batch_bytes
        self._require_topic = config.require_topic
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        await self._broker.__aenter__()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop, self._ended = None, True
        await self._broker.__aexit__(kind, error, trace)

    async def publish(self, data: object, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish as ``Hub.publish`` does. Returns once the log has it; no subscribers are counted.

        Raises BadInput, BrokerError, and RuntimeError outside its ``async with`` or in another event loop.
        """
        self._check_open()
        draft = Draft.compose(data, body_max=self._body_max, **options)
        if self._require_topic:
            draft.check_topic()
        position = await self._broker.publish(draft)
        return Receipt(position, None, self._broker.durability)

    async def publish_many(self, events: Iterable[object], **options: Unpack[PublishOptions]) -> list[Receipt]:
        """Publish several events together as ``Hub.publish_many`` does. Raises as ``publish`` does."""
        self._check_open()
        limits = {"body_max": self._body_max, "batch_bytes": self._batch_bytes}
        drafts = Drafts.compose(events, **limits, **options)
        if self._require_topic:
            drafts.check_topics()
        positions = await self._broker.publish_many(drafts) if drafts.items else ()
        return [Receipt(position, None, self._broker.durability) for position in positions]

    def _check_open(self) -> None:
        if self._loop is None:
            how = "its own has ended" if self._ended else "it was not entered"
            raise RuntimeError(f"An AsyncPublisher publishes inside its `async with`; {how}.")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("This AsyncPublisher was entered in another event loop; enter one in each.")


class Publisher:
    """``AsyncPublisher`` for code that is not async. It may be shared by threads.

    It opens its log when it is first used; ``close``, the end of its ``with`` or of the interpreter closes the log. A
    publisher that was used before a fork raises in the child, where the log that the parent has open cannot be used.
    """

    def __init__(self, url: str, *, create: bool = False, **settings: Unpack[PublisherOptions]) -> None:
        make = partial(AsyncPublisher, url, create=create, **settings)
        self._thread = LoopThread("Publisher", make, reopens=False)

    def __enter__(self) -> Self:
        self._thread.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the log and end the thread."""
        self._thread.close()

    def publish(self, data: object, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish, and return once the log has it. Takes what ``AsyncPublisher.publish`` does, raises that and Closed.

        When a signal handler raises meanwhile, the call ends with that exception, and may have published all the same.
        """
        return self._thread.call(lambda publisher: publisher.publish(data, **options))

    def publish_many(self, events: Iterable[object], **options: Unpack[PublishOptions]) -> list[Receipt]:
        """Publish several events together, all or none, as ``AsyncPublisher.publish_many`` does."""
        return self._thread.call(lambda publisher: publisher.publish_many(events, **options))
