# app.py
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route

from sse_app import Hub

hub = Hub()


async def orders(request: Request) -> FileResponse:
    return FileResponse(Path(__file__).with_name("orders.html"))


app = Starlette(routes=[Route("/", orders), Mount("/hub", hub.app)], lifespan=hub.lifespan)
