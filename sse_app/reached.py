"""The log as the streams of a node read it: as far as the node's tail has come."""

from sse_app.brokers import Broker, Page
from sse_app.delivery import Delivery
from sse_app.publication import Position
from sse_app.topics import TopicFilter


class ReachedLog:
    """The log up to ``delivery.reached``, the end of what the tail has announced.

    All nodes read one log in order, and a revocation is a record in it. A node ends the streams that the record names
    before it offers, or lets be read, what follows the record. The log may be longer already: a stream that read it to
    its own end could get past a record that its node has not met.
    """

    def __init__(self, broker: Broker, delivery: Delivery) -> None:
        self._broker, self._delivery = broker, delivery

    async def top(self) -> Position:
        """Return the end of what may be read."""
        return self._delivery.reached

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        """Return the next page of matching publications in ``(after, until]``, oldest first."""
        return await self._broker.replay(after, until, topic_filter)
