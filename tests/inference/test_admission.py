from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_mlperf.inference.admission import Admission, Refusal
from asgi_mlperf.inference.delays import ServiceTime, StandingDelay

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
    for _ in range(45):
        now += 0.01
        serve()
    newest = Entry(queued_at=now, service=kind)
    admission.offer(newest, now)
    assert serve() is newest
    while serve():
        now += 0.01
    for _ in range(45):
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


def endangered(*, waiting: int = 60, patience: float = 0.7) -> tuple[Admission[Entry], float, ServiceTime]:
    """An admission with one slot of 10 ms calls that was asked for too much, and when that is."""
    kind, now = taking(0.01), 0.0
    admission = busy(service=kind)
    for _ in range(waiting):
        admission.offer(Entry(queued_at=now, deadline=now + patience, service=kind), now)
    while not admission.standing_delay.persists:
        now += 0.01
        admission.release(now, Entry(service=kind), 0.01)
    return admission, now, kind


def refused(admission: Admission[Entry], now: float, kind: ServiceTime, patience: float = 0.7) -> bool:
    """Whether a newcomer is refused."""
    try:
        admission.offer(Entry(queued_at=now, deadline=now + patience, service=kind), now)
    except Refusal:
        return True
    return False


def test_while_deadlines_are_in_danger_only_what_begins_soon_is_let_in():
    admission, now, kind = endangered()
    assert len(admission) > 15
    assert refused(admission, now, kind)
    assert not refused(admission, now, kind, patience=60)
    while len(admission) > 8:
        now += 0.01
        admission.release(now, Entry(service=kind), 0.01)
    assert not refused(admission, now, kind)
    assert refused(admission, now, kind)


def test_the_door_is_strict_for_as_long_as_it_refuses_many():
    admission, now, kind = endangered()
    for newcomers, strict in ((2, True), (0, False)):
        for _ in range(150):
            now += 0.01
            for _ in range(newcomers if admission.running else 0):
                refused(admission, now, kind)
            if admission.running:
                admission.release(now, Entry(service=kind), 0.01)
            else:
                admission.offer(Entry(queued_at=now, service=kind), now)
        assert admission.standing_delay.strict is strict
        assert len(admission) <= 10


def test_a_pause_in_the_arrivals_does_not_open_a_strict_door():
    delay = StandingDelay()
    for step in range(100):
        delay.observe(0.5 if step < 30 else 0.0, step / 100, 0.01)
        if step in (29, 60, 99):
            assert delay.strict is (step < 99)


def test_a_strict_door_is_forgotten_after_a_pause():
    delay = StandingDelay()
    for step in range(30):
        delay.refused()
        delay.observe(0.5, step / 100, 0.01)
    assert delay.is_strict(0.3)
    assert not delay.is_strict(3_600.0)
    delay.observe(0.0, 3_600.0, 0.01)
    assert not delay.is_strict(3_600.0)


def test_calls_much_longer_than_they_should_wait_still_find_a_queue():
    kind = taking(0.4)
    admission = busy(service=kind)
    admission.standing_delay.strict, admission.standing_delay._forgotten = True, math.inf
    assert not refused(admission, 0.0, kind, patience=2.0)
    assert not refused(admission, 0.0, kind, patience=2.0)


def test_many_who_give_up_waiting_turn_the_queue_to_newest_first_whatever_their_deadlines():
    kind = taking(0.01)
    for give_up, newest_first in ((1, True), (20, False)):
        admission = busy(service=kind)
        entries = [Entry(queued_at=0.0, deadline=60.0, service=kind) for _ in range(90)]
        for entry in entries:
            admission.offer(entry, 0.0)
        for step in range(40):
            if step % give_up == 0:
                admission.withdraw(entries[30 + step])
            admission.release(step / 100, Entry(service=kind), 0.01)
        newest = Entry(queued_at=0.4, deadline=60.4, service=kind)
        admission.offer(newest, 0.4)
        assert (admission.release(0.4, Entry(service=kind), 0.01).next is newest) is newest_first
        assert not admission.standing_delay.strict


def test_newest_first_does_not_starve_an_entry_without_a_deadline():
    admission, now, kind = endangered()
    for entry in admission.clear():
        assert entry.deadline < math.inf
    patient = Entry(queued_at=now, service=kind)
    admission.offer(patient, now)
    admission.offer(Entry(queued_at=now, deadline=now + 1, service=kind), now)
    assert admission.release(now).next is patient


def test_an_entry_without_a_deadline_does_not_hide_the_danger_to_those_behind_it():
    admission = busy(service=taking(0.01))
    admission.offer(Entry(), 0.0)
    admission.offer(Entry(), 0.0)
    admission.offer(Entry(deadline=1.0), 0.0)
    admission.release(0.5)
    admission.release(0.7)
    assert admission.standing_delay.persists


@pytest.mark.parametrize("load", [1.5, 4.0, 10.0])
def test_goodput_stays_near_capacity_whatever_is_offered(load, monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    simulator = importlib.import_module("overload_simulator")
    found = {
        name: simulator.simulate(make(), load, seconds=8, seed=1) for name, make in simulator.POLICIES.items()
    }
    assert found["first in, first out"]["goodput"] < 0.1
    assert found["asgi-mlperf, patience unknown"]["goodput"] > 0.85
    ours = found["asgi-mlperf"]
    assert ours["goodput"] > 0.9
    assert ours["p50 ms"] < 120
    assert ours["gave up"] < 0.05


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
