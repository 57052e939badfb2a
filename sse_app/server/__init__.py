"""The hub on a uvicorn server of ours: what leans on uvicorn stands here.

For other servers of uvicorn's: ``uvicorn --http sse_app.server:Protocol``.
"""

from sse_app.server.protocol import Protocol as Protocol
