"""The hub on its own uvicorn server. Code that depends on the inside of uvicorn stands in this package.

A server started by uvicorn itself can use the protocol too: ``uvicorn --http sse_app.server:Protocol``.
"""

from sse_app.server.protocol import Protocol as Protocol
