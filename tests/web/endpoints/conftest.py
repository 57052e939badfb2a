"""A started hub and a client of its endpoints."""

from collections.abc import AsyncIterator

import pytest

from tests.support.web import Web, web


@pytest.fixture
async def hub_web() -> AsyncIterator[Web]:
    async with web() as opened:
        yield opened
