from __future__ import annotations

import gc
import sys
import threading

import pytest

from asgi_mlperf import frames


@pytest.mark.parametrize("enabled", [True, False])
def test_no_collection_starts_while_frames_are_taken(enabled, monkeypatch):
    taken, own = [], sys._current_frames

    def watched():
        taken.append(gc.isenabled())
        return own()

    monkeypatch.setattr(frames, "_MAY_HANG", True)  # as before 3.11.9
    monkeypatch.setattr(sys, "_current_frames", watched)
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        found = frames.current_frames()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert taken == [False]
    assert threading.get_ident() in found
