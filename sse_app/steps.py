"""Long work in steps, between which the event loop turns."""

import asyncio
from collections.abc import Iterator


async def outside_tasks(steps: Iterator[None]) -> None:
    """Take these steps one by one in turns of the loop, none of them inside a task.

    What writes to a foreign server starts its ``send``. A deadline in there would take the task that it finds for its
    own, and cancel it: the hub's. Outside of tasks it fails at once, and with it that one stream.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def step() -> None:
        if done.done():
            return  # the hub has been stopped
        try:
            next(steps)
        except StopIteration:
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)
        else:
            loop.call_soon(step)

    loop.call_soon(step)
    await done
