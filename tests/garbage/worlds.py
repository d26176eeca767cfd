"""A heap on paper: requests allocate, collections cost what they look at, on a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from asgi_mlperf.garbage.heap import Generation, Heap
from asgi_mlperf.garbage.policy import Policy
from asgi_mlperf.garbage.settings import GarbageSettings

COST_S = 20e-9
LOOK_EVERY_S = 0.05


@dataclass
class World:
    """One worker. Live objects of requests die by reference counting; the cyclic ones become garbage."""

    settings: GarbageSettings
    bytes_per_object: int = 0
    limit: int = 0
    now: float = 0.0
    base_rss: int = 300 << 20
    new_objects: int = 0
    new_passes: int = 0
    young_passes: int = 0
    garbage: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    requests: list[tuple[list[int], int]] = field(default_factory=list)
    automatic: bool = False
    spent_on_survivors: float = 0.0
    spent_in_full: float = 0.0
    longest: float = 0.0
    most_young_garbage: int = 0
    most_old_garbage: int = 0
    spared: int = 0
    most_later_garbage_bytes: float = 0.0
    most_live_bytes: int = 0
    floor: int = 0
    lowest: int = 0
    quiet_since: float = 0.0
    looked_at: float = 0.0

    def __post_init__(self) -> None:
        self.policy = Policy(self.settings, now=self.now, rss=self.rss)

    @property
    def live(self) -> list[int]:
        return [sum(objects[generation] for objects, _ in self.requests) for generation in range(4)]

    @property
    def rss(self) -> int:
        return self.base_rss + self.bytes_per_object * (sum(self.garbage) + sum(self.live))

    def heap(self) -> Heap:
        return Heap(
            now=self.now,
            new_objects=self.new_objects,
            new_passes=self.new_passes,
            in_flight=len(self.requests),
            floor=self.floor,
            quiet_s=self.now - self.quiet_since,
            rss=self.rss,
            limit=self.limit,
        )

    def begin(self, objects: int, cyclic_share: float) -> None:
        """Begin a request that makes so many objects, in steps between which CPython may collect."""
        request = ([0, 0, 0, 0], int(objects * cyclic_share))
        self.requests.append(request)
        step = 10_000
        for start in range(0, objects, step):
            made = min(step, objects - start)
            request[0][0] += made
            self.new_objects += made
            self.pass_time(made * 100e-9)
            if self.new_objects > self.backstop:
                self.collect_by_itself()
            self.note()

    @property
    def backstop(self) -> int:
        return 700 if self.automatic else self.policy.backstop(self.heap(), automatic=700)

    def collect_by_itself(self) -> None:
        """Collect the generation that CPython would."""
        if self.automatic and self.young_passes > 10:
            self.collect(Generation.FULL)
        else:
            self.collect(Generation.YOUNG if self.new_passes > 10 else Generation.NEW)

    def end(self, index: int) -> None:
        """End one of the requests: what is cyclic is garbage now, the rest is gone."""
        if not self.requests:
            return
        objects, cyclic = self.requests.pop(index % len(self.requests))
        for generation in (3, 2, 1, 0):
            leaked = min(cyclic, objects[generation])
            cyclic -= leaked
            self.garbage[generation] += leaked
            if generation == 0:
                self.new_objects = max(0, self.new_objects - objects[0] + leaked)
        self.lowest = min(self.lowest, len(self.requests))
        self.quiet_since = self.now
        self.note()
        self.decide()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with a look around every so often."""
        until = self.now + seconds
        while self.looked_at + LOOK_EVERY_S <= until:
            self.now = self.looked_at = max(self.now, self.looked_at + LOOK_EVERY_S)
            self.look_around()
        self.now = max(self.now, until)

    def look_around(self) -> None:
        if int(self.now / 0.5) != int((self.now - LOOK_EVERY_S) / 0.5):
            self.floor, self.lowest = self.lowest, len(self.requests)
        heap = self.heap()
        self.policy.saw_memory(heap)
        if self.automatic:
            self.automatic = not self.policy.valve_can_close(heap)
        else:
            self.automatic = self.policy.valve_reason(heap) is not None

    def decide(self) -> None:
        generation = self.policy.choose(self.heap())
        if generation is not None:
            self.collect(generation, chosen=True)
            self.policy.saw_memory(self.heap())
            if generation is Generation.FULL and self.policy.wants_freeze(self.heap()):
                self.freeze()

    def freeze(self) -> None:
        """Keep everything there is out of reach of all later collections."""
        self.policy.froze()
        self.garbage = [0, 0, 0, sum(self.garbage)]
        for objects, _ in self.requests:
            objects[:] = [0, 0, 0, sum(objects)]

    def collect(self, generation: Generation, *, chosen: bool = False) -> None:
        """Free the garbage of these generations, promote what lives, and take time for both."""
        reach = range(generation + 1)
        freed = sum(self.garbage[g] for g in reach)
        alive = sum(self.live[g] for g in reach)
        seconds = COST_S * (freed + alive)
        candidates, into = self.new_objects, min(generation + 1, 2)
        for g in reach:
            self.garbage[g] = 0
        for objects, _ in self.requests:
            moved = sum(objects[g] for g in reach)
            for g in reach:
                objects[g] = 0
            objects[into] += moved
        self.new_objects = 0
        self.new_passes = self.new_passes + 1 if generation is Generation.NEW else 0
        if generation is not Generation.NEW:
            self.young_passes = self.young_passes + 1 if generation is Generation.YOUNG else 0
        self.now += seconds
        if generation is Generation.FULL:
            self.automatic = False
            self.spared = sum(self.live)
        self.policy.collected(generation, seconds=seconds, candidates=candidates, freed=freed, now=self.now)
        if chosen:
            self.charge(generation, seconds, alive / max(alive + freed, 1))

    def charge(self, generation: Generation, seconds: float, survivors: float) -> None:
        self.longest = max(self.longest, seconds)
        if generation is Generation.FULL:
            self.spent_in_full += seconds * survivors
        else:
            self.spent_on_survivors += seconds * survivors

    def note(self) -> None:
        self.most_live_bytes = max(
            self.most_live_bytes, self.base_rss + self.bytes_per_object * sum(self.live)
        )
        self.most_young_garbage = max(self.most_young_garbage, self.garbage[0])
        self.most_old_garbage = max(self.most_old_garbage, sum(self.garbage[1:]))
        later_garbage = self.bytes_per_object * (sum(self.garbage) - self.spared)
        self.most_later_garbage_bytes = max(
            self.most_later_garbage_bytes, later_garbage / self.policy._pacer.back_off
        )
