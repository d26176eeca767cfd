"""The loaded libraries that start native threads, each behind the same two calls."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("asgi_mlperf")

_SOFT = 1  # omp.h: omp_pause_soft


@dataclass(frozen=True)
class Library:
    """A loaded library: how to read and set how many threads an op may use.

    ``per_thread`` is true where the count belongs to the calling thread (OpenMP, torch); else it is one
    for the process. ``found`` is the count before it was touched: no cap ever raises it. ``rest`` ends the
    native threads that wait for the calling thread's next op.
    """

    name: str
    key: str
    found: int
    per_thread: bool
    get: Callable[[], int]
    set: Callable[[int], None]
    rest: Callable[[], Any] | None = None


def look_up() -> ThreadpoolController:
    """Find the native libraries that are loaded now, which reads files: not for the event loop."""
    return ThreadpoolController()


def loaded(found: ThreadpoolController | None = None) -> Iterator[Library]:
    """Yield every library ``found``, by default now; torch apart from the OpenMP that it governs."""
    torch = _torch()
    for controller in (look_up() if found is None else found).lib_controllers:
        library = _native(controller)
        if torch is None or not library.per_thread or not _governs(torch, library):
            yield library
        else:
            torch = replace(torch, rest=library.rest)
    if torch is not None:
        yield torch


def set_interop(threads: int) -> None:
    """Set torch's inter-op threads, if torch is loaded and has not started or set them."""
    try:
        sys.modules["torch"].set_num_interop_threads(threads)
    except RuntimeError:
        log.debug("torch inter-op threads were already set or used; left as they are")


def _native(controller: Any) -> Library:
    def get() -> int:
        return int(controller.get_num_threads() or 1)

    # threadpoolctl lets only the first thread that sets OpenBLAS's count set it again; here any may.
    set_ = getattr(controller, "_real_set_num_threads", controller.set_num_threads)
    layer = getattr(controller, "threading_layer", None)
    return Library(
        name=controller.prefix or controller.internal_api,
        key=controller.filepath,
        found=get(),
        per_thread="openmp"
        in {controller.user_api, layer if controller.internal_api == "openblas" else None},
        get=get,
        set=set_,
        rest=_rest(controller),
    )


def _rest(controller: Any) -> Callable[[], Any] | None:
    """Only of libgomp: the same call of libomp is for the whole process."""
    pause = getattr(controller.dynlib, "omp_pause_resource_all", None) if _is_libgomp(controller) else None
    return pause and partial(pause, _SOFT)


def _is_libgomp(controller: Any) -> bool:
    return bool(controller.internal_api == "openmp" and controller.prefix == "libgomp")


def _torch() -> Library | None:
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "set_num_interop_threads"):
        return None  # absent, or half imported by another thread: the next look sees it whole
    get, set_ = torch.get_num_threads, torch.set_num_threads
    return Library(name="torch", key="torch", found=get(), per_thread=True, get=get, set=set_)


def _governs(torch: Library, openmp: Library) -> bool:
    """Tell whether torch's count is that of this runtime: wheels bring their own, conda shares one."""
    before = openmp.get()
    openmp.set(before + 1)
    governs = torch.get() == before + 1
    openmp.set(before)
    return governs
