"""What encoding a response took, told to the request that it is for."""

from __future__ import annotations

from time import perf_counter

from asgi_mlperf.hooks import current_exchange

clock = perf_counter


def encoded(format_: str, since: float) -> None:
    """Tell the current request, if there is one, that its response was encoded from ``since`` until now."""
    exchange = current_exchange.get()
    if exchange is not None:
        exchange.encodings += ((format_, clock() - since),)
