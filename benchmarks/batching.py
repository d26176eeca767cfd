"""What micro-batching inside an app is worth beside model servers: one MLP, JSON in and out, under wrk.

Contenders take turns, in an order drawn anew for each round; each is started afresh for its turn and alone
on the machine. A turn checks the answers of
16 callers at once against the model, warms up, and loads with 1, 32 and 128 connections, checking again after
each. Printed are the median over rounds and the least and most. ``--json`` files of several runs may be put
together with ``batching_report.py``. ``batching_slow.py`` has the model of 20 ms a batch.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batching_report import report, told
from batching_servers import (
    CONTENDERS,
    Absent,
    Contender,
    Row,
    Server,
    WrongAnswer,
    all_contenders,
    served,
    versions,
)
from common import Figures, cpu_ms, require_wrk, wrk

POST = Path(__file__).parent / "post.lua"
BODIES, CHECKED = 64, 16
OURS = ("asgi-mlperf", "fastapi", "starlette", "uvicorn", "granian", "uvloop", "httptools", "orjson", "torch")
THEIRS = ("litserve", "mosec", "bentoml", "ray", "fastapi", "uvicorn", "orjson", "torch")


def questions() -> tuple[list[Row], list[Row]]:
    """Return rows to send and the scores that the model gives them."""
    sys.path.insert(0, str(CONTENDERS))
    import torch  # noqa: PLC0415 - only a run needs it, a report does not
    from mlp import WIDTH, mlp  # noqa: PLC0415 - see above

    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(BODIES, WIDTH, generator=generator).tolist()
    rows = [[round(number, 4) for number in row] for row in numbers]
    with torch.inference_mode():
        return rows, mlp()(torch.tensor(rows)).tolist()


class Turns:
    """Gives each contender its turn and keeps the figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows, self.expected = questions()
        self.figures: list[dict[str, Any]] = []
        self.absent: dict[str, str] = {}

    def run(self, contenders: Sequence[Contender]) -> None:
        for number in range(self.options.rounds):
            for contender in random.sample(contenders, len(contenders)):
                if contender.name not in self.absent:
                    self.turn(contender, number)

    def turn(self, contender: Contender, number: int) -> None:
        try:
            with served(contender, self.options.python, self.rows[0]) as server:
                for figures in self.loads(server):
                    row = {
                        "contender": contender.name,
                        "family": contender.family,
                        "workers": contender.workers,
                    }
                    self.figures.append({**row, "round": number, **figures})
                    print(f"round {number + 1}, {contender.name}: {told(figures)}", file=sys.stderr)
        except (Absent, WrongAnswer) as reason:
            self.absent[contender.name] = str(reason)
            print(f"{contender.name} is left out: {reason}", file=sys.stderr)

    def loads(self, server: Server) -> list[Figures]:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as bodies:
            bodies.write("\n".join(map(server.contender.body, self.rows)))
            bodies.flush()
            self.check(server)
            wrk(server.url, 32, self.options.warm_up_seconds, str(POST), bodies.name)
            return [self.load(server, connections, bodies.name) for connections in self.options.connections]

    def load(self, server: Server, connections: int, bodies: str) -> Figures:
        wrk(server.url, connections, 1, str(POST), bodies)
        pids = server.pids()
        before = cpu_ms(pids)
        figures = wrk(server.url, connections, self.options.seconds, str(POST), bodies)
        used = cpu_ms(pids) - before
        self.check(server)
        figures |= {"connections": connections, "CPU µs/request": 1000 * used / max(figures["requests"], 1)}
        return figures | {"idle CPU %": self.idle(pids)} if self.options.idle_seconds else figures

    def idle(self, pids: Sequence[int]) -> float:
        """Return the share of a core that the server uses while nobody asks it anything."""
        time.sleep(0.5)
        before, began = cpu_ms(pids), time.monotonic()
        time.sleep(self.options.idle_seconds)
        return 0.1 * (cpu_ms(pids) - before) / (time.monotonic() - began)

    def check(self, server: Server) -> None:
        server.verify(self.rows[:CHECKED], self.expected[:CHECKED])


def chosen(options: argparse.Namespace) -> list[Contender]:
    names = [name.lower() for name in options.contenders or [""]]
    found = [
        contender
        for contender in all_contenders()
        if contender.workers in options.workers
        and any(contender.family.lower() == name or (name == "") for name in names)
    ]
    return found or sys.exit("no such contender; there are " + "; ".join(c.family for c in all_contenders()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has requirements.txt")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="default: all of them")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of load")
    parser.add_argument("--warm-up-seconds", type=int, default=2)
    parser.add_argument("--idle-seconds", type=float, default=0.0, help="of idleness to measure after a load")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    require_wrk()
    turns = Turns(options)
    turns.run(chosen(options))
    result = {
        "date": str(dt.datetime.now(tz=dt.UTC).date()),
        "versions": {"here": versions(sys.executable, OURS), "contenders": versions(options.python, THEIRS)},
        "absent": turns.absent,
        "figures": turns.figures,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(report([result]))


if __name__ == "__main__":
    main()
