"""The native threads of this process, from before the app starts until after it has stopped."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from asgi_mlperf.host.early_threads import early_threads_capped
from asgi_mlperf.host.environment import exported, thread_counts
from asgi_mlperf.host.heaps import freed_memory_kept, heaps
from asgi_mlperf.host.libraries import look_up
from asgi_mlperf.host.selfcheck import checking
from asgi_mlperf.host.tasks import watching
from asgi_mlperf.host.threads import NativeThreadCaps
from asgi_mlperf.host.topology import affinity, physical_cores
from asgi_mlperf.host.widths import widths
from asgi_mlperf.runtime.process import claim, left_off_loop, off_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from asgi_mlperf.hooks import Opener
    from asgi_mlperf.runtime.process import Process
    from asgi_mlperf.telemetry.metrics import Metrics

log = logging.getLogger("asgi_mlperf")


@asynccontextmanager
async def native_threads(process: Process) -> AsyncIterator[NativeThreadCaps | None]:
    """Cap the native threads of every thread, and place them, inside this block."""
    threads, budget = process.settings.threads, process.budget
    with claim("native threads", wanted=threads.enabled or threads.pin) as mine, ExitStack() as stack:
        place_new = stack.enter_context(_pinned(process)) if mine and threads.pin else None
        if not mine or not threads.enabled:
            yield None
            return
        if not budget.workers_known:
            log.warning("the number of workers is not known, one is assumed: set ASGI_MLPERF_WORKERS")
        if threads.keep_freed_memory:  # first: each new thread would get a heap of its own
            shared = heaps(budget.per_worker, process.memory_limit, budget.workers)
            stack.enter_context(freed_memory_kept(shared, os.environ))
        allowed = widths(
            native=threads.native,
            cpus=budget.per_worker,
            cores=budget.cores_per_worker,
            inference_threads=process.inference_threads,
        )
        stack.enter_context(exported(thread_counts(allowed.alone)))
        caps = NativeThreadCaps(allowed, interop=threads.interop, place_new=place_new)
        stack.callback(caps.restore)
        caps.refresh(await off_loop(look_up))
        caps.begin_on_loop()
        stack.enter_context(watching(caps))
        stack.enter_context(early_threads_capped(caps))
        yield caps


@contextmanager
def _pinned(process: Process) -> Iterator[Callable[[], None] | None]:
    """Yield what a new thread must call to be placed, None where nothing is pinned."""
    budget = process.budget
    if not hasattr(os, "sched_setaffinity"):
        log.warning("ASGI_MLPERF_THREADS__PIN needs Linux; nothing is pinned")
        yield None
        return
    if not budget.pinnable:
        log.warning(
            "ASGI_MLPERF_THREADS__PIN needs CPUs of one's own; the %s allows %g, nothing is pinned",
            budget.source,
            budget.cpus,
        )
        yield None
        return
    from asgi_mlperf.host.affinity import pinned, placement, worker_slot  # noqa: PLC0415 - Linux only

    with worker_slot(budget.workers) as slot:
        if slot is None:
            log.warning("more workers than ASGI_MLPERF_WORKERS=%d; this one is not pinned", budget.workers)
            yield None
            return
        cores = physical_cores(affinity())
        place = placement(cores, slot, budget.workers, loop_core=process.settings.threads.loop_core)
        with pinned(place):
            yield place.place_new


def caps_openers(caps: NativeThreadCaps | None) -> tuple[Opener, ...]:
    """Return what caps ops on the event loop itself."""
    return () if caps is None else (caps.begin_on_loop,)


@asynccontextmanager
async def self_checked(
    process: Process, caps: NativeThreadCaps | None, metrics: Metrics
) -> AsyncIterator[None]:
    """Count, off the path, what native threads an op really starts."""
    if caps is None or not process.settings.threads.self_check:
        yield
        return
    check = checking(caps, lambda library, count: metrics.native_threads(library).set(count))
    async with left_off_loop(check):  # it may still run when a short lifespan ends
        yield
