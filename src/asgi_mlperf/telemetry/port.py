"""The metrics on a port of their own, served by threads: even a stuck event loop can be scraped."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from asgi_mlperf.telemetry.access import may_read
from asgi_mlperf.telemetry.rendering import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asgi_mlperf.telemetry.rendering import Renderer

log = logging.getLogger("asgi_mlperf")

_PATIENCE_S = 5.0


@contextmanager
def own_port(
    renderer: Renderer, *, host: str, first: int, workers: int, path: str, token: str | None
) -> Iterator[int | None]:
    """Serve inside this block; yield the port: the first free one of as many as there are workers.

    None is free: a warning, and nothing is served. Blocks at its end, shortly: off the event loop.
    """
    server = _bound(host, range(first, first + workers), _handler(renderer, path, token))
    if server is None:
        yield None
        return
    port: int = server.server_address[1]
    log.info("metrics of this worker are served on %s:%d%s", host, port, path)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="asgi-mlperf-metrics", daemon=True
    )
    thread.start()
    try:
        yield port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False


def _bound(host: str, ports: range, handler: type[BaseHTTPRequestHandler]) -> _Server | None:
    for port in ports:
        try:
            return _Server((host, port), handler)
        except OSError as error:
            failure = error
    log.warning(
        "no metrics port for this worker: %s:%d to %d are taken or not to be had (%s); set "
        "ASGI_MLPERF_METRICS__PORT to the first of as many free ports as ASGI_MLPERF_WORKERS",
        host,
        ports[0],
        ports[-1],
        failure,
    )
    return None


def _handler(renderer: Renderer, path: str, token: str | None) -> type[BaseHTTPRequestHandler]:
    class Scrape(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != path:
                self.send_error(404)
            elif not may_read(self.headers["authorization"], token):
                self.send_error(401)
            else:
                wanted = Wanted.of(self.headers["accept"] or "", self.headers["accept-encoding"] or "")
                page = renderer.page(wanted)
                self.send_response(200)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(page.body)))
                self.end_headers()
                self.wfile.write(page.body)

        def log_message(self, *_: Any) -> None:
            """Keep scrapes out of the log."""

    return Scrape
