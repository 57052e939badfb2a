"""The end of tasks that run an app: waited for, then cancelled."""

import asyncio
from collections.abc import Collection


async def finish(tasks: Collection[asyncio.Task[None]], grace: float, *, cancel: bool = True) -> None:
    """Wait up to ``grace`` seconds for the tasks to end, then cancel them and wait that long again."""
    running = {task for task in tasks if not task.done()}
    if running:
        _, running = await asyncio.wait(running, timeout=grace)
    if not running or not cancel:
        return
    for task in running:
        task.cancel()
    _, running = await asyncio.wait(running, timeout=grace)
    if running:
        raise RuntimeError(f"{len(running)} call(s) of the app still ran {grace} s after they were cancelled")
