"""mosec with orjson in place of the JSON that it comes with."""

from __future__ import annotations

from typing import Any

import orjson
from mosec_server import Inference, serve


class FastInference(Inference):
    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)


if __name__ == "__main__":
    serve(FastInference)
