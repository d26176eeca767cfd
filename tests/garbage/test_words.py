from __future__ import annotations

import gc

import pytest

from asgi_mlperf.garbage import words
from asgi_mlperf.garbage.kinds import CollectorKind
from asgi_mlperf.garbage.settings import GarbageSettings


def test_the_schedule_is_explained_with_its_numbers():
    told = words.explained(GarbageSettings(), 2 << 30)
    assert "2000 new objects" in told["young collections"]
    assert "512 MiB or half of what is free under 2048 MiB" in told["safety valve"]
    assert told["enabled"] is True


@pytest.mark.parametrize("mode", ["off", "freeze"])
def test_other_modes_are_explained_too(mode):
    told = words.explained(GarbageSettings(mode=mode), None)
    assert told["mode"].startswith(f"{mode}: ")
    assert "safety valve" not in told


@pytest.mark.parametrize("kind", CollectorKind)
def test_every_kind_has_words(kind: CollectorKind, monkeypatch):
    monkeypatch.setattr(words, "collector_kind", lambda: kind)
    told = words.explained(GarbageSettings(), None)
    assert told["collector"]
    assert told["young collections"].startswith("none") is not kind.has_generations


@pytest.mark.parametrize(
    ("frozen", "said"), [(0, "nothing"), (375, "the interpreter's own"), (50_000, "by something else")]
)
def test_what_was_frozen_before_is_told_apart(frozen, said, monkeypatch):
    monkeypatch.setattr(gc, "get_freeze_count", lambda: frozen)
    assert said in words.explained(GarbageSettings(), None)["frozen before the start"]


def test_a_process_without_peculiarities_needs_no_advice():
    assert list(words.advice(GarbageSettings())) == []


def test_advice_names_the_fix(monkeypatch):
    monkeypatch.setattr(gc, "isenabled", lambda: False)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 50_000)
    disabled, off, frozen = words.advice(GarbageSettings(mode="off"))
    assert "the safety valve cannot" in disabled
    assert "scheduled avoids that" in off
    assert "leave gc.freeze() to the plugin" in frozen
