"""nats-py still has the private names that we use, and they are used in one file alone."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from sse_app.brokers.nats import internals

MOVED = f"nats-py {version('nats-py')} has no {{}}: see sse_app/brokers/nats/internals.py"
HERE = Path(internals.__file__)
OF_CLIENT = {
    "_server_info": dict,
    "_resp_map": dict,
    "_pending": list,
    "_pending_data_size": int,
    "_transport": type(None),
    "_subs": dict,
    "_reading_task": type(None),
    "_flusher_task": type(None),
    "_ping_interval_task": type(None),
}


@pytest.mark.parametrize(("name", "kind"), OF_CLIENT.items())
async def test_a_client_has_the_names_that_are_used(name: str, kind: type) -> None:
    client = Client()
    assert hasattr(client, name), MOVED.format(f"Client.{name}")
    assert isinstance(getattr(client, name), kind), f"{MOVED.format(name)}, or as something else"


async def test_a_subscription_and_a_transport_have_them_too() -> None:
    assert hasattr(Subscription, "_stop_processing"), MOVED.format("Subscription._stop_processing")
    transport = TcpTransport()  # type: ignore[no-untyped-call]
    assert hasattr(transport, "_io_writer"), MOVED.format("TcpTransport._io_writer")


def test_the_list_is_complete_and_no_other_file_uses_private_names_of_a_client() -> None:
    used = {
        path.name: set(re.findall(r"\b(?:client|_client|subscription|transport)\.(_[a-z]\w*)", path.read_text()))
        for path in HERE.parent.glob("*.py")
    }
    assert used.pop(HERE.name) == {*OF_CLIENT, "_stop_processing"}
    assert not any(used.values()), used
