"""The panels of what happens in between: model calls, collections, the event loop, the host."""

from __future__ import annotations

from asgi_mlperf.telemetry.dashboard.panels import FROM, Panel, Query, Section, by_label, quantiles
from asgi_mlperf.telemetry.dashboard.queries import ENCODE, LAG, PAUSES, QUEUE, REFUSED, RUN

_DECOMPOSITION = Section(
    "Where the time goes",
    (
        Panel(
            "A model call, on average",
            "s",
            "What a call waits for a thread and what it takes there. Waiting longer than running: overload.",
            (
                Query(FROM.mean(QUEUE), "waiting"),
                Query(FROM.mean(RUN), "running"),
                Query(FROM.mean(ENCODE), "encoding"),
            ),
            width=6,
            stacked=True,
        ),
        Panel(
            "Waiting for a thread",
            "s",
            "From a model call to its start, by pool.",
            quantiles(QUEUE, by="pool"),
            width=6,
        ),
        Panel(
            "Running",
            "s",
            "Run time of a model call or batch, by pool.",
            quantiles(RUN, by="pool"),
            width=6,
        ),
        Panel(
            "Encoding",
            "s",
            "Time to encode a response of the package's own response classes, by format.",
            quantiles(ENCODE, by="format"),
            width=6,
        ),
    ),
)

_INFERENCE = Section(
    "Inference",
    (
        Panel(
            "Threads at work",
            "short",
            "Model calls and batches that run, by pool; the callers of some may be gone.",
            by_label(FROM.total("asgi_mlperf_inference_running", by=("pool",)), "pool"),
            width=6,
        ),
        Panel(
            "Queue",
            "short",
            "Model calls and batches that wait, by pool.",
            by_label(FROM.total("asgi_mlperf_inference_queue_length", by=("pool",)), "pool"),
            width=6,
        ),
        Panel(
            "Refused",
            "ops",
            "Calls refused per second, because the queue was full or their deadline out of reach.",
            (Query(FROM.rate(REFUSED, by=("pool", "reason")), "{{pool}} {{reason}}"),),
            width=6,
        ),
        Panel(
            "Abandoned",
            "ops",
            "Calls per second whose caller stopped waiting, by reason.",
            (
                Query(
                    FROM.rate("asgi_mlperf_inference_abandoned_total", by=("pool", "reason")),
                    "{{pool}} {{reason}}",
                ),
            ),
            width=6,
        ),
    ),
)

_BATCHES = Section(
    "Batches",
    (
        Panel(
            "Batch size",
            "short",
            "Items per batch, by function, on average. Near 1: the model is faster than its callers.",
            by_label(FROM.mean("asgi_mlperf_batch_size", by=("function",)), "function"),
        ),
        Panel(
            "Waiting of an item",
            "s",
            "From an item's arrival to its batch's start, by function.",
            quantiles("asgi_mlperf_batch_linger_seconds", by="function"),
        ),
        Panel(
            "Running of a batch",
            "s",
            "Run time of a batch, by function.",
            quantiles("asgi_mlperf_batch_run_seconds", by="function"),
        ),
        Panel(
            "What closes batches",
            "ops",
            "Batches per second by why they hold no more: full, nothing else waits, deadline, cost.",
            (
                Query(
                    FROM.rate("asgi_mlperf_batch_closed_total", by=("function", "reason")),
                    "{{function}} {{reason}}",
                ),
            ),
            width=6,
        ),
        Panel(
            "Where batches run",
            "short",
            "Workers that run a function's batches on the event loop (inline, task) or on a thread.",
            (
                Query(
                    FROM.total("asgi_mlperf_batch_executor", by=("function", "executor")),
                    "{{function}} {{executor}}",
                ),
            ),
            width=6,
            stacked=True,
        ),
        Panel(
            "Padding",
            "percentunit",
            "Share of padded batches that is padding, on average, where items have a cost.",
            by_label(FROM.mean("asgi_mlperf_batch_padding_ratio", by=("function",)), "function"),
            width=6,
        ),
        Panel(
            "Restarts",
            "ops",
            "New starts of a dispatcher after it failed, per second: the log says why.",
            (Query(f"{FROM.rate('asgi_mlperf_batch_restarts_total')} or vector(0)", "restarts"),),
            width=6,
        ),
    ),
)

_GARBAGE = Section(
    "Garbage collector",
    (
        Panel(
            "Pauses, p99",
            "s",
            "Pauses inside a request are what clients feel; those while idle cost nothing.",
            by_label(FROM.quantile(0.99, PAUSES, by=("where",)), "where"),
            width=6,
        ),
        Panel(
            "Share of time",
            "percentunit",
            "Share of a worker's time in collections, the worst worker.",
            (Query(FROM.most("asgi_mlperf_gc_share_ratio"), "share"),),
            width=6,
            thresholds=(0.05,),
        ),
        Panel(
            "Collections",
            "ops",
            "Per second, by generation: 2 is the whole heap.",
            by_label(FROM.rate(f"{PAUSES}_count", by=("generation",)), "generation"),
            width=6,
        ),
        Panel(
            "Freed",
            "ops",
            "Objects freed per second, by generation.",
            by_label(FROM.rate("asgi_mlperf_gc_freed_objects_total", by=("generation",)), "generation"),
            width=6,
        ),
        Panel(
            "Full collection due",
            "s",
            "How long a full collection has been put off, the worst worker.",
            (Query(FROM.most("asgi_mlperf_gc_deferred_seconds"), "due for"),),
            width=6,
        ),
        Panel(
            "Valve",
            "short",
            "Workers in which CPython's own collection is re-armed: memory grew, or the loop is stuck.",
            (Query(FROM.total("asgi_mlperf_gc_valve_open"), "open"),),
            width=6,
            thresholds=(1,),
        ),
        Panel(
            "Frozen objects",
            "short",
            "Objects kept out of collections: the app, its libraries, its models.",
            (Query(FROM.total("asgi_mlperf_gc_frozen_objects"), "frozen"),),
            width=6,
        ),
    ),
)

_HOST = Section(
    "Event loop and host",
    (
        Panel(
            "Event-loop lag, p99",
            "s",
            "How late the loop comes back, because of the garbage collector or of anything that blocks it.",
            by_label(FROM.quantile(0.99, LAG, by=("cause",)), "cause"),
        ),
        Panel(
            "Native threads of an op",
            "short",
            "Threads that one op of a library may use. More than the CPUs of a worker: workers fight.",
            by_label(FROM.most("asgi_mlperf_native_threads", by=("library",)), "library"),
        ),
        Panel(
            "Threads at work for each CPU",
            "short",
            "Calls that run, times the native threads of an op, for each CPU. Above 1 they fight.",
            (Query(FROM.threads_per_cpu(), "threads per CPU"),),
            thresholds=(1.5,),
        ),
        Panel(
            "Memory",
            "bytes",
            "Resident memory of all workers, and what the container may use, if it has a limit.",
            (
                Query(FROM.total("asgi_mlperf_memory_rss_bytes"), "resident"),
                Query(FROM.most("asgi_mlperf_memory_limit_bytes"), "limit"),
            ),
        ),
        Panel(
            "Workers",
            "short",
            "Workers that are ready for traffic, and the CPUs that they may use.",
            (
                Query(FROM.total("asgi_mlperf_ready"), "ready"),
                Query(FROM.total("asgi_mlperf_cpu_budget_cores"), "CPUs"),
            ),
        ),
    ),
)

SECTIONS = (_DECOMPOSITION, _INFERENCE, _BATCHES, _GARBAGE, _HOST)
