"""Goodput against offered load by queueing policy, in simulated time; ours is the plugin's admission.

Two slots, calls of 19 ms more or less, Poisson arrivals, clients that leave after 500 ms. Neither HTTP nor
CPU time is simulated, so this shows what a policy could reach; ``overload.py`` measures what is reached.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from goodput_plot import Curve, plot_goodput

from asgi_mlperf.inference.admission import Admission, Refusal
from asgi_mlperf.inference.delays import ServiceTime

SLOTS = 2
SERVICE_S = 0.019
SERVICE_SIGMA = 0.15
PATIENCE_S = 0.5
LOADS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)

kind = ServiceTime()


@dataclass(eq=False, slots=True)
class Client:
    """One client and its call."""

    queued_at: float
    service_s: float
    deadline: float = math.inf
    level: int = 0
    service: ServiceTime = field(default_factory=lambda: kind)
    outcome: str = ""
    over: float = 0.0


class Policy(Protocol):
    """Who starts when: each method returns the clients whose calls start now."""

    def arrive(self, client: Client, now: float) -> list[Client]: ...
    def leave(self, client: Client) -> None: ...
    def end(self, client: Client, now: float) -> list[Client]: ...


class Queue:
    """First in, first out; a client that leaves is computed for all the same."""

    def __init__(self, bound: float = math.inf) -> None:
        self._bound = bound
        self._running = 0
        self._waiting: deque[Client] = deque()

    def arrive(self, client: Client, now: float) -> list[Client]:  # noqa: ARG002 - the policy's
        if self._running < SLOTS:
            self._running += 1
            return [client]
        if len(self._waiting) < self._bound:
            self._waiting.append(client)
        else:
            client.outcome = "refused"
        return []

    def leave(self, client: Client) -> None:
        pass

    def end(self, client: Client, now: float) -> list[Client]:  # noqa: ARG002 - the policy's
        if self._waiting:
            return [self._waiting.popleft()]
        self._running -= 1
        return []


class Ours:
    """The plugin's admission; ``told``: it knows the clients' patience from their deadlines."""

    def __init__(self, *, told: bool) -> None:
        self._timeout_s = PATIENCE_S if told else 60.0
        self._admission: Admission[Client] = Admission(slots=SLOTS, max_queue=1024)

    def arrive(self, client: Client, now: float) -> list[Client]:
        client.deadline = now + self._timeout_s
        try:
            if self._admission.offer(client, now):
                return [client]
        except Refusal:
            client.outcome = "refused"
        return []

    def leave(self, client: Client) -> None:
        self._admission.withdraw(client)

    def end(self, client: Client, now: float) -> list[Client]:
        turn = self._admission.release(now, client, client.service_s)
        for late in turn.refused:
            late.outcome = "refused"
        return [] if turn.next is None else [turn.next]


POLICIES: dict[str, Callable[[], Policy]] = {
    "first in, first out": Queue,
    "the same, 24 may wait": lambda: Queue(bound=24),
    "asgi-mlperf, patience unknown": lambda: Ours(told=False),
    "asgi-mlperf": lambda: Ours(told=True),
}


def simulate(policy: Policy, load: float, seconds: float, seed: int) -> dict[str, float]:
    """Offer ``load`` capacities; return the outcomes' shares, of capacity and of what was offered."""
    global kind  # noqa: PLW0603 - what calls take is learnt anew in every run
    kind = ServiceTime()
    chance, counter = random.Random(seed), itertools.count()
    events: list[tuple[float, int, str, Client]] = []
    clients: list[Client] = []

    def at(when: float, what: str, client: Client) -> None:
        heapq.heappush(events, (when, next(counter), what, client))

    def arrive_after(now: float) -> None:
        now += chance.expovariate(load * SLOTS / SERVICE_S)
        if now < seconds:
            service_s = SERVICE_S * chance.lognormvariate(-(SERVICE_SIGMA**2) / 2, SERVICE_SIGMA)
            at(now, "arrive", Client(now, service_s))

    arrive_after(0.0)
    while events:
        now, _, what, client = heapq.heappop(events)
        started: list[Client] = []
        if what == "arrive":
            clients.append(client)
            arrive_after(now)
            at(now + PATIENCE_S, "leave", client)
            started = policy.arrive(client, now)
        elif what == "leave" and not client.outcome:
            client.outcome = "gave up"
            policy.leave(client)
        elif what == "end":
            if not client.outcome:
                client.outcome, client.over = "answered", now
            started = policy.end(client, now)
        for begun in started:
            at(now + begun.service_s, "end", begun)
    return _summary([client for client in clients if client.queued_at >= seconds / 5], seconds * 4 / 5)


def _summary(clients: list[Client], seconds: float) -> dict[str, float]:
    answered = [client for client in clients if client.outcome == "answered"]
    seconds_each = sorted(client.over - client.queued_at for client in answered) or [math.nan]
    return {
        "goodput": len(answered) / seconds * SERVICE_S / SLOTS,
        "refused": sum(client.outcome == "refused" for client in clients) / len(clients),
        "gave up": sum(client.outcome == "gave up" for client in clients) / len(clients),
        "p50 ms": 1000 * seconds_each[len(seconds_each) // 2],
        "p99 ms": 1000 * seconds_each[int(0.99 * len(seconds_each))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="simulated, the first fifth not counted")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every run's figures here")
    parser.add_argument("--plot", type=Path, help="write the goodput plot here (needs matplotlib)")
    options = parser.parse_args()
    results: dict[str, dict[float, list[dict[str, float]]]] = {
        name: {
            load: [simulate(make(), load, options.seconds, seed) for seed in range(options.seeds)]
            for load in LOADS
        }
        for name, make in POLICIES.items()
    }
    figures = ("goodput", "refused", "gave up", "p50 ms", "p99 ms")
    print("| load | policy | goodput, % of capacity | refused, % | gave up, % | p50 ms | p99 ms |")
    print("|---" * 7 + "|")
    for load in (1.0, 2.0, 4.0, 10.0):
        for name, by_load in results.items():
            medians = [statistics.median(run[figure] for run in by_load[load]) for figure in figures]
            cells = [f"{100 * value:.0f}" for value in medians[:3]] + [
                f"{value:.0f}" for value in medians[3:]
            ]
            print(f"| {load:g}x | {name} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.plot:
        curves = [
            Curve(name, LOADS, [statistics.median(run["goodput"] for run in by_load[load]) for load in LOADS])
            for name, by_load in results.items()
        ]
        plot_goodput(curves, options.plot, title="Answered within 500 ms, simulated")


if __name__ == "__main__":
    main()
