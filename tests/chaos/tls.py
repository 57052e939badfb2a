"""`python -m tests.chaos.tls KEY CERTIFICATE serve ...`: our server over TLS, for which `serve` has no setting.

``app`` is a hub for uvicorn's own command, which has.
"""

import sys
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from sse_app import Config, create_app
from sse_app.cli import main
from sse_app.server import server

DRAIN = 1.0  # seconds


def app() -> ASGIApp:
    return create_app(Config(drain=DRAIN))


def encrypt(key: str, certificate: str) -> None:
    plain = server.uvicorn_config

    def encrypted(*arguments: Any) -> uvicorn.Config:
        config = plain(*arguments)
        config.ssl_keyfile, config.ssl_certfile = key, certificate
        return config

    server.uvicorn_config = encrypted  # type: ignore[assignment]


if __name__ == "__main__":
    encrypt(*sys.argv[1:3])
    main(sys.argv[3:])
