"""The way of a function's next batch to its slot: what arrives at the same time gathers for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asgi_mlperf.inference.deadlines import clock
from asgi_mlperf.inference.gate import level_of

if TYPE_CHECKING:
    from asgi_mlperf.inference.batches import Batch
    from asgi_mlperf.inference.batching import Batcher

_QUIET_TURNS = 2
_GATHER_S = 0.004
_HOLD_S = 0.004
_LONG = 4


class Gathering:
    """Asks for a slot for one batch at a time, once what arrives with its first item is there too.

    The event loop turns meanwhile, until two turns bring nothing more. Where ``placement`` lets no more
    batches run at once, the next one also waits for the end of one; not for one that takes much longer than
    others, as it may hang.
    """

    def __init__(self, batcher: Batcher) -> None:
        """Begin with nothing under way."""
        self._batcher = batcher
        self._context = batcher.context.copy()
        self._place: Batch | None = None
        self._turning = False
        self._held: asyncio.TimerHandle | None = None
        self._on_threads: list[float] = []
        self._quiet_turns = 0
        self._asked_at = 0.0
        self._arrived = self._arrived_before = 0

    def arrived(self, now: float) -> None:
        """Count an item that waits from now on, which may be the first."""
        self._arrived += 1
        if self._place is None:
            self.begin(now)

    def begin(self, now: float) -> None:
        """Ask for a slot, once what arrives at the same time is there too."""
        batcher = self._batcher
        self._place = batcher.batch_type(batcher, queued_at=now, level=level_of(None), items=[])
        self._turning = True
        self._quiet_turns, self._arrived_before, self._asked_at = 0, self._arrived, clock()
        batcher.pool.announce()
        self._next_turn(self._place)

    def over(self) -> None:
        """Let the batch have its slot, or need none: the next item asks anew."""
        self._place = None

    def stop(self) -> None:
        """Ask for no slot any more."""
        if self._turning:
            self._turning = False
            self._release()
            self._batcher.pool.retract()
        self.over()

    def began(self, started: float) -> None:
        """Count a batch that runs on a thread from now on."""
        self._on_threads.append(started)

    def ended(self, started: float) -> None:
        """Count it no more."""
        self._on_threads.remove(started)
        if self._held is not None and self._held_for() <= 0:
            self.follow()

    def follow(self) -> None:
        """Let the batch go on that waits for the end of another."""
        if self._held is not None and self._place is not None:
            self._submit(self._place)

    def _next_turn(self, place: Batch) -> None:
        asyncio.get_running_loop().call_soon(self._turn, place, context=self._context)

    def _turn(self, place: Batch) -> None:
        if place is not self._place:
            return  # all has begun anew since
        try:
            is_complete = self._is_complete()
        except Exception as error:  # noqa: BLE001 - supervised: the callers are told
            self._batcher.crashed(error)
            return
        if not is_complete:
            self._next_turn(place)
        elif (seconds := self._held_for()) > 0 and not self._batcher.pool.closed:
            later = asyncio.get_running_loop().call_later
            self._held = later(seconds, self.follow, context=self._context)
        else:
            self._submit(place)

    def _held_for(self) -> float:
        """Seconds for which the next batch waits for the end of another at the most."""
        most = self._batcher.placement.most_on_threads
        if len(self._on_threads) < most:
            return 0.0
        longest = max(_HOLD_S, _LONG * self._batcher.expected_s(self._batcher.largest))
        return sorted(self._on_threads)[-int(most)] + longest - clock()

    def _release(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None

    def _submit(self, place: Batch) -> None:
        self._turning = False
        self._release()
        self._batcher.pool.submit_announced(place)

    def _is_complete(self) -> bool:
        """Say whether a batch is as large as it may be, two turns brought nothing, or they take long."""
        quiet = self._arrived == self._arrived_before
        self._quiet_turns = self._quiet_turns + 1 if quiet else 0
        self._arrived_before = self._arrived
        waiting = self._batcher.waiting
        if not waiting or waiting >= self._batcher.options.max_size or self._quiet_turns >= _QUIET_TURNS:
            return True
        if waiting > 1:  # of a single one nothing could be cut
            room, wanted = self._batcher.next_up()
            if 0 < room < wanted:
                return True
        gathered_s = clock() - self._asked_at
        return gathered_s > _GATHER_S and gathered_s > self._batcher.expected_s(waiting)
