"""Coroutine functions, as others hand them over: objects with an async ``__call__`` are such functions too."""

import inspect


def is_async(function: object) -> bool:
    """Return True for what returns a coroutine when it is called."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
