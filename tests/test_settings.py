from __future__ import annotations

import pydantic
import pytest

from asgi_mlperf import ConfigurationError, Plugin, Settings
from asgi_mlperf.settings import knobs


def test_defaults_need_no_environment():
    settings = Settings()
    assert settings.enabled
    assert settings.gc.mode == "scheduled"
    assert settings.pool.threads is None
    assert settings.metrics.path == "/metrics"


def test_every_knob_can_be_set_from_its_variable(monkeypatch):
    values = {
        "ENABLED": ("false", False),
        "WORKERS": ("3", 3),
        "GC__MODE": ("freeze", "freeze"),
        "THREADS__NATIVE": ("2", 2),
        "POOL__THREADS": ("5", 5),
        "POOL__MAX_QUEUE": ("7", 7),
        "POOL__TIMEOUT_MS": ("250", 250),
        "BATCHING__MAX_SIZE": ("9", 9),
        "JSON__NAN": ("error", "error"),
        "METRICS__PATH": ("/prometheus", "/prometheus"),
        "METRICS__BUCKETS": ("0.1, 1,10", (0.1, 1.0, 10.0)),
        "METRICS__EXCLUDE": ("/a/{id},/b", ("/a/{id}", "/b")),
        "HEALTH__DRAIN_MS": ("1", 1),
    }
    for name, (text, _) in values.items():
        monkeypatch.setenv(f"ASGI_MLPERF_{name}", text)
    settings = Settings()
    by_variable = {knob.variable: knob.value(settings) for knob in knobs()}
    assert {name: by_variable[f"ASGI_MLPERF_{name}"] for name in values} == {
        name: value for name, (_, value) in values.items()
    }


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("ASGI_MLPERF_POOL__THREADS", "")
    monkeypatch.setenv("ASGI_MLPERF_WORKERS", "")
    assert Settings() == Settings(workers=None)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("ASGI_MLPERF_POOL_THREADS", "ASGI_MLPERF_POOL__THREADS"),
        ("ASGI_MLPERF_PULL__MAX_QUEUE", "ASGI_MLPERF_POOL__MAX_QUEUE"),
        ("ASGI_MLPERF_GC__MOD", "ASGI_MLPERF_GC__MODE"),
        ("ASGI_MLPERF_ENABLE", "ASGI_MLPERF_ENABLED"),
    ],
)
def test_an_unknown_variable_stops_the_start_and_names_the_nearest(monkeypatch, variable, nearest):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigurationError, match=f"{variable} is not a setting; did you mean {nearest}"):
        Plugin()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASGI_MLPERF_POOL__THREADS", "0"),
        ("ASGI_MLPERF_POOL__THREADS", "many"),
        ("ASGI_MLPERF_GC__MODE", "never"),
        ("ASGI_MLPERF_WORKERS", "-1"),
        ("ASGI_MLPERF_METRICS__BUCKETS", "1,x"),
        ("ASGI_MLPERF_METRICS__BUCKETS", "1,0.5"),
        ("ASGI_MLPERF_METRICS__BUCKETS", "0.1,0.1"),
        ("ASGI_MLPERF_METRICS__BUCKETS", "inf"),
        ("ASGI_MLPERF_METRICS__BUCKETS", "nan"),
        ("ASGI_MLPERF_METRICS__BUCKETS", "-1,1"),
        ("ASGI_MLPERF_POOL__TIMEOUT_MS", "9" * 400),
        ("ASGI_MLPERF_HEALTH__DRAIN_MS", "9" * 400),
        ("ASGI_MLPERF_METRICS__PATH", "metrics"),
        ("ASGI_MLPERF_ENABLED", "perhaps"),
    ],
)
def test_a_bad_value_is_named_with_what_the_variable_takes(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    (knob,) = (knob for knob in knobs() if knob.variable == variable)
    assert variable in str(caught.value)
    assert f"takes {knob.takes}" in str(caught.value)


def test_paths_that_coincide_are_refused(monkeypatch):
    monkeypatch.setenv("ASGI_MLPERF_METRICS__PATH", "/livez")
    with pytest.raises(ConfigurationError, match="paths must differ: /livez, /livez, /readyz, /startupz"):
        Settings()


def test_an_unknown_field_of_a_known_section_is_told_once(monkeypatch):
    monkeypatch.setenv("ASGI_MLPERF_POOL__THREAD", "2")
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert str(caught.value).count("is not a setting") == 1


def test_all_problems_are_told_at_once(monkeypatch):
    monkeypatch.setenv("ASGI_MLPERF_POOL__THREADS", "0")
    monkeypatch.setenv("ASGI_MLPERF_BATCHING__MAXSIZE", "8")
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert "ASGI_MLPERF_POOL__THREADS" in str(caught.value)
    assert "ASGI_MLPERF_BATCHING__MAX_SIZE" in str(caught.value)


def test_a_misspelt_keyword_is_named_with_the_nearest():
    with pytest.raises(
        ConfigurationError, match=r"pool\.thread is not a setting; did you mean pool\.threads"
    ):
        Settings(pool={"thread": 2})


def test_settings_are_frozen():
    settings = Settings()
    for model, name in ((settings, "workers"), (settings.pool, "threads")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(model, name, 2)


def test_every_knob_says_what_it_does_and_takes():
    assert [knob.variable for knob in knobs() if not (knob.description and knob.takes)] == []


def test_the_origin_of_a_value_is_known(monkeypatch):
    monkeypatch.setenv("ASGI_MLPERF_POOL__THREADS", "4")
    import os

    settings = Settings(workers=2)
    origins = {knob.variable: knob.origin(settings, os.environ) for knob in knobs()}
    assert origins["ASGI_MLPERF_POOL__THREADS"] == "environment"
    assert origins["ASGI_MLPERF_WORKERS"] == "code"
    assert origins["ASGI_MLPERF_GC__MODE"] == "default"


@pytest.mark.parametrize("text", ["inf", "nan", "1e30"])
@pytest.mark.parametrize("variable", [knob.variable for knob in knobs() if "number" in knob.takes])
def test_a_number_that_no_feature_could_work_with_is_refused(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=variable):
        Settings()
