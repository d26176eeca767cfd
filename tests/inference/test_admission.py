from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_mlperf.inference.admission import Admission, Refusal, ServiceTime, StandingDelay

names = itertools.count()


@dataclass(eq=False)
class Entry:
    deadline: float = math.inf
    queued_at: float = 0.0
    level: int = 0
    service: ServiceTime = field(default_factory=ServiceTime)
    name: int = field(default_factory=lambda: next(names))


def taking(seconds: float) -> ServiceTime:
    """What calls take that always took the same."""
    service = ServiceTime()
    service.observe(seconds)
    return service


def busy(*, slots: int = 1, max_queue: int = 100, service: ServiceTime | None = None) -> Admission[Entry]:
    """An admission whose slots are all taken, by calls of a kind."""
    admission: Admission[Entry] = Admission(slots=slots, max_queue=max_queue)
    admission.service_time = service or ServiceTime()
    for _ in range(slots):
        assert admission.offer(Entry(), 0.0)
    return admission


def test_a_free_slot_is_given_at_once():
    admission: Admission[Entry] = Admission(slots=2, max_queue=0)
    assert admission.offer(Entry(), 0.0)
    assert admission.offer(Entry(), 0.0)
    assert admission.running == 2
    with pytest.raises(Refusal):
        admission.offer(Entry(), 0.0)


def test_in_peace_entries_leave_in_the_order_they_came():
    admission = busy()
    entries = [Entry() for _ in range(3)]
    assert [admission.offer(entry, 0.0) for entry in entries] == [False] * 3
    assert [admission.release(0.0).next for _ in range(4)] == [*entries, None]
    assert admission.running == 0


def test_a_full_queue_refuses():
    admission = busy(max_queue=1)
    admission.offer(Entry(), 0.0)
    with pytest.raises(Refusal) as caught:
        admission.offer(Entry(), 0.0)
    assert caught.value.reason == "queue_full"


def test_work_whose_owner_bounds_it_is_never_refused():
    admission = busy(max_queue=0)
    assert admission.offer(Entry(deadline=0.0), 1.0, bounded=False) is False
    assert len(admission) == 1


def test_what_cannot_make_its_deadline_is_refused_at_the_door():
    one = taking(1.0)
    admission = busy(slots=2, service=one)
    admission.offer(Entry(deadline=1.6, service=one), 0.0)  # half a second for a slot, one to run
    with pytest.raises(Refusal) as caught:
        admission.offer(Entry(deadline=1.9, service=one), 0.0)  # a whole second for a slot by now
    assert caught.value.reason == "too_late"


def test_entries_that_can_no_longer_make_it_are_refused_unstarted():
    one = taking(1.0)
    admission = busy(service=one)
    late, fine = Entry(deadline=2.5, service=one), Entry(deadline=4.0, service=one)
    admission.offer(late, 0.0)
    admission.offer(fine, 0.0)
    turn = admission.release(2.0)
    assert (turn.next, turn.refused) == (fine, [late])


def test_withdrawn_entries_are_gone():
    admission = busy()
    first, second = Entry(), Entry()
    admission.offer(first, 0.0)
    admission.offer(second, 0.0)
    assert admission.withdraw(first)
    assert not admission.withdraw(first)
    assert admission.release(0.0).next is second


def test_short_calls_are_not_refused_for_what_long_ones_take():
    admission = busy(service=taking(0.01))
    admission.offer(Entry(service=taking(0.01)), 0.0)
    assert admission.offer(Entry(deadline=0.5, service=taking(0.01)), 0.0) is False
    with pytest.raises(Refusal):
        admission.offer(Entry(deadline=0.5, service=taking(10.0)), 0.0)


def test_the_work_that_waits_is_what_its_kinds_take():
    admission = busy(slots=2, service=taking(0.1))
    for seconds in (1.0, 3.0):
        admission.offer(Entry(service=taking(seconds)), 0.0)
    urgent, all_levels = admission.expected_wait_s(0), admission.expected_wait_s(2)
    assert urgent == all_levels == pytest.approx(2.05)
    admission.withdraw(next(iter(admission.clear())))
    assert admission.expected_wait_s(0) == pytest.approx(0.05)


def test_a_standing_delay_turns_the_queue_to_newest_first_and_peace_turns_it_back():
    kind = taking(0.01)
    admission = busy(service=kind)
    now = 0.0

    def serve():
        return admission.release(now, Entry(service=kind), 0.01).next

    for _ in range(60):
        admission.offer(Entry(queued_at=now, deadline=now + 0.7, service=kind), now)
    for _ in range(40):
        now += 0.01
        serve()
    newest = Entry(queued_at=now, service=kind)
    admission.offer(newest, now)
    assert serve() is newest
    while serve():
        now += 0.01
    for _ in range(40):
        assert admission.offer(Entry(queued_at=now, service=kind), now)
        now += 0.01
        serve()
    admission.offer(Entry(queued_at=now, service=kind), now)
    older, newer = Entry(queued_at=now, service=kind), Entry(queued_at=now, service=kind)
    admission.offer(older, now)
    admission.offer(newer, now)
    assert serve() is older


def test_more_slots_start_what_waits_and_fewer_take_effect_as_slots_free():
    admission = busy(slots=1)
    first, second = Entry(), Entry()
    admission.offer(first, 0.0)
    admission.offer(second, 0.0)
    assert [turn.next for turn in admission.resize(2, 0.0)] == [first]
    assert admission.resize(1, 0.0) == []
    assert admission.release(0.0).next is None
    assert admission.release(0.0).next is second
    assert admission.running == 1


def test_callers_with_time_are_served_in_order_however_long_the_queue():
    kind = taking(0.01)
    admission = busy(service=kind, max_queue=10_000)
    now, entries = 0.0, []
    for step in range(400):
        now += 0.01
        entries.append(Entry(queued_at=now, deadline=now + 60, service=kind))
        admission.offer(entries[-1], now)
        if step >= 200:
            assert admission.release(now, Entry(service=kind), 0.01).next is entries[step - 200]


def test_a_burst_is_no_standing_delay():
    delay = StandingDelay()
    for step in range(100):
        delay.observe(0.5 if step % 10 else 0.0, step / 100, 0.01)
        assert not delay.persists


def test_urgent_levels_go_first_and_the_lowest_does_not_starve():
    admission = busy(max_queue=10_000)
    for level in range(3):
        for _ in range(210):
            admission.offer(Entry(level=level), 0.0)
    served = [admission.release(0.0).next.level for _ in range(210)]
    assert [served.count(level) for level in range(3)] == [160, 40, 10]
    assert served[0] == 0


@pytest.mark.parametrize(("service_s", "seconds"), [(0.1, 1.0), (2.0, 3.0), (1_000.0, 60.0)])
def test_retry_after_is_when_the_queue_should_be_done_within_bounds(service_s, seconds):
    kind = taking(service_s)
    admission = busy(slots=2, service=kind)
    admission.offer(Entry(service=kind), 0.0)
    admission.offer(Entry(service=kind), 0.0)
    assert admission.retry_after_s() == pytest.approx(seconds)


def test_the_service_time_follows_what_calls_take():
    service = ServiceTime()
    for _ in range(100):
        service.observe(0.1)
    assert service.mean == service.likely == pytest.approx(0.1)
    for _ in range(100):
        service.observe(0.4)
    assert service.mean == pytest.approx(0.4, rel=0.01)
    for number in range(200):
        service.observe(0.2 if number % 2 else 0.6)
    assert 0.7 < service.likely < 1.0


steps = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "release", "withdraw"]),
        st.floats(0, 0.5),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=120,
)


@given(steps, st.integers(1, 3), st.integers(0, 6))
def test_never_too_many_none_lost_none_served_twice_none_started_late(steps, slots, max_queue):
    admission: Admission[Entry] = Admission(slots=slots, max_queue=max_queue)
    kinds = [ServiceTime() for _ in range(3)]
    now, waiting, started, ended = 0.0, {}, [], 0
    for action, amount, level, bounded in steps:
        now += amount / 10
        if action == "offer":
            entry = Entry(deadline=now + amount, queued_at=now, level=level, service=kinds[level])
            try:
                if admission.offer(entry, now, bounded=bounded):
                    started.append(entry)
                else:
                    waiting[entry.name] = entry
            except Refusal:
                assert bounded
        elif action == "withdraw" and waiting:
            entry = waiting.pop(next(iter(waiting)))
            assert admission.withdraw(entry)
        elif action == "release" and admission.running:
            turn = admission.release(now, started[ended], amount)
            ended += 1
            for entry in turn.refused:
                assert waiting.pop(entry.name).deadline < now + entry.service.likely
            if turn.next is not None:
                assert waiting.pop(turn.next.name).deadline >= now
                started.append(turn.next)
        assert admission.running == len(started) - ended <= slots
        assert len(admission) == len(waiting)
        assert admission.running == slots or not waiting
        assert all(admission.expected_wait_s(level) >= 0 for level in range(3))
    assert len({entry.name for entry in started}) == len(started)
    assert {entry.name for entry in admission.clear()} == set(waiting)
    assert len(admission) == 0
