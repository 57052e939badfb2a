"""Figures of several runs: medians, ratios, tables and JSON."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from sse_app.bench.report import (
    CONNECTING,
    DELIVERING,
    FAULTS,
    PUBLISHING,
    RESUMING,
    Report,
    document,
    medians,
    ratios,
    table,
)

REPORT = Report(
    workload="closed",
    title="closed",
    server="sse-app",
    inflight=8,
    batch=1,
    behind=100,
    subscribers=2,
    slow_subscribers=0,
    failed_connects=0,
    connects_per_s=1000.0,
    cpu_us_per_connect=80.0,
    memory_kb_per_connection=None,
    events=3,
    posts_per_s=600.0,
    posts_per_cpu_s=800.0,
    events_per_cpu_s=800.0,
    answer_p50_ms=0.5,
    answer_p99_ms=0.75,
    failed_posts=0,
    closed_early=0,
    deliveries=6,
    deliveries_per_s=1200.0,
    deliveries_per_cpu_s=None,
    server_cpu_share=None,
    memory_growth_mb=None,
    latency_p50_ms=1.5,
    latency_p99_ms=2.5,
    latency_max_ms=2.5,
    wire_bytes_per_delivery=120.0,
    lost=0,
    doubled=0,
    stalled=False,
    load_cpu_share=0.5,
    first_error=None,
)
OTHER = replace(REPORT, server="naive", deliveries_per_s=400.0, latency_p50_ms=6.0)


@pytest.mark.parametrize("fault", ["lost", "doubled", "failed_connects", "failed_posts", "closed_early", "stalled"])
def test_a_report_is_clean_when_nothing_went_wrong(fault: str) -> None:
    changes: dict[str, Any] = {fault: 1}
    assert REPORT.clean
    assert not replace(REPORT, **changes).clean


def test_every_row_shows_a_figure_that_there_is() -> None:
    assert all(hasattr(REPORT, figure.name) for figure in CONNECTING + DELIVERING + PUBLISHING + RESUMING + FAULTS)


def test_a_table_has_a_column_for_each_server_and_each_ratio() -> None:
    head, *rows = table([REPORT, OTHER])
    assert head == ["", "sse-app", "naive", "x naive"]
    assert ["deliveries per second", "1,200", "400.00", "3.00"] in rows
    assert ["latency, median, ms", "1.50", "6.00", "0.25"] in rows
    assert ["memory per connection, KB", "-", "-", "-"] in rows
    assert ["lost", "0", "0", ""] in rows
    assert all(len(row) == len(head) for row in rows)


def test_a_table_of_connecting_shows_what_connecting_costs() -> None:
    head, *rows = table([replace(REPORT, workload="connect")])
    assert head == ["", "sse-app"]
    assert ["server CPU per connect, us", "80.00"] in rows
    assert ["one event to all, ms", "2.50"] in rows


def test_a_table_of_publishing_shows_what_posts_cost() -> None:
    ours, theirs = (replace(report, workload="publish") for report in (REPORT, OTHER))
    _, *rows = table([ours, replace(theirs, posts_per_cpu_s=1600.0)])
    assert ["POSTs per CPU second", "800.00", "1,600", "0.50"] in rows
    assert ["answer, 99 %, ms", "0.75", "0.75", "1.00"] in rows


def test_a_table_of_resuming_shows_what_coming_back_costs() -> None:
    ours, theirs = (replace(report, workload="resume", back_s=2.0) for report in (REPORT, OTHER))
    _, *rows = table([ours, replace(theirs, back_s=4.0)])
    assert ["until all have all, s", "2.00", "4.00", "0.50"] in rows
    assert ["server CPU per client, us", "80.00", "80.00", "1.00"] in rows


def test_a_server_that_is_unable_says_so_in_place_of_figures() -> None:
    unable = Report("publish", "publish", "naive", 8, 10, 100, unable="no batches")
    _, first, *rows = table([replace(REPORT, workload="publish", batch=10), unable])
    assert first == ["events published", "3", "no batches", ""]
    assert {tuple(row[2:]) for row in rows} == {("-", "-"), ("-", "")}
    assert not unable.clean


def test_several_runs_give_medians_and_the_sum_of_what_went_wrong() -> None:
    runs = [
        replace(REPORT, deliveries_per_s=rate, lost=lost, memory_kb_per_connection=memory, first_error=error)
        for rate, lost, memory, error in ((3.0, 0, None, None), (9.0, 2, 4.0, "gone"), (1.0, 1, 2.0, None))
    ]
    both = medians(runs)
    assert (both.deliveries_per_s, both.lost, both.memory_kb_per_connection) == (3.0, 3, 3.0)
    assert (both.subscribers, both.server, both.first_error) == (2, "sse-app", "gone")
    assert medians([REPORT]) == REPORT


def test_ratios_are_taken_inside_each_repetition() -> None:
    ours = [replace(REPORT, deliveries_per_s=rate) for rate in (10.0, 100.0, 60.0)]
    theirs = [replace(OTHER, deliveries_per_s=rate) for rate in (5.0, 20.0, 20.0)]
    found = ratios(ours, theirs)
    assert found["deliveries_per_s"] == 3.0
    assert "memory_kb_per_connection" not in found
    assert "lost" not in found


def test_the_document_has_runs_medians_and_ratios() -> None:
    burst = [replace(report, workload="burst", title="burst") for report in (REPORT, OTHER)]
    reports = [REPORT, OTHER, *burst, REPORT, OTHER]
    shown = json.loads(json.dumps(document(reports)))
    assert shown["runs"] == [asdict(report) for report in reports]
    assert shown["medians"] == [asdict(report) for report in reports[:4]]
    assert [(row["workload"], row["server"], row["against"]) for row in shown["ratios"]] == [
        ("closed", "sse-app", "naive"),
        ("burst", "sse-app", "naive"),
    ]
    assert shown["ratios"][0]["latency_p50_ms"] == 0.25


def test_the_document_tells_apart_what_publishing_stands_for() -> None:
    kinds = [
        replace(report, workload="publish", title=f"{number} at a time", posts_per_s=100.0 * number)
        for number in (1, 64)
        for report in (REPORT, OTHER)
    ]
    shown = document(kinds)
    assert [(row["title"], row["posts_per_s"]) for row in shown["medians"]] == [
        *[("1 at a time", 100.0)] * 2,
        *[("64 at a time", 6400.0)] * 2,
    ]
    assert [row["title"] for row in shown["ratios"]] == ["1 at a time", "64 at a time"]
