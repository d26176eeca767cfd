"""Who may read the metrics."""

from __future__ import annotations

import hmac


def may_read(authorization: str | None, token: str | None) -> bool:
    """Say whether an ``Authorization`` header gives the token, if one is asked for; in constant time."""
    if token is None:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
