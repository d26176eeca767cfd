from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_mlperf.inference.admission import AdmissionQueue, Refusal, ServiceTime


@dataclass(eq=False)
class Entry:
    deadline: float = math.inf


def test_entries_leave_in_the_order_they_came():
    queue = AdmissionQueue(slots=1, max_queue=10)
    entries = [Entry() for _ in range(3)]
    for entry in entries:
        queue.admit(entry, now=0)
    assert [queue.next(now=0) for _ in range(4)] == [*entries, None]


def test_a_full_queue_refuses():
    queue = AdmissionQueue(slots=1, max_queue=1)
    queue.admit(Entry(), now=0)
    with pytest.raises(Refusal) as caught:
        queue.admit(Entry(), now=0)
    assert caught.value.reason == "queue_full"


def test_work_whose_owner_bounds_it_is_never_refused():
    queue = AdmissionQueue(slots=1, max_queue=0)
    queue.admit(Entry(), now=0, bounded=False)
    assert len(queue) == 1


def test_what_cannot_make_its_deadline_is_refused_at_the_door():
    queue = AdmissionQueue(slots=2, max_queue=100)
    queue.service_time.observe(1.0)
    queue.admit(Entry(deadline=1.6), now=0)  # half a second for a slot, one to run
    with pytest.raises(Refusal) as caught:
        queue.admit(Entry(deadline=1.9), now=0)  # a whole second for a slot by now
    assert caught.value.reason == "too_late"


def test_expired_entries_are_dropped_unstarted():
    queue = AdmissionQueue(slots=1, max_queue=10)
    late, fine = Entry(deadline=1.0), Entry(deadline=3.0)
    queue.admit(late, now=0)
    queue.admit(fine, now=0)
    assert queue.next(now=2.0) is fine
    assert len(queue) == 0


def test_withdrawn_entries_are_gone_wherever_they_were():
    queue = AdmissionQueue(slots=1, max_queue=10)
    first, second = Entry(), Entry()
    queue.admit(first, now=0)
    queue.admit(second, now=0)
    queue.withdraw(first)
    queue.withdraw(first)
    assert queue.next(now=0) is second


@pytest.mark.parametrize(("service_s", "seconds"), [(0.0, 1), (0.3, 1), (2.0, 3), (1_000.0, 60)])
def test_retry_after_is_whole_seconds_within_bounds(service_s, seconds):
    queue = AdmissionQueue(slots=2, max_queue=10)
    queue.service_time.observe(service_s)
    queue.admit(Entry(), now=0)
    queue.admit(Entry(), now=0)
    assert queue.retry_after_s() == seconds


def test_the_service_time_follows_what_calls_take():
    service = ServiceTime()
    for _ in range(50):
        service.observe(0.1)
    assert service.seconds == pytest.approx(0.1)
    for _ in range(50):
        service.observe(0.4)
    assert service.seconds == pytest.approx(0.4, rel=0.01)


@given(
    st.lists(st.tuples(st.sampled_from(["admit", "next", "withdraw"]), st.floats(0, 5)), max_size=60),
    st.integers(0, 5),
)
def test_nothing_is_lost_served_twice_or_served_late(steps, max_queue):
    queue = AdmissionQueue(slots=1, max_queue=max_queue)
    now, waiting = 0.0, []
    for action, amount in steps:
        if action == "admit":
            entry = Entry(deadline=now + amount)
            try:
                queue.admit(entry, now)
            except Refusal:
                continue
            waiting.append(entry)
        elif action == "withdraw" and waiting:
            queue.withdraw(waiting.pop(0))
        else:
            now += amount
            served = queue.next(now)
            expected = [entry for entry in waiting if entry.deadline > now]
            assert served is (expected[0] if expected else None)
            waiting = expected[1:] if served else []
        assert len(queue) <= max_queue
        assert len(queue) >= len([entry for entry in waiting if entry.deadline > now])
