"""The app's word on each publication before it is in the log: ``Hub(before_publish=...)``."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sse_app.drafts import Drafts, at
from sse_app.errors import Unavailable, Vetoed
from sse_app.grants import Grant
from sse_app.publication import Draft

BeforePublish = Callable[[Draft, Grant], Awaitable[Draft]]

WINDOW = 5.0  # seconds that it may take
ASKED_AT_ONCE = 64  # drafts of a batch, without a turn of the loop if it waits for nothing


class Vetting:
    """Asks ``before_publish`` for each draft. What it returns is published, with ``body_max`` bytes of data at most."""

    def __init__(self, before_publish: BeforePublish, *, body_max: int | None = None) -> None:
        self._before_publish, self._body_max = before_publish, body_max

    async def ask(self, draft: Draft, grant: Grant) -> Draft:
        """Return the draft to publish in place of one that a caller with this grant gave. Raises Vetoed; Unavailable
        when the app takes too long; RuntimeError for whatever else it raises, and when it returns no draft that can be
        published: those are mistakes of the app's, not the caller's.
        """
        async with _asking():
            return self._checked(await self._before_publish(draft, grant), draft)

    async def ask_all(self, drafts: Drafts, grant: Grant) -> Drafts:
        """Return the drafts to publish in place of these. The app is asked for each, in their order, and has as long
        for all as for one. Raises as ``ask`` does.
        """
        answers: list[Draft] = []
        async with _asking():
            for draft in drafts:
                try:
                    answers.append(self._checked(await self._before_publish(draft, grant), draft))
                except Vetoed as error:
                    raise at(f"events[{len(answers)}]", error) from error.__cause__
                if len(answers) % ASKED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            return Drafts(tuple(answers), drafts.idempotency_key)

    def _checked(self, answer: object, asked: Draft) -> Draft:
        if answer is asked:
            return asked
        if not isinstance(answer, Draft):
            raise TypeError(
                f"before_publish returns the Draft to publish or raises Vetoed, not {type(answer).__name__}"
            )
        if (asked.topics and not answer.topics) or (asked.to and not answer.to):
            raise ValueError("a draft for some was returned without its topics, or its to: that would be for everyone")
        return answer.checked(self._body_max)


@asynccontextmanager
async def _asking() -> AsyncIterator[None]:
    """Give the app WINDOW seconds in this block, and turn its mistakes into the errors that ``ask`` names."""
    try:
        async with asyncio.timeout(WINDOW) as window:
            yield
    except Vetoed:
        raise
    except Exception as error:
        if window.expired():
            raise Unavailable(
                f"The app's before_publish took longer than {WINDOW:g} s, so nothing was published; try again."
            ) from None
        raise RuntimeError(f"before_publish failed, so nothing was published: {type(error).__name__}") from error
