"""The parameters of a load, and the limits of each."""

import resource
from typing import Any, get_args

import pytest

from sse_app.bench.load import Load, Workload
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
        {"workload": "storm"},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BenchRefused, match=next(iter(changes))):
        Load(**changes)


def test_workloads_differ_in_what_may_be_under_way() -> None:
    under_way = {name: (load.posts, load.window) for name in get_args(Workload) if (load := Load(name, inflight=4))}
    assert under_way == {"connect": (1, 1), "closed": (1, 1), "burst": (4, 8), "rate": (4, 8), "slow": (4, 8)}


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
