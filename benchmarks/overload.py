"""What remains of an app's capacity when more is asked of it than it can do.

One server at a time, on 127.0.0.1, calls a model of some 19 ms of 512x512 float32 matrix products on one CPU,
which release the GIL. Requests arrive by a Poisson process, whatever becomes of the answers; a client leaves
after 500 ms. A round first measures the capacity in a closed loop, then offers every contender 1, 2, 4 and 10
times that, in alternating order; the same seeds give all contenders of a round the same arrivals. Every
measurement gets a new server, as a stock one has to work off what it queued. Server and clients share the
machine's CPUs; the clients' part is in the results. If others take a tenth of a CPU, it is measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy is loaded; the same for every contender

from open_loop import Clients, offer, poisson, saturate, steady, without_collections
from overload_report import Figures, Moment, figures_of, plot, report

HERE = Path(__file__).parent
TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE_S = 0.5
MODEL_S = 0.019
RAMP_S = 2.0
PROBES_S = 50.0
MOST_DISTURBED_CPUS = 0.1
ATTEMPTS = 4
THREADS = len(os.sched_getaffinity(0))
LOADS = (1, 2, 4, 10)
PROBED = ("semaphore, bounded", "asgi-mlperf")
CONTENDERS: dict[str, dict[str, str]] = {
    "stock, def": {},
    "async, to_thread": {},
    "semaphore, bounded": {},
    "asgi-mlperf, patience unknown": {"ASGI_MLPERF_POOL__DEADLINE_HEADER": "x-not-sent"},
    "asgi-mlperf": {},
}
BODY = '{"number": %d, "features": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}'


def predict(number: int) -> bytes:
    body = (BODY % number).encode()
    return (
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"x-request-timeout-ms: %d\r\ncontent-length: %d\r\n\r\n%b" % (PATIENCE_S * 1000, len(body), body)
    )


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


class Server:
    """One contender's worker process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * TICKS_S

    def fetch(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return json.load(response)

    def fetch_when_it_answers(self, path: str) -> Any:
        """Ask until the answer is 200: a server starts, or still refuses."""
        give_up = time.monotonic() + 60
        while True:
            try:
                return self.fetch(path)
            except OSError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)


def machine_cpu_s() -> float:
    """CPU seconds of everything that runs here."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) * TICKS_S


def wait_for_quiet() -> None:
    """Wait until nothing else runs here, 30 s at the most."""
    for _ in range(30):
        before = machine_cpu_s()
        time.sleep(1.0)
        if machine_cpu_s() - before < MOST_DISTURBED_CPUS:
            return


@contextmanager
def served(name: str, products: int) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "overload_app:app", "--port", str(port), "--no-access-log"]
    own = {"CONTENDER": name, "PRODUCTS": str(products), "THREADS": str(THREADS)}
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--timeout-keep-alive", "60"],
        cwd=HERE,
        env={**os.environ, **CONTENDERS[name], **{f"OVERLOAD_{key}": value for key, value in own.items()}},
        stderr=subprocess.DEVNULL,
    )
    try:
        server = Server(process, port)
        server.fetch_when_it_answers("/livez")
        yield server
    finally:
        process.kill()  # a stock server would first work off what it queued
        process.wait()


async def capacity_of(server: Server, seconds: float) -> float:
    clients = Clients(server.port, predict, patience_s=30.0)
    try:
        return await saturate(clients, 2 * THREADS, seconds)
    finally:
        clients.close()


async def measure(server: Server, rate: float, seconds: float, seed: int) -> Figures:
    """Offer ``rate`` requests a second; return the figures of all but the first ``RAMP_S`` seconds."""
    clients = Clients(server.port, predict, PATIENCE_S)
    probes = {
        path: Clients(server.port, lambda _, path=path: get(path), patience_s=30.0, keep_alive=False)  # type: ignore[misc] # a lambda's default
        for path in ("/livez", "/health")
    }
    cpu: list[Moment] = []

    async def watch() -> None:
        for wait in (RAMP_S, seconds):
            await asyncio.sleep(wait)
            cpu.append(Moment(time.perf_counter(), server.cpu_s(), time.process_time(), machine_cpu_s()))

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        group.create_task(offer(clients, poisson(rate, RAMP_S + seconds, seed)))
        for probe in probes.values():
            group.create_task(offer(probe, steady(PROBES_S, RAMP_S + seconds)))
    await asyncio.sleep(PATIENCE_S + 0.1)
    for each in (clients, *probes.values()):
        each.close()
    calls = await asyncio.to_thread(server.fetch_when_it_answers, "/calls")
    return figures_of(
        clients.requests, {path: probe.requests for path, probe in probes.items()}, calls, cpu[0], cpu[1]
    )


def products_for(seconds: float) -> int:
    """Matrix products that take so long on an idle machine."""
    os.environ.update(OVERLOAD_CONTENDER="", OVERLOAD_PRODUCTS="1", OVERLOAD_THREADS="1")
    from overload_app import compute  # noqa: PLC0415 - after the environment that it reads

    compute(10)
    best = min(_seconds(lambda: compute(4)) for _ in range(50)) / 4
    return max(1, round(seconds / best))


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run(coroutine: Any) -> Any:
    import uvloop  # noqa: PLC0415 - takes part in nothing else

    return uvloop.run(coroutine)


def capacity(products: int) -> float:
    """Return the best closed-loop rate of contenders that do not collapse."""
    best = 0.0
    for name in PROBED:
        wait_for_quiet()
        with served(name, products) as server:
            run(capacity_of(server, 1.0))
            best = max(best, run(capacity_of(server, 3.0)))
    return best


def undisturbed(name: str, products: int, rate: float, seconds: float, seed: int) -> Figures:
    """Measure again, a few times at the most, while other processes take part of the machine."""
    for _ in range(ATTEMPTS):
        wait_for_quiet()
        with served(name, products) as server:
            run(capacity_of(server, 0.7))
            found: Figures = run(measure(server, rate, seconds, seed))
        if found["CPUs of others"] < MOST_DISTURBED_CPUS:
            break
    return found


def continue_round(one: dict[str, Any], number: int, options: argparse.Namespace) -> Iterator[None]:
    """Measure what the round lacks; yield after each measurement."""
    done = {(taken["contender"], taken["load"]) for taken in one["taken"]}
    for load in options.loads:
        for name in options.contenders if number % 2 else reversed(options.contenders):
            if (name, load) in done:
                continue
            rate = load * one["closed loop/s"]
            found = undisturbed(name, one["products"], rate, options.seconds, seed=100 * number + load)
            one["taken"].append({"contender": name, "load": load, **found})
            print(f"  {load}x {name}: {found['goodput/s']:.1f} of {found['offered/s']:.1f}", flush=True)
            yield


def measure_rounds(rounds: list[dict[str, Any]], options: argparse.Namespace) -> None:
    until = time.monotonic() + options.stop_after
    for number in range(1, options.rounds + 1):
        if len(rounds) < number:
            products = products_for(MODEL_S)
            rounds.append({"closed loop/s": capacity(products), "products": products, "taken": []})
        one = rounds[number - 1]
        print(f"round {number}: {one['closed loop/s']:.1f} requests/s in a closed loop", flush=True)
        for _ in continue_round(one, number, options):
            if options.json:
                options.json.write_text(json.dumps(rounds, indent=1))
            if time.monotonic() > until:
                sys.exit("stopped in time; run it again with the same --json to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, after 2 s of ramp")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--loads", type=int, nargs="+", default=list(LOADS))
    parser.add_argument("--json", type=Path, help="keep every figure here, and go on with what is there")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds; needs --json")
    parser.add_argument("--plot", type=Path, help="write the goodput plot here (needs matplotlib)")
    options = parser.parse_args()
    rounds = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    without_collections()
    measure_rounds(rounds, options)
    print(report(rounds, THREADS))
    if options.plot:
        plot(rounds, options.plot)


if __name__ == "__main__":
    main()
