"""The parts of uvicorn that this package uses though uvicorn's documentation does not promise them: its HTTP protocol,
and the inside of its server.

The other modules import these classes from here. USED lists the members that we read, set, call or override; only tests
read USED. ``tests/server/test_uvicorn_internals.py`` compares USED with our sources, and names the members that a new
version of uvicorn has moved.
"""

from collections.abc import Mapping

import uvicorn
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_local_addr, get_remote_addr, is_ssl
from uvicorn.protocols.utils import get_path_with_query_string as target_of
from uvicorn.server import ServerState

__all__ = [
    "LOGGING_CONFIG",
    "STATUS_LINE",
    "USED",
    "FlowControl",
    "HttpToolsProtocol",
    "RequestResponseCycle",
    "ServerState",
    "get_client_addr",
    "get_local_addr",
    "get_remote_addr",
    "is_ssl",
    "target_of",
]

USED: Mapping[type, frozenset[str]] = {
    HttpToolsProtocol: frozenset(
        {
            # attributes
            *("client", "connections", "cycle", "flow", "headers", "logger", "loop", "parser", "pipeline", "scope"),
            *("server_state", "transport", "url"),
            # called by the parser and by the server
            *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
            *("on_response_complete", "shutdown"),
            # called by the protocol itself, and by us or overridden
            *("_should_upgrade", "_unset_keepalive_if_required", "handle_websocket_upgrade"),
        }
    ),
    RequestResponseCycle: frozenset(
        {
            *("body", "chunked_encoding", "disconnected", "expected_content_length", "message_event", "more_body"),
            *("response_complete", "response_started", "scope", "send"),
        }
    ),
    FlowControl: frozenset({"pause_reading", "resume_reading", "write_paused"}),
    ServerState: frozenset({"connections", "default_headers", "tasks", "total_requests"}),
    uvicorn.Server: frozenset(
        {
            *("_captured_signals", "capture_signals", "config", "force_exit", "handle_exit", "lifespan", "run"),
            *("server_state", "should_exit", "shutdown", "started", "startup"),
        }
    ),
}
