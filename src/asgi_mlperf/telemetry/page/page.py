"""The page and the figures beneath it, for who has the token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from functools import cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse

from asgi_mlperf.telemetry.page.snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from asgi_mlperf.hooks import Clock

_SHARED = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class PageSettings(BaseModel):
    """The built-in page with live figures of one worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr | None = Field(
        default=None, description="password of the page, for any user name; without it there is no page"
    )
    path: str = Field(default="/mlperf", pattern="^/.*[^/]$", description="path of the page")

    @property
    def data_path(self) -> str:
        """Where the page's figures are."""
        return f"{self.path}/data"


class Page:
    """Two ASGI apps: ``page``, which loads nothing from elsewhere, and ``data``, its figures as JSON.

    Both want the token, as the password of HTTP basic authentication, for which browsers ask by themselves,
    or as ``Authorization: Bearer``.
    """

    def __init__(
        self,
        token: str,
        *,
        collect: Callable[[], Iterable[Metric]],
        reasons: Callable[[], list[str]],
        clock: Clock,
    ) -> None:
        """``collect`` gives this worker's series, ``reasons`` why it is not ready."""
        self._token = token.encode()
        self._collect = collect
        self._reasons = reasons
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(1)

    async def page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the page."""
        response = self._refusal(scope)
        if response is None:
            html, policy = await anyio.to_thread.run_sync(_document, limiter=self._limiter)
            response = HTMLResponse(html, headers={**_SHARED, "content-security-policy": policy})
        await response(scope, receive, send)

    async def data(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the figures, read off the event loop."""
        response = self._refusal(scope)
        if response is None:
            figures = await anyio.to_thread.run_sync(self._figures, limiter=self._limiter)
            response = JSONResponse({**figures, "reasons": self._reasons()}, headers=_SHARED)
        await response(scope, receive, send)

    def _figures(self) -> dict[str, Any]:
        return {"worker": os.getpid(), "at": self._clock(), **snapshot(self._collect())}

    def _refusal(self, scope: Scope) -> Response | None:
        if hmac.compare_digest(_given(Headers(scope=scope).get("authorization", "")), self._token):
            return None
        return PlainTextResponse(
            "the token is in ASGI_MLPERF_PAGE__TOKEN",
            401,
            {**_SHARED, "www-authenticate": 'Basic realm="asgi-mlperf", charset="UTF-8"'},
        )


def _given(authorization: str) -> bytes:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip().encode()
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


@cache
def _document() -> tuple[str, str]:
    """Return the page and the policy that allows its own style and script, and nothing else."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    html = Template((here / "page.html").read_text(encoding="utf-8"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.substitute(style=style, script=script), policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
