"""What a hub counts, and its exposition for Prometheus. Plain integers: the delivery loop cannot afford a lock."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(slots=True)
class Totals:
    """Counts since the hub was made, and two states: how many ``subscribers`` there are, and how many of them are
    ``lagging``, reading from the log just now. Those of several hubs add up."""

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
        yield _by_reason("sse_app_closed", "Streams ended, by reason.", totals.closed.items())
        yield _by_reason("sse_app_gaps", "Gaps told to subscribers, by reason.", totals.gaps.items())
        yield GaugeMetricFamily("sse_app_subscribers", "Open streams.", totals.subscribers)
        yield GaugeMetricFamily("sse_app_lagging", "Subscribers that read from the log to catch up.", totals.lagging)
        for name, value in self._gauges.items():
            yield GaugeMetricFamily(f"sse_app_{name}", f"Now: {name.replace('_', ' ')}.", value)


def _by_reason(name: str, what: str, counts: Iterable[tuple[str, int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, what, labels=["reason"])
    for reason, count in counts:
        family.add_metric([reason], count)
    return family


def exposition(totals: Totals, gauges: dict[str, float]) -> bytes:
    """Everything in the Prometheus text format 0.0.4, from a registry of its own, not the process's."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_HubCollector(totals, gauges))
    return generate_latest(registry)
