"""The counters of a hub, and their exposition for Prometheus. They are plain integers, since the delivery loop cannot
afford a lock.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True)
class Totals:
    """The counts of a hub since it was made, and two states: the number of ``subscribers``, and of those that are
    ``lagging``, reading from the log just now. The totals of several hubs can be added.
    """

    published: int = 0
    delivered: int = 0  # publications handed to a subscriber's socket
    connected: int = 0
    overflows: int = 0  # queues dropped because their subscriber was slow
    heartbeats: int = 0
    refused: int = 0
    subscribers: int = 0
    lagging: int = 0
    closed: Counter[str] = field(default_factory=Counter)  # by CloseReason
    gaps: Counter[str] = field(default_factory=Counter)  # by gap reason
    auth: Counter[str] = field(default_factory=Counter)  # requests of a hub that takes credentials, by outcome
    tickets: Counter[str] = field(default_factory=Counter)  # by what became of them

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Totals)))

    def as_dict(self) -> dict[str, object]:
        return {
            "published": self.published,
            "delivered": self.delivered,
            "connected": self.connected,
            "refused": self.refused,
            "overflows": self.overflows,
            "heartbeats": self.heartbeats,
            "closed": dict(self.closed),
            "gaps": dict(self.gaps),
        }


class _HubCollector(Collector):
    def __init__(self, totals: Totals, gauges: dict[str, float]) -> None:
        self._totals, self._gauges = totals, gauges

    def collect(self) -> Iterator[Metric]:
        totals = self._totals
        for name, what, count in (
            ("published", "Publications acknowledged by the log through this hub.", totals.published),
            ("delivered", "Publications handed to subscribers' sockets.", totals.delivered),
            ("connected", "Streams opened.", totals.connected),
            ("refused", "Streams refused because the hub was full or draining.", totals.refused),
            ("overflows", "Queues dropped because their subscriber was slow.", totals.overflows),
            ("heartbeats", "Heartbeats sent.", totals.heartbeats),
        ):
            yield CounterMetricFamily(f"sse_app_{name}", what, count)
        yield _by("reason", "sse_app_closed", "Streams ended, by reason.", totals.closed.items())
        yield _by("reason", "sse_app_gaps", "Gaps told to subscribers, by reason.", totals.gaps.items())
        yield _by("outcome", "sse_app_auth", "Requests by what became of their credential.", totals.auth.items())
        yield _by("outcome", "sse_app_tickets", "Tickets, by what became of them.", totals.tickets.items())
        yield GaugeMetricFamily("sse_app_subscribers", "Open streams.", totals.subscribers)
        yield GaugeMetricFamily("sse_app_lagging", "Subscribers that read from the log to catch up.", totals.lagging)
        for name, value in self._gauges.items():
            yield GaugeMetricFamily(f"sse_app_{name}", f"Now: {name.replace('_', ' ')}.", value)


def _by(label: str, name: str, help_text: str, counts: Iterable[tuple[str, int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value, count in counts:
        family.add_metric([value], count)
    return family


def exposition(totals: Totals, gauges: dict[str, float]) -> bytes:
    """Return totals and gauges in the Prometheus text format 0.0.4. The process's own registry is not used."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_HubCollector(totals, gauges))
    return generate_latest(registry)
