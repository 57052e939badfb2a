"""Admission: the subscribers that are let in, and the errors for the others."""

from contextlib import suppress

import pytest

from sse_app.admission import Admission
from sse_app.errors import Draining, Overloaded
from sse_app.metrics import Totals


def test_a_stream_is_refused_when_there_is_no_room_and_counted() -> None:
    totals = Totals(subscribers=1)
    admission = Admission(totals, 2, lambda: None)
    admission.check_subscriber()
    totals.subscribers = 2
    with pytest.raises(Overloaded):
        admission.check_subscriber()
    assert totals.refused == 1


def test_everyone_is_refused_from_a_stop_until_the_next_start() -> None:
    totals = Totals()
    admission = Admission(totals, 2, lambda: None)
    admission.stop()
    with pytest.raises(Draining, match="connect again"):
        admission.check_subscriber()
    with pytest.raises(Draining, match="publish again"), admission:
        pytest.fail("admitted")
    assert (totals.refused, admission.open_requests) == (1, 0)
    admission.start()
    admission.check_subscriber()


def test_a_publishers_request_is_open_until_it_ends_however_it_ends() -> None:
    left = list[int]()
    admission = Admission(Totals(), 1, lambda: left.append(admission.open_requests))
    with suppress(KeyError), admission:
        assert admission.open_requests == 1
        raise KeyError
    assert left == [0]
