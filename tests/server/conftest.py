"""The two ways of a request through our server."""

from collections.abc import Iterator

import pytest

from tests.support import web


@pytest.fixture(scope="module", params=["short way", "app"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Serve the hubs of a test with the short way, and once more with each request going to the app."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "app":
            patch.setattr(web, "connections_of", web.app_alone)
        yield
