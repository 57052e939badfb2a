"""The log of refused requests: one line for many of a reason."""

import asyncio

import pytest

from sse_app.refusals import WINDOW, Refusals, peer_of

FIRST, SECOND = peer_of(("192.0.2.1", 1000)), peer_of(("2001:db8::2", 2000))


@pytest.mark.virtual_time
async def test_a_refusal_is_a_line_at_once_and_those_after_it_are_one_with_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals()
    refusals.note("bad_request", FIRST)
    assert caplog.messages == ["refused a request from 192.0.2.1:1000: bad_request"]
    for _ in range(1_000):
        refusals.note("bad_request", SECOND)
    assert len(caplog.messages) == 1
    await asyncio.sleep(WINDOW + 1)
    assert caplog.messages[1:] == ["refused 1000 more in 10 s, the last from [2001:db8::2]:2000: bad_request"]
    refusals.note("bad_request", FIRST)
    assert len(caplog.messages) == 2, "not yet again"
    await asyncio.sleep(2 * WINDOW)
    assert caplog.messages[2:] == ["refused 1 more in 10 s, the last from 192.0.2.1:1000: bad_request"]
    refusals.note("bad_request", SECOND)
    assert caplog.messages[3:] == ["refused a request from [2001:db8::2]:2000: bad_request"], "it was quiet meanwhile"


@pytest.mark.virtual_time
async def test_each_reason_has_its_own_lines(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for reason in ("bad_request", "head_too_large"):
        refusals.note(reason, FIRST)
    refusals.note("head_too_large", peer_of(None))
    await asyncio.sleep(2 * WINDOW)
    assert [line.partition(" from ")[2] for line in caplog.messages] == [
        "192.0.2.1:1000: bad_request",
        "192.0.2.1:1000: head_too_large",
        "a socket without an address: head_too_large",
    ]
