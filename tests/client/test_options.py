"""The keywords of both clients are those of their TypedDicts, by which editors complete and mypy finds mistakes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sse_app import Client, SyncClient
from sse_app.client import ClientOptions, ListenOptions
from sse_app.errors import InvalidURL


def keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("function", "options", "beside"),
    [
        (Client, ClientOptions.__annotations__, {"token"}),
        (Client.listen, ListenOptions.__annotations__, {"on_gap"}),
    ],
    ids=["Client", "listen"],
)
def test_the_keywords_of_a_client_are_those_of_its_options(
    function: Callable[..., Any], options: Mapping[str, object], beside: set[str]
) -> None:
    assert keywords(function) == options.keys() | beside


def test_a_wrong_argument_of_a_client_in_a_thread_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="nmae"):
        SyncClient("http://hub", nmae="till-3")  # type: ignore[call-arg]
    with pytest.raises(InvalidURL):
        SyncClient("hub")
