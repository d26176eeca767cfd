"""The demo's one error: what happened, and what to do about it."""

from __future__ import annotations


class DemoFailed(Exception):  # noqa: N818 - reads as what happened
    """Raised when a step of the demo cannot be done or gave a wrong result."""

    def __init__(self, happened: str, remedy: str) -> None:
        super().__init__(f"{happened}\n{remedy}")
        self.happened = happened
        self.remedy = remedy
