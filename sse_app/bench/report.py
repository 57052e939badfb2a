"""The figures of runs, and the comparison of servers."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, get_type_hints

COUNTED = ("failed_connects", "failed_posts", "closed_early", "lost", "doubled")  # over all repetitions, not medians


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one run. None where the server's process is not known or nothing arrived.

    title: how the load is called
    unable: what the server cannot do of this load, which then was not put on it
    """

    workload: str
    title: str
    server: str
    inflight: int
    batch: int
    behind: int
    subscribers: int = 0
    slow_subscribers: int = 0
    failed_connects: int = 0
    connects_per_s: float = 0.0
    back_s: float | None = None
    cpu_us_per_connect: float | None = None
    memory_kb_per_connection: float | None = None
    events: int = 0
    posts_per_s: float = 0.0
    posts_per_cpu_s: float | None = None
    events_per_cpu_s: float | None = None
    answer_p50_ms: float | None = None
    answer_p99_ms: float | None = None
    failed_posts: int = 0
    closed_early: int = 0
    deliveries: int = 0
    deliveries_per_s: float = 0.0
    deliveries_per_cpu_s: float | None = None
    server_cpu_share: float | None = None
    memory_growth_mb: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_max_ms: float | None = None
    wire_bytes_per_delivery: float | None = None
    lost: int = 0
    doubled: int = 0
    stalled: bool = False
    load_cpu_share: float = 0.0
    first_error: str | None = None
    unable: str | None = None

    @property
    def clean(self) -> bool:
        """True when the load was put on the server, nothing was lost or doubled, and nothing failed."""
        return not (self.unable or self.lost or self.doubled or self.stalled or self.errors)

    @property
    def errors(self) -> int:
        """The number of connections and POSTs that failed, and of streams that the server ended."""
        return self.failed_connects + self.failed_posts + self.closed_early


class Figure(NamedTuple):
    """A row of the table. A ratio says how many times the other's figure ours is."""

    name: str
    label: str
    ratio: bool = False


CONNECTING = (
    Figure("subscribers", "subscribers connected"),
    Figure("connects_per_s", "connects per second", ratio=True),
    Figure("cpu_us_per_connect", "server CPU per connect, us", ratio=True),
    Figure("memory_kb_per_connection", "memory per connection, KB", ratio=True),
    Figure("latency_max_ms", "one event to all, ms", ratio=True),
)
DELIVERING = (
    Figure("subscribers", "subscribers connected"),
    Figure("slow_subscribers", "of them not reading"),
    Figure("memory_kb_per_connection", "memory per connection, KB", ratio=True),
    Figure("memory_growth_mb", "memory growth, MB"),
    Figure("events", "events published"),
    Figure("deliveries_per_s", "deliveries per second", ratio=True),
    Figure("deliveries_per_cpu_s", "deliveries per CPU second", ratio=True),
    Figure("server_cpu_share", "server CPU, cores"),
    Figure("latency_p50_ms", "latency, median, ms", ratio=True),
    Figure("latency_p99_ms", "latency, 99 %, ms", ratio=True),
    Figure("latency_max_ms", "latency, longest, ms"),
    Figure("wire_bytes_per_delivery", "bytes per delivery"),
)
PUBLISHING = (
    Figure("events", "events published"),
    Figure("posts_per_s", "POSTs per second", ratio=True),
    Figure("posts_per_cpu_s", "POSTs per CPU second", ratio=True),
    Figure("events_per_cpu_s", "events per CPU second", ratio=True),
    Figure("answer_p50_ms", "answer, median, ms", ratio=True),
    Figure("answer_p99_ms", "answer, 99 %, ms", ratio=True),
    Figure("latency_p50_ms", "latency, median, ms", ratio=True),
    Figure("latency_p99_ms", "latency, 99 %, ms", ratio=True),
)
RESUMING = (
    Figure("subscribers", "clients that came back"),
    Figure("back_s", "until all have all, s", ratio=True),
    Figure("cpu_us_per_connect", "server CPU per client, us", ratio=True),
    Figure("memory_kb_per_connection", "memory per connection, KB", ratio=True),
    Figure("latency_max_ms", "one event to all, ms", ratio=True),
)
FAULTS = (
    Figure("lost", "lost"),
    Figure("doubled", "doubled"),
    Figure("errors", "errors"),
    Figure("load_cpu_share", "load's own CPU, cores"),
)
FIGURES = {"connect": CONNECTING, "publish": PUBLISHING, "resume": RESUMING}  # of any other workload: DELIVERING


def table(reports: Sequence[Report]) -> list[list[str]]:
    """Return the figures of one load: a head, then rows of a label, each server's median, and the ratios.

    reports: in the order in which they were made; the server of the first is compared with the others.
    """
    servers = list(dict.fromkeys(report.server for report in reports))
    middle = {server: medians(_of(reports, server)) for server in servers}
    against = {server: ratios(_of(reports, servers[0]), _of(reports, server)) for server in servers[1:]}
    figures = FIGURES.get(reports[0].workload, DELIVERING) + FAULTS
    rows = [["", *servers, *(f"x {server}" for server in against)]]
    for figure in figures:
        values = [_value(middle[server], figure, figures[0]) for server in servers]
        compared = [_shown(found.get(figure.name)) if figure.ratio else "" for found in against.values()]
        rows.append([figure.label, *values, *compared])
    return rows


def document(reports: Sequence[Report]) -> dict[str, list[dict[str, Any]]]:
    """Return all for a program: each run, the medians over the repetitions, and the ratios to the first server."""
    first = reports[0].server
    groups = list(dict.fromkeys((report.title, report.server) for report in reports))
    of = {group: [report for report in reports if (report.title, report.server) == group] for group in groups}
    return {
        "runs": [asdict(report) for report in reports],
        "medians": [asdict(medians(of[group])) for group in groups],
        "ratios": [
            {
                "workload": group[0].workload,
                "title": title,
                "server": first,
                "against": server,
                **ratios(of[title, first], group),
            }
            for (title, server), group in of.items()
            if server != first
        ],
    }


def medians(reports: Sequence[Report]) -> Report:
    """Return one report for several of one server and workload: medians, and sums of the faults."""
    types = get_type_hints(Report)
    merged: dict[str, Any] = {}
    for field in fields(Report):
        values = [value for report in reports if (value := getattr(report, field.name)) is not None]
        if field.name in COUNTED:
            merged[field.name] = sum(values)
        elif types[field.name] in (float, float | None):
            merged[field.name] = statistics.median(values) if values else None
        elif types[field.name] is int:
            merged[field.name] = statistics.median_low(values)
        else:
            merged[field.name] = max(values, default=None)  # texts other than the error are equal; True is above False
    return Report(**merged)


def ratios(ours: Sequence[Report], theirs: Sequence[Report]) -> dict[str, float]:
    """Return for each compared figure the median over the repetitions of ours divided by theirs.

    A ratio is taken inside a repetition, so that a disturbance of the machine meets both.
    """
    found = {}
    for figure in dict.fromkeys(CONNECTING + DELIVERING + PUBLISHING + RESUMING):
        pairs = [
            (getattr(our, figure.name), getattr(their, figure.name)) for our, their in zip(ours, theirs, strict=True)
        ]
        quotients = [our / their for our, their in pairs if our is not None and their]
        if figure.ratio and quotients:
            found[figure.name] = statistics.median(quotients)
    return found


def _of(reports: Sequence[Report], server: str) -> list[Report]:
    return [report for report in reports if report.server == server]


def _value(report: Report, figure: Figure, first: Figure) -> str:
    """Return a cell. A server that is unable has its reason in the first row, and no figures."""
    if report.unable:
        return report.unable if figure == first else "-"
    return _shown(getattr(report, figure.name))


def _shown(value: float | None) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
        case _:
            return f"{value:,}"
