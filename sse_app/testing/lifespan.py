"""An app's lifespan, run beside its requests."""

import asyncio
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Scope

from sse_app.testing.tasks import finish


class Lifespan:
    """The app's lifespan, in a task of its own from ``start`` to ``stop``."""

    def __init__(self, app: ASGIApp, grace: float) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._grace = grace
        self._requests: asyncio.Queue[Message] = asyncio.Queue()  # at most one of each phase
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._error: Exception | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="lifespan")
        try:
            await self._run_phase("startup")
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        try:
            await self._run_phase("shutdown")
        finally:
            await self._end()

    async def _run(self) -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._requests.get, self._answers.put)
        except Exception as error:
            self._error = error
        finally:
            self._answers.put_nowait({"type": "lifespan.ended"})

    async def _run_phase(self, phase: str) -> None:
        self._requests.put_nowait({"type": f"lifespan.{phase}"})
        answer = await self._answers.get()
        if answer["type"] != f"lifespan.{phase}.complete":
            await self._end()
            message = answer.get("message") or f"the app's {phase} failed: {self._error or 'it ended'}"
            raise RuntimeError(message) from self._error

    async def _end(self) -> None:
        with anyio.CancelScope(shield=True):
            await finish({self._task}, self._grace)
