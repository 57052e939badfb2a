"""A Server-Sent Events broadcaster: durable positions, resumption without silent loss.

    from sse_app import Hub
    hub = Hub()
    app = FastAPI(lifespan=hub.lifespan)
    app.mount("/hub", hub.app)
    await hub.publish({"number": 42}, topic="orders/42")

Importing this module imports nothing else until a name is used, so that ``python3 -m sse_app`` can start where
nothing is installed yet.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sse_app.brokers import open_broker as open_broker
    from sse_app.client import Client as Client
    from sse_app.client.sync import SyncClient as SyncClient
    from sse_app.config import Config as Config
    from sse_app.errors import SSEAppError as SSEAppError
    from sse_app.events import Event as Event
    from sse_app.events import EventDecoder as EventDecoder
    from sse_app.grants import Grant as Grant
    from sse_app.hub import Hub as Hub
    from sse_app.hub import create_app as create_app
    from sse_app.publication import Draft as Draft
    from sse_app.publication import Receipt as Receipt
    from sse_app.publisher import AsyncPublisher as AsyncPublisher
    from sse_app.publisher import Publisher as Publisher
    from sse_app.subscription import Subscription as Subscription

__version__ = "0.1.0"

_HOMES = {
    "AsyncPublisher": "publisher",
    "Client": "client",
    "Config": "config",
    "Draft": "publication",
    "Event": "events",
    "EventDecoder": "events",
    "Grant": "grants",
    "Hub": "hub",
    "Publisher": "publisher",
    "Receipt": "publication",
    "SSEAppError": "errors",
    "Subscription": "subscription",
    "SyncClient": "client.sync",
    "create_app": "hub",
    "open_broker": "brokers",
}
__all__ = [
    "AsyncPublisher",
    "Client",
    "Config",
    "Draft",
    "Event",
    "EventDecoder",
    "Grant",
    "Hub",
    "Publisher",
    "Receipt",
    "SSEAppError",
    "Subscription",
    "SyncClient",
    "create_app",
    "open_broker",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
