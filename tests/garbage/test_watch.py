from __future__ import annotations

import logging
import threading

from asgi_mlperf.garbage.watch import watching


def test_it_looks_again_and_again_from_a_thread_of_its_own():
    looks: list[threading.Thread] = []
    twice = threading.Event()

    def look() -> tuple[float, float]:
        looks.append(threading.current_thread())
        if len(looks) == 2:
            twice.set()
        return 0.001, 0.001

    with watching(look, lambda: None, first_s=0.001):
        assert twice.wait(10)
    assert looks[0] is not threading.current_thread()
    assert not looks[0].is_alive()


def test_the_end_does_not_wait_for_the_interval():
    with watching(lambda: (3_600.0, 3_600.0), lambda: None, first_s=3_600):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "asgi-mlperf-gc"]
        assert thread.daemon
    assert not thread.is_alive()


def test_a_rest_ends_when_it_is_stirred():
    looked, again = threading.Event(), threading.Event()

    def look() -> tuple[float, float]:
        (again if looked.is_set() else looked).set()
        return 0.001, 3_600.0

    with watching(look, lambda: None, first_s=0.001) as stir:
        assert looked.wait(10)
        assert not again.wait(0.05)
        stir()
        assert again.wait(10)


def test_what_stirs_is_not_looked_at_before_the_usual_time():
    looked = threading.Event()

    def look() -> tuple[float, float]:
        looked.set()
        return 0.001, 0.001

    with watching(look, lambda: None, first_s=3_600) as stir:
        stir()
        assert not looked.wait(0.05)


def test_a_look_that_fails_gives_up_and_says_so(caplog):
    given_up = threading.Event()

    def look() -> tuple[float, float]:
        raise ValueError("no such thing")

    with caplog.at_level(logging.ERROR), watching(look, given_up.set, first_s=0.001):
        assert given_up.wait(10)
    assert "CPython collects by itself" in caplog.text
    assert "no such thing" in caplog.text
