"""The endpoints for operators: ``/stats``, ``/metrics``, ``/grant``, ``/healthz``, ``/readyz``."""

from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from sse_app import metrics
from sse_app.errors import Draining
from sse_app.node import Node
from sse_app.web.callers import Callers
from sse_app.web.endpoints.json_answer import json_answer

HEALTH = ("/healthz", "/readyz")  # any Host may ask: probes know only an address, and the answers reveal nothing
VERSIONS = {name: version(name) for name in ("sse-app", "starlette", "sse-starlette", "uvicorn")}


class Operations:
    """The endpoints of one hub for its operators."""

    def __init__(self, node: Node, callers: Callers) -> None:
        self._node, self._callers = node, callers

    async def stats(self, request: Request) -> Response:
        grant = await self._callers.find(request)
        with self._callers.scope_counted():
            stats = await self._node.stats(grant)
        return json_answer({**stats, "versions": VERSIONS})

    async def metrics(self, request: Request) -> Response:
        grant = await self._callers.find(request)
        with self._callers.scope_counted():
            grant.check_stats(all_of_it=True)
        totals = self._node.totals + self._node.siblings
        gauges = self._node.gauges() | self._callers.gauges()
        return Response(metrics.exposition(totals, gauges), media_type=CONTENT_TYPE_LATEST)

    async def grant(self, request: Request) -> Response:
        """GET /grant: what the caller may do, which answers why it sees nothing."""
        grant = await self._callers.find(request)
        return json_answer(grant.describe())

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: 200 as long as the process answers."""
        return json_answer({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: 200 while the hub takes publications and subscribers."""
        self._node.life.check_started()
        if self._node.draining:
            raise Draining("The hub is stopping.")
        self._node.broker.check()
        return json_answer({"status": "ready"})
