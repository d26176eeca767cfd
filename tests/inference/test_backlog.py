from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from asgi_mlperf import DeadlineExceeded
from asgi_mlperf.inference.backlog import Backlog, Item, Room


def item(value, *, key=None, cost=1.0, deadline=math.inf) -> Item:
    return Item(value, None, name="f", queued_at=0.0, deadline=deadline, key=key, cost=cost)


def backlog_of(*items: Item) -> Backlog:
    backlog = Backlog()
    for waiting in items:
        backlog.add(waiting)
    return backlog


def taken(backlog: Backlog, room: Room, now=0.0) -> tuple[list[Any], float, str]:
    items: list[Item] = []
    size, reason = backlog.take(now, room, items)
    return [waiting.value for waiting in items], size, reason


def a_second_each(size: float) -> float:
    return size


async def test_a_batch_is_of_one_key_in_order_and_keys_take_turns():
    backlog = backlog_of(
        *(item(f"{key}{n}", key=key) for n in range(3) for key in "abc" if (key, n) < ("c", 1))
    )
    batches = []
    while backlog.count:
        batches.append(taken(backlog, Room(2))[0])
    assert batches == [["a0", "a1"], ["b0", "b1"], ["c0"], ["a2"], ["b2"]]


async def test_a_flood_of_one_key_delays_another_by_one_batch_at_the_most():
    backlog = backlog_of(*(item(n, key="flood") for n in range(1_000)), item("rare", key="rare"))
    assert taken(backlog, Room(32))[0] == list(range(32))
    assert taken(backlog, Room(32))[0] == ["rare"]


async def test_a_batch_says_whether_it_is_full():
    backlog = backlog_of(*(item(n) for n in range(3)))
    assert taken(backlog, Room(2)) == ([0, 1], 2.0, "full")
    assert taken(backlog, Room(2)) == ([2], 1.0, "idle_slot")
    assert taken(backlog, Room(2)) == ([], 0.0, "idle_slot")
    assert backlog.count == 0


async def test_the_padded_cost_closes_a_batch_without_changing_the_order():
    backlog = backlog_of(item("a", cost=2), item("b", cost=3), item("c", cost=1), item("d", cost=9))
    room = Room(32, size=9)
    assert taken(backlog, room) == (["a", "b", "c"], 9.0, "cost")
    assert taken(backlog, room) == (["d"], 9.0, "idle_slot")


async def test_the_loops_budget_closes_a_batch_but_never_an_empty_one():
    backlog = backlog_of(item("a", cost=5), item("b", cost=5))
    assert taken(backlog, Room(32, inline_size=4)) == (["a"], 5.0, "budget")


async def test_a_batch_is_cut_so_that_every_item_makes_its_deadline():
    backlog = backlog_of(*(item(n, deadline=3.5) for n in range(5)))
    room = Room(32, seconds=a_second_each, ample_s=32)
    assert taken(backlog, room) == ([0, 1, 2], 3.0, "deadline")


async def test_an_item_in_a_hurry_is_not_taken_into_a_batch_that_is_too_slow_for_it():
    backlog = backlog_of(item("a"), item("b"), item("hurried", deadline=2.5))
    room = Room(32, seconds=a_second_each, ample_s=32)
    assert taken(backlog, room) == (["a", "b"], 2.0, "deadline")
    assert taken(backlog, room) == (["hurried"], 1.0, "idle_slot")


async def test_what_cannot_make_its_deadline_alone_is_dropped_unstarted():
    late = item("late", deadline=0.5)
    backlog = backlog_of(late, item("b"))
    assert taken(backlog, Room(32, seconds=a_second_each, ample_s=32))[0] == ["b"]
    assert late.reason == "deadline"
    with pytest.raises(DeadlineExceeded, match="f was not begun"):
        late.future.result()


async def test_where_every_item_costs_the_same_batches_are_as_if_that_were_not_known():
    chance = random.Random(7)
    reasons = set()
    for _ in range(2_000):
        deadlines = [
            chance.choice([math.inf, math.inf, math.inf, 0.5, 2.5, 5.0])
            for _ in range(chance.randrange(1, 12))
        ]
        left = [chance.random() < 0.1 for _ in deadlines]
        keys = [0 if chance.random() < 0.7 else 1 for _ in deadlines]
        known, unknown = Backlog(), Backlog()
        for backlog in (known, unknown):
            for n, deadline in enumerate(deadlines):
                waiting = item(n, key=keys[n], deadline=deadline)
                waiting.left = left[n]
                backlog.add(waiting)
                waiting.future.add_done_callback(asyncio.Future.exception)  # whom it is for does not ask
        room = Room(
            chance.randrange(1, 6),
            size=chance.choice([math.inf, 3, 4.5]),
            inline_size=chance.choice([math.inf, 2.5, 0.5]),
            seconds=a_second_each,
            ample_s=chance.choice([0.0, 4.0, 8.0]),
        )
        while unknown.count:
            expected = taken(unknown, room)
            assert taken(known, room._replace(is_uniform=True)) == expected
            assert known.count == unknown.count
            reasons.add(expected[2])
    assert reasons == {"full", "cost", "budget", "deadline", "idle_slot"}


async def test_items_that_nobody_waits_for_are_dropped():
    waiting = [item(n, key="k") for n in range(4)]
    backlog = backlog_of(*waiting)
    waiting[0].future.cancel()
    waiting[2].left = True
    backlog.remove(waiting[3])
    backlog.remove(waiting[3])
    assert taken(backlog, Room(32))[0] == [1]
    assert backlog.count == 0


async def test_a_key_whose_items_are_all_gone_is_passed_over():
    gone = item("gone", key="a")
    backlog = backlog_of(gone, item("b", key="b"))
    gone.future.cancel()
    assert taken(backlog, Room(32))[0] == ["b"]


async def test_clearing_gives_every_item_back():
    backlog = backlog_of(*(item(n, key=n % 3) for n in range(9)))
    assert sorted(waiting.value for waiting in backlog.clear()) == list(range(9))
    assert backlog.count == 0


@pytest.mark.parametrize("keys", [1, 1_000])
async def test_a_batch_looks_at_no_more_items_than_it_takes_however_many_wait(keys):
    looks = 0

    class Counted(Item):
        __slots__ = ()

        @property
        def wanted(self):
            nonlocal looks
            looks += 1
            return True

    backlog = backlog_of(
        *(
            Counted(n, None, name="f", queued_at=0.0, deadline=math.inf, key=n % keys, cost=1.0)
            for n in range(20_000)
        )
    )
    for _ in range(10):
        await asyncio.sleep(0)
        taken(backlog, Room(8))
    assert looks <= 10 * 9
