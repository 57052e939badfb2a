"""The parameters of a load, and the limits of each."""

import resource
from typing import Any, get_args

import pytest

from sse_app.bench.load import Load, Workload, cases
from sse_app.errors import BenchRefused


@pytest.mark.parametrize(
    "changes",
    [
        {"subscribers": 0},
        {"duration": 0},
        {"rate": float("nan")},
        {"inflight": 0},
        {"payload": 0},
        {"payload": 1 << 20},
        {"slow": 1.0},
        {"behind": 0},
        {"behind": 1_001},
        {"batch": 10},
        {"batch": 0, "workload": "publish"},
        {"batch": 1_001, "workload": "publish"},
        {"workload": "storm"},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BenchRefused, match=next(iter(changes))):
        Load(**changes)


def test_workloads_differ_in_what_may_be_under_way() -> None:
    under_way = {name: (load.posts, load.window) for name in get_args(Workload) if (load := Load(name, inflight=4))}
    one, many = (1, 1), (4, 8)
    assert under_way == {
        "connect": one,
        "closed": one,
        "burst": many,
        "rate": many,
        "slow": many,
        "publish": (4, None),
        "resume": one,
    }


def test_publishing_stands_for_single_events_and_batches_to_one_subscriber() -> None:
    kinds = cases(Load("publish", duration=3))
    assert kinds == [
        Load("publish", subscribers=1, duration=3, inflight=number, batch=events)
        for number, events in ((1, 1), (64, 1), (8, 10), (8, 100))
    ]
    assert [load.title for load in kinds] == [
        "publish, 1 at a time",
        "publish, 64 at a time",
        "publish, 8 at a time, 10 events in each",
        "publish, 8 at a time, 100 events in each",
    ]
    assert cases(Load("publish"), inflight=5, subscribers=7) == [Load("publish", subscribers=7, inflight=5)]
    assert cases(Load("publish"), batch=5) == [Load("publish", subscribers=1, inflight=8, batch=5)]


def test_other_workloads_stand_for_themselves() -> None:
    assert cases(Load("burst")) == [Load("burst", subscribers=1000, inflight=8)]
    assert cases(Load("burst"), subscribers=7, inflight=5, batch=10) == [Load("burst", subscribers=7, inflight=5)]
    assert cases(Load("resume", behind=7)) == [Load("resume", subscribers=1000, behind=7)]
    assert [Load("burst").title, Load("resume", behind=7).title] == ["burst", "resume, 7 behind"]
    with pytest.raises(BenchRefused, match="subscribers, inflight"):
        cases(Load("publish"), subscribers=0, inflight=0)


def test_data_is_large_enough_to_fill_the_buffers_of_the_slow() -> None:
    assert (Load().data_size, Load("slow").data_size, Load("slow", payload=7).data_size) == (100, 2_000, 7)


@pytest.mark.parametrize(("share", "slow"), [(0.1, [9]), (0.25, [3, 7]), (0.5, [1, 3, 5, 7, 9]), (0.01, [])])
def test_those_that_do_not_read_are_spread(share: float, slow: list[int]) -> None:
    load = Load("slow", slow=share)
    assert [number for number in range(10) if not load.reads(number)] == slow
    assert all(Load("rate", slow=share).reads(number) for number in range(10))


def test_more_subscribers_than_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    Load(subscribers=928, inflight=8).check_descriptors()
    with pytest.raises(BenchRefused, match="at most 928"):
        Load(subscribers=929, inflight=8).check_descriptors()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Load(subscribers=10**6).check_descriptors()
