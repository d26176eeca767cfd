"""How wide an op may be: the worker's CPUs, divided by the tasks that run and not by those that might.

``budget ÷ inference threads`` for every call leaves CPUs idle whenever fewer calls run than may; the whole
budget for every call runs too many threads as soon as two do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Plan(NamedTuple):
    """Native threads of an op: by thread, and for libraries with one count for the whole process."""

    thread: int
    process: int


@dataclass(frozen=True)
class Widths:
    """How many native threads an op may use: ``alone``, and at least ``share`` whoever else runs.

    Between them the CPUs are divided by the tasks that run. A library whose count is one for the whole
    process gets ``alone`` while one task runs, else ``process``: OpenBLAS lets one threaded product
    through at a time.
    """

    alone: int
    share: int
    process: int

    def plan(self, running: int) -> Plan:
        """Return the widths while ``running`` tasks run, the asking one included."""
        return Plan(max(self.share, self.alone // running), self.alone if running <= 1 else self.process)

    def plans(self) -> tuple[Plan, ...]:
        """Return the plan for 0 (as for 1), 1, 2, … tasks, each a new object; the last is for all more."""
        plans = {plan: plan for plan in map(self.plan, range(1, self.alone + 2))}
        return tuple(plans[self.plan(max(1, running))] for running in range(self.alone + 2))


def widths(*, native: int | None, cpus: int, cores: int, inference_threads: int) -> Widths:
    """Divide a worker's ``cpus``, on ``cores`` physical cores; ``native`` given explicitly wins always."""
    if native is not None:
        return Widths(native, native, native)
    share = max(1, min(cores, cpus // inference_threads))
    return Widths(alone=cores, share=share, process=share if inference_threads == 1 else 1)
