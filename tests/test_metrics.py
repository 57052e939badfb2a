"""The metrics as Prometheus reads them: dashboards depend on their names and meanings."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sse_app.metrics import Totals, exposition

COUNTERS = ("published", "delivered", "connected", "refused", "overflows", "heartbeats")


def read(totals: Totals, gauges: dict[str, float] | None = None) -> tuple[dict[str, str], list[Sample]]:
    """The type of every family, and all samples."""
    families = list(text_string_to_metric_families(exposition(totals, gauges or {}).decode()))
    return {family.name: family.type for family in families}, [item for family in families for item in family.samples]


def test_the_names_and_types_are_stable() -> None:
    types, _ = read(Totals(), {"log_top_offset": 0})
    assert types == {
        "sse_app_published": "counter",
        "sse_app_delivered": "counter",
        "sse_app_connected": "counter",
        "sse_app_refused": "counter",
        "sse_app_overflows": "counter",
        "sse_app_heartbeats": "counter",
        "sse_app_closed": "counter",
        "sse_app_gaps": "counter",
        "sse_app_auth": "counter",
        "sse_app_tickets": "counter",
        "sse_app_lagging": "gauge",
        "sse_app_subscribers": "gauge",
        "sse_app_log_top_offset": "gauge",
    }


def test_each_count_is_under_its_own_name() -> None:
    totals = Totals(lagging=7, subscribers=12)
    for number, name in enumerate(COUNTERS, 10):
        setattr(totals, name, number)
    values = {sample.name: sample.value for sample in read(totals, {"filters": 3.0})[1]}
    expected = {f"sse_app_{name}_total": float(number) for number, name in enumerate(COUNTERS, 10)}
    assert values == {**expected, "sse_app_lagging": 7.0, "sse_app_subscribers": 12.0, "sse_app_filters": 3.0}


def test_closes_and_gaps_are_counted_by_reason() -> None:
    totals = Totals()
    totals.closed.update(["gone", "gone", "drain"])
    totals.gaps.update(["trimmed"])
    labelled = {(item.name, item.labels["reason"]): item.value for item in read(totals)[1] if item.labels}
    assert labelled == {
        ("sse_app_closed_total", "gone"): 2.0,
        ("sse_app_closed_total", "drain"): 1.0,
        ("sse_app_gaps_total", "trimmed"): 1.0,
    }


def test_the_text_says_what_each_family_is() -> None:
    text = exposition(Totals(), {"log_top_offset": 1}).decode()
    helps = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3}
    types = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert helps == types
    assert text.endswith("\n")


def test_an_exposition_is_of_one_hub_alone() -> None:
    assert b"python_info" not in exposition(Totals(), {})
    assert b"sse_app_filters" not in exposition(Totals(), {})
    assert b"sse_app_filters" in exposition(Totals(), {"filters": 1.0})


def test_the_totals_of_several_hubs_add_up() -> None:
    one, other = Totals(published=2, subscribers=3), Totals(published=5, subscribers=1, lagging=1)
    one.gaps["epoch"] += 1
    other.gaps.update(epoch=2, trimmed=4)
    both = one + other
    assert (both.published, both.subscribers, both.lagging) == (7, 4, 1)
    assert both.gaps == {"epoch": 3, "trimmed": 4}
    assert (one.gaps, one.published) == ({"epoch": 1}, 2), "they stay as they are"


def test_the_totals_as_json_types_follow_the_counters() -> None:
    totals = Totals(published=3)
    totals.gaps["epoch"] = 2
    shown = totals.as_dict()
    assert shown.keys() == {*COUNTERS, "closed", "gaps"}
    assert (shown["published"], shown["gaps"]) == (3, {"epoch": 2})
    totals.gaps["epoch"] += 1
    assert shown["gaps"] == {"epoch": 2}
