"""Publishing without a hub: from a task queue, a management command, a cron job.

It appends to the log that a hub delivers from, so it takes the broker URL that the hub was given, and a log that
processes can share.

    with Publisher("sqlite:///hub.db") as publisher:
        publisher.publish({"number": 42}, topic="orders/42")

    async with AsyncPublisher("sqlite:///hub.db") as publisher:
        await publisher.publish({"number": 42}, topic="orders/42")
"""

from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from sse_app.brokers import open_broker
from sse_app.errors import ConfigError, InvalidClient, InvalidTopic
from sse_app.events import Event, check_type
from sse_app.payload import encode_data
from sse_app.publication import Names, Position, check_clients, check_key, names, recipients
from sse_app.topics import check_topics


class Draft(NamedTuple):
    """A publication that is checked and has no position yet."""

    event: Event
    topics: tuple[str, ...]
    to: frozenset[str]
    exclude: frozenset[str]


def compose(
    data: object,
    topic: Names = None,
    event: str = "message",
    to: Names = None,
    exclude: Names = None,
    *,
    body_max: int | None = None,
) -> Draft:
    """What a publisher gave, checked. Raises BadInput."""
    topics = check_topics(recipients("topic", topic, InvalidTopic))
    clients = (
        check_clients(recipients("to", to, InvalidClient)),
        check_clients(names("exclude", exclude, InvalidClient)),
    )
    return Draft(Event(encode_data(data, body_max), check_type(event)), topics, *clients)


class AsyncPublisher:
    """Publishes to the log at a broker URL. ``settings`` are those of its broker, and ``body_max`` bytes is how much
    data a publication may have; give the same as to the hub.

    Raises ConfigError for a URL of no broker, or of a log that lives in one process.
    """

    def __init__(self, url: str, *, body_max: int = 256 * 1024, **settings: Any) -> None:
        if url.lower().startswith("memory:"):
            raise ConfigError("memory:// lives in the hub's own process; publish with its hub.publish() or over HTTP.")
        self._broker = open_broker(url, **settings)
        self._body_max = body_max

    async def __aenter__(self) -> Self:
        await self._broker.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._broker.__aexit__(kind, error, trace)

    async def publish(
        self,
        data: object,
        *,
        topic: Names = None,
        event: str = "message",
        to: Names = None,
        exclude: Names = None,
        key: str | None = None,
    ) -> Position:
        """Publish as ``Hub.publish`` does. Returns once the log has it: ``str(position)`` is the event's id.

        Raises BadInput, BrokerError.
        """
        draft = compose(data, topic, event, to, exclude, body_max=self._body_max)
        key = None if key is None else check_key(key)
        return await self._broker.publish(draft.event, draft.topics, to=draft.to, exclude=draft.exclude, key=key)


class Publisher:
    """``AsyncPublisher`` for code that is not async. It may be shared by threads."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._publisher = AsyncPublisher(url, **settings)
        self._stack = ExitStack()
        self._portal: BlockingPortal

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            stack.enter_context(self._portal.wrap_async_context_manager(self._publisher))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def publish(self, data: object, **options: Any) -> Position:
        """Publish, and return once the log has it. Takes and raises what ``AsyncPublisher.publish`` does."""
        return self._portal.call(partial(self._publisher.publish, data, **options))
