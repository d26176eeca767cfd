"""What a batched function returns and raises, as each caller gets it."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

from asgi_mlperf.exceptions import BatchError
from asgi_mlperf.inference.options import runs_on_loop
from asgi_mlperf.inference.waiting import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from asgi_mlperf.inference.options import BatchOptions


def computing(func: Callable[[Any], Any], options: BatchOptions) -> Callable[[list[Any]], Any]:
    """Return ``func`` with collating and splitting around it: a list of items in, a list of results out.

    For a coroutine function it returns one.
    """
    collate, split = options.collate, options.split

    def results(given: Any, count: int) -> list[Any]:
        return results_of(given if split is None else split(given), count, func)

    async def compute_on_loop(values: list[Any]) -> list[Any]:
        return results(await func(values if collate is None else collate(values)), len(values))

    def compute(values: list[Any]) -> list[Any]:
        return results(func(values if collate is None else collate(values)), len(values))

    return compute_on_loop if runs_on_loop(func) else compute


def results_of(results: Any, count: int, func: Callable[..., Any]) -> list[Any]:
    """Check that ``results`` is one result per item, in order: a list, a tuple, an array or a tensor."""
    if inspect.iscoroutine(results):
        results.close()
    is_sequence = hasattr(results, "__len__") and hasattr(results, "__getitem__")
    if not is_sequence or isinstance(results, str | bytes | bytearray) or hasattr(results, "keys"):
        raise BatchError(
            f"{name_of(func)} returned {type(results).__name__}; a batched function takes a list and "
            f"returns a list of the same length"
        )
    try:
        checked = list(results)
    except Exception as error:
        raise BatchError(
            f"{name_of(func)} returned a {type(results).__name__} that cannot be read: {error}"
        ) from error
    if len(checked) != count:
        raise BatchError(
            f"{name_of(func)} returned {len(checked)} results for {count} items; a batched function returns "
            f"one result per item, in order"
        )
    return checked


def copy_of(error: BaseException) -> BaseException:
    """Return an error of one's own where it can be had: tracebacks and notes must not cross callers."""
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - not every error can be made again from its arguments
        return error
    if type(own) is not type(error):
        return error
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    own.__cause__, own.__suppress_context__ = error.__cause__, error.__suppress_context__
    return own.with_traceback(error.__traceback__)


def errors_of(error: BaseException, count: int, name: str) -> list[BaseException]:
    """Return the error of each item of a batch that failed as a whole, which says so where it is many."""
    if count < 2:  # noqa: PLR2004 - its own error needs no copy
        return [error][:count]
    errors = [copy_of(error) for _ in range(count)]
    if errors[0] is not error:
        for number, own in enumerate(errors, 1):
            own.add_note(f"{name} raised this for a batch of {count} items; this caller's is number {number}")
    return errors
