"""What this package uses of uvicorn that its documentation does not promise: its protocol, its server from inside.

The other modules take these classes from here. USED names their members that we read, set, call or override; nothing
asks it while a server runs. ``tests/server/test_uvicorn_internals.py`` holds it against our sources, and names what a
new version of uvicorn has moved.
"""

from collections.abc import Mapping

import uvicorn
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

__all__ = [
    "LOGGING_CONFIG",
    "STATUS_LINE",
    "USED",
    "FlowControl",
    "HttpToolsProtocol",
    "RequestResponseCycle",
    "ServerState",
]

USED: Mapping[type, frozenset[str]] = {
    HttpToolsProtocol: frozenset(
        {
            # what it knows
            *("client", "connections", "cycle", "flow", "headers", "logger", "loop", "parser", "pipeline", "scope"),
            *("server_state", "transport", "url"),
            # what the parser calls, and what the server does
            *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
            *("on_response_complete", "shutdown"),
            # what it does itself, and is overridden or called
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
    ServerState: frozenset({"connections", "tasks", "total_requests"}),
    uvicorn.Server: frozenset(
        {
            *("_captured_signals", "capture_signals", "config", "force_exit", "handle_exit", "lifespan", "run"),
            *("server_state", "should_exit", "shutdown", "started", "startup"),
        }
    ),
}
