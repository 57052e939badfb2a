from collections.abc import Iterator

import pytest

from tests.support.web import LiveHub, live_hub


@pytest.fixture
def server() -> Iterator[LiveHub]:
    with live_hub() as server:
        yield server
