"""Admission: the one place that refuses streams and publishers, because there is no room or the hub is stopping."""

from collections.abc import Callable

from sse_app.errors import Draining, Overloaded
from sse_app.metrics import Totals


class Admission:
    """Admits at most ``max_subscribers`` streams at a time, and nobody from ``stop`` on.

    ``on_left`` is called when a publisher's request has ended. Entered as a context, it admits a publisher's request.
    """

    def __init__(self, totals: Totals, max_subscribers: int, on_left: Callable[[], object]) -> None:
        self.stopped = False
        self.open_requests = 0  # of publishers
        self._totals, self._max_subscribers, self._on_left = totals, max_subscribers, on_left

    def start(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        """Refuse everyone from now on. Safe in a signal handler."""
        self.stopped = True

    def check_subscriber(self) -> None:
        """Raises Draining, and Overloaded when there is no room for one more stream; both are counted."""
        if self.stopped:
            self._totals.refused += 1
            raise Draining("The hub is stopping; connect again in a few seconds, or to another node.")
        if self._totals.subscribers >= self._max_subscribers:
            self._totals.refused += 1
            raise Overloaded("The hub has as many subscribers as max_subscribers allows; try again later.")

    def enter(self) -> None:
        """Count a publisher's request as open. Raises Draining."""
        if self.stopped:
            raise Draining("The hub is stopping; publish again in a few seconds, or to another node.")
        self.open_requests += 1

    def leave(self) -> None:
        """Count a publisher's request as ended."""
        self.open_requests -= 1
        self._on_left()

    # As a context manager: a class, since a generator would cost each publication 2 us.

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *exc: object) -> None:
        self.leave()
