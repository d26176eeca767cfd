"""What may be said of a batched function, and what is refused when it is declared."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

ExecutorName = Literal["auto", "inline", "thread"]
"""Where batches run: on the event loop, on a pool's threads, or wherever is better at the moment."""

Retry = Literal["bisect"]
"""How a batch that raised is tried again: by halves, until what raises is alone."""


class BatchingSettings(BaseModel):
    """Defaults of ``plugin.batched``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: int = Field(default=32, ge=1, description="items that one batch may hold")
    executor: ExecutorName = Field(
        default="auto", description="where batches run: on the event loop, on threads, or as measured"
    )
    inline_budget_ms: float = Field(
        default=5.0,
        gt=0,
        le=1_000,
        description="with `auto`: milliseconds that a batch may hold the event loop; else a thread runs it",
    )
    stream_chunks: int = Field(
        default=1_024,
        ge=1,
        description="chunks of a stream that may wait for its caller before its batch waits for it too",
    )
    stall_ms: int = Field(
        default=10_000,
        ge=1,
        description="milliseconds that a batch waits for a caller who takes nothing, whose stream then ends",
    )


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What was declared of a batched function; ``Plugin.batched`` says what each means.

    Raises ``ValueError`` for what cannot be meant.
    """

    max_size: int
    pool: str
    stream_chunks: int
    stall_s: float
    executor: ExecutorName | None = None
    default_executor: ExecutorName = "auto"
    inline_budget_s: float = 0.005
    key: Callable[[Any], Hashable] | None = None
    cost: Callable[[Any], float] | None = None
    max_cost: float | None = None
    collate: Callable[[list[Any]], Any] | None = None
    split: Callable[[Any], Any] | None = None
    retry: Retry | None = None

    def __post_init__(self) -> None:
        if self.max_size < 1:
            raise ValueError(f"max_size is the number of items in a batch, at least 1, not {self.max_size}")
        if self.executor not in (None, *get_args(ExecutorName)):
            raise ValueError(f"executor is auto, inline or thread, not {self.executor!r}")
        if self.retry not in (None, *get_args(Retry)):
            raise ValueError(f'retry is "bisect" or None, not {self.retry!r}')
        if (self.cost is None) != (self.max_cost is None):
            raise ValueError(
                "cost= says what an item costs, max_cost= what a batch may: give both or neither"
            )
        if self.max_cost is not None and not self.max_cost > 0:
            raise ValueError(f"max_cost is what a batch may cost, above 0, not {self.max_cost}")

    def check(self, func: Callable[..., Any]) -> None:
        """Raise ``ValueError`` for options that ``func`` cannot have."""
        generates = is_generator_function(func)
        if self.executor == "thread" and runs_on_loop(func):
            raise ValueError('a coroutine function runs on the event loop: leave executor="thread" out')
        if self.executor == "inline" and generates:
            raise ValueError('a generator function runs on a thread: leave executor="inline" out')
        if self.retry and generates:
            raise ValueError('a stream that has begun cannot be tried again: leave retry="bisect" out')

    @property
    def budget(self) -> float:
        """The padded size that a batch may have."""
        return math.inf if self.max_cost is None else self.max_cost


def is_coroutine_function(func: Callable[..., Any]) -> bool:
    """Say whether calling ``func`` gives a coroutine, also for objects with an async ``__call__``."""
    return _is(inspect.iscoroutinefunction, func)


def is_generator_function(func: Callable[..., Any]) -> bool:
    """Say whether calling ``func`` gives a generator, asynchronous or not."""
    return _is(inspect.isgeneratorfunction, func) or _is(inspect.isasyncgenfunction, func)


def runs_on_loop(func: Callable[..., Any]) -> bool:
    """Say whether ``func`` needs the event loop: coroutine functions and asynchronous generators do."""
    return is_coroutine_function(func) or _is(inspect.isasyncgenfunction, func)


def _is(test: Callable[[Any], bool], func: Callable[..., Any]) -> bool:
    return test(func) or test(getattr(func, "__call__", None))  # noqa: B004 - the method itself is wanted
