"""Does it pay to wait for more items when a slot is free? A simulation of the policies that might.

Poisson arrivals, one or two slots, batches of at most 32 that take s(n) = a n + b. ``none``: take all.
``rule``: wait for the next arrival while what waits loses less than a batch costs, n / rate < b, at most
5 ms; rate and b are known exactly. ``fixed``: always 5 ms from the first item. Deterministic; about 2 s.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence

ITEMS, MOST, WAIT_S = 12_000, 32, 0.005
MODELS = {"18 + 0.1 n ms": (1e-4, 18e-3), "2 + 0.05 n ms": (5e-5, 2e-3), "0.1 + 0.03 n ms": (3e-5, 1e-4)}


def patience(policy: str, waiting: int, rate: float, fixed_s: float) -> bool:
    """Whether ``waiting`` items wait for another one."""
    return policy == "fixed" or (policy == "rule" and waiting / rate < fixed_s)


def begun_at(
    policy: str, arrivals: Sequence[float], first: int, free_at: float, rate: float, b: float
) -> tuple[float, int]:
    """When the batch that begins with item ``first`` begins, and where it ends."""
    now = max(free_at, arrivals[first])
    limit = max(now, arrivals[first] + WAIT_S) if policy == "fixed" else now + WAIT_S
    end = first
    while end < len(arrivals) and end - first < MOST:
        if arrivals[end] > now:
            if not patience(policy, end - first, rate, b):
                break
            if arrivals[end] > limit:
                return limit, end
            now = arrivals[end]
        end += 1
    return now, end


def simulate(policy: str, a: float, b: float, rate: float, slots: int) -> tuple[float, float, float]:
    """Mean and p99 latency in milliseconds, and items per batch."""
    chance, now, arrivals = random.Random(1), 0.0, []
    for _ in range(ITEMS):
        now += chance.expovariate(rate)
        arrivals.append(now)
    free, first, batches, latencies = [0.0] * slots, 0, 0, []
    while first < ITEMS:
        slot = min(range(slots), key=free.__getitem__)
        begin, end = begun_at(policy, arrivals, first, free[slot], rate, b)
        free[slot] = begin + a * (end - first) + b
        latencies += [free[slot] - arrived for arrived in arrivals[first:end]]
        first, batches = end, batches + 1
    latencies.sort()
    p99 = latencies[int(0.99 * ITEMS)]
    return 1e3 * statistics.mean(latencies), 1e3 * p99, ITEMS / batches


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| model | slots | load | mean ms: none, rule, fixed | p99 ms | items per batch |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (a, b) in MODELS.items():
        for slots in (1, 2):
            for load in (0.05, 0.2, 0.5, 0.8, 0.95):
                rate = load * slots * MOST / (a * MOST + b)
                columns = zip(
                    *(simulate(p, a, b, rate, slots) for p in ("none", "rule", "fixed")), strict=True
                )
                cells = [", ".join(f"{value:.3g}" for value in column) for column in columns]
                print(f"| {name} | {slots} | {load} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
