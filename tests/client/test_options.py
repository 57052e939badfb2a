"""The keywords of both clients are those of their TypedDicts, by which editors complete and mypy finds mistakes."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import pytest

from sse_app import Client, SyncClient
from sse_app.client import ClientOptions, ListenOptions, RevokeOptions, TicketOptions
from sse_app.errors import InvalidURL


def keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("function", "options", "beside"),
    [
        (Client, ClientOptions.__annotations__, {"token"}),
        (Client.listen, ListenOptions.__annotations__, {"on_gap"}),
        (Client.ticket, TicketOptions.__annotations__, set()),
        (Client.revoke, RevokeOptions.__annotations__, set()),
        (SyncClient.connections, inspect.signature(Client.connections).parameters.keys() - {"self"}, set()),
        (SyncClient.kick, inspect.signature(Client.kick).parameters.keys() - {"self", "client"}, set()),
    ],
    ids=["Client", "listen", "ticket", "revoke", "connections", "kick"],
)
def test_the_keywords_of_a_client_are_those_of_its_options(
    function: Callable[..., Any], options: Collection[str], beside: set[str]
) -> None:
    assert keywords(function) == {*options, *beside}


def test_a_wrong_argument_of_a_client_in_a_thread_is_refused_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="nmae"):
        SyncClient("http://hub", nmae="till-3")  # type: ignore[call-arg]
    with pytest.raises(InvalidURL):
        SyncClient("hub")
