"""The lifespans that apps bring along, in the one shape that the plugin wraps."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def no_lifespan(_: Any) -> AsyncIterator[None]:
    """Do nothing around an app."""
    yield


@asynccontextmanager
async def on_event_lifespan(app: Any) -> AsyncIterator[None]:
    """Run the ``on_event`` handlers that FastAPI keeps on its router; nothing on Starlette 1."""
    router = getattr(app, "router", None)
    for handler in getattr(router, "on_startup", ()):
        await _call(handler)
    try:
        yield
    finally:
        for handler in getattr(router, "on_shutdown", ()):
            await _call(handler)


def normalized(lifespan: Any) -> Lifespan:
    """Accept the bare generator functions that older apps pass, as Starlette itself does."""
    if inspect.isasyncgenfunction(lifespan):
        return asynccontextmanager(lifespan)
    if inspect.isgeneratorfunction(lifespan):
        manager = contextmanager(lifespan)

        @asynccontextmanager
        async def lifted(app: Any) -> AsyncIterator[Any]:
            with manager(app) as state:
                yield state

        return lifted
    accepted: Lifespan = lifespan
    return accepted


async def _call(handler: Callable[[], Any]) -> None:
    result = handler()
    if inspect.isawaitable(result):
        await result
