"""Fixtures of the tests of credentials."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pytest

from sse_app.auth import jwks

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture(autouse=True)
def time_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work of threads on the loop itself, where time is virtual: a thread takes real time, which would count.
    Where it is real, be patient.
    """

    async def on_the_loop(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        await asyncio.sleep(0)
        return work(*arguments, **options)

    if request.node.get_closest_marker("virtual_time"):
        monkeypatch.setattr(asyncio, "to_thread", on_the_loop)
    else:
        monkeypatch.setattr(jwks, "FETCH_TIME", 40.0)  # a busy machine is not a slow issuer
