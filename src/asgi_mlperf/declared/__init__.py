"""What an app declares on its plugin at import: batched functions, pools, limits. They work while it runs."""

from asgi_mlperf.declared.batched import Batched, BatchedStream
from asgi_mlperf.declared.pools import InferencePool, Priority, RemoteLimit

__all__ = ["Batched", "BatchedStream", "InferencePool", "Priority", "RemoteLimit"]
