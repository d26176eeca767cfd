"""All settings as one frozen object, read from ``ASGI_MLPERF_*`` when it is made."""

from __future__ import annotations

import difflib
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from asgi_mlperf.exceptions import ConfigurationError
from asgi_mlperf.garbage.settings import GarbageSettings
from asgi_mlperf.health.readiness import HealthSettings
from asgi_mlperf.host.settings import ThreadSettings
from asgi_mlperf.inference.gate import PoolSettings
from asgi_mlperf.inference.options import BatchingSettings
from asgi_mlperf.telemetry.page.page import PageSettings
from asgi_mlperf.telemetry.settings import MetricsSettings
from asgi_mlperf.telemetry.tracing import TracingSettings
from asgi_mlperf.wire.responses import JSONSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

PREFIX = "ASGI_MLPERF_"
_DELIMITER = "__"
_LARGEST = 1e12

with warnings.catch_warnings():
    # The section is called json; pydantic's own, deprecated method of that name is not missed.
    warnings.filterwarnings("ignore", message='Field name "json"')

    class Settings(BaseSettings):
        """Everything that can be set: from keywords, else from ``ASGI_MLPERF_*``, else the defaults.

        The variable of a field is ``ASGI_MLPERF_<SECTION>__<FIELD>``. Raises ``ConfigurationError``,
        which names every bad value and every unknown variable with the prefix, and the nearest known one.
        """

        model_config = SettingsConfigDict(
            env_prefix=PREFIX,
            env_nested_delimiter=_DELIMITER,
            env_ignore_empty=True,
            frozen=True,
            extra="forbid",
            str_strip_whitespace=True,
        )

        enabled: bool = Field(
            default=True, description="false: the app behaves as if the plugin were not there"
        )
        workers: int | None = Field(
            default=None,
            ge=1,
            description="worker processes on this host; default: `WEB_CONCURRENCY`, else 1",
        )
        gc: GarbageSettings = GarbageSettings()
        threads: ThreadSettings = ThreadSettings()
        pool: PoolSettings = PoolSettings()
        batching: BatchingSettings = BatchingSettings()
        json: JSONSettings = JSONSettings()  # type: ignore[assignment] # see above
        metrics: MetricsSettings = MetricsSettings()
        tracing: TracingSettings = TracingSettings()
        health: HealthSettings = HealthSettings()
        page: PageSettings = PageSettings()

        @model_validator(mode="after")
        def _page_has_figures(self) -> Settings:
            if self.page.token is not None and not self.metrics.enabled:
                raise ValueError(
                    f"{PREFIX}PAGE__TOKEN needs {PREFIX}METRICS__ENABLED=true: the page shows metrics"
                )
            return self

        @model_validator(mode="after")
        def _numbers_are_meant(self) -> Settings:
            for knob in knobs():
                value = knob.value(self)
                if isinstance(value, float | int) and not abs(value) <= _LARGEST:
                    raise ValueError(f"{knob.variable}={value}: should be at most {_LARGEST:g}")
            return self

        @model_validator(mode="after")
        def _paths_differ(self) -> Settings:
            health = self.health
            paths = [self.metrics.path, health.live_path, health.ready_path, health.startup_path]
            if self.page.token is not None:
                paths += [self.page.path, self.page.data_path]
            if len(set(paths)) < len(paths):
                raise ValueError(f"the plugin's own paths must differ: {', '.join(paths)}")
            return self

        def __init__(self, **values: Any) -> None:
            problems = list(_unknown_variables(os.environ))
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems += [_describe(detail) for detail in error.errors() if not _is_variable(detail)]
            except SettingsError as error:
                problems.append(str(error))
            if problems:
                raise ConfigurationError(
                    "asgi-mlperf cannot start with these settings:\n" + "\n".join(f"  {p}" for p in problems)
                ) from None


@dataclass(frozen=True)
class Knob:
    """One setting: its variable, what it takes, its default and what it does."""

    variable: str
    path: tuple[str, ...]
    takes: str
    default: Any
    description: str

    def value(self, settings: Settings) -> Any:
        """Return the knob's value in ``settings``."""
        value: Any = settings
        for name in self.path:
            value = getattr(value, name)
        return value

    def origin(self, settings: Settings, environ: Mapping[str, str]) -> str:
        """Say where the value in ``settings`` came from: the environment, the code or the default."""
        for name, text in environ.items():
            if name.upper() == self.variable and text:
                return "environment"
        return "default" if self.value(settings) == self.default else "code"


def knobs() -> Iterator[Knob]:
    """Yield every knob, in the order of the documentation."""
    yield from _knobs(Settings, ())


def _knobs(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Knob]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _knobs(field.annotation, (*path, name))
        else:
            yield _knob((*path, name), field)


def _knob(path: tuple[str, ...], field: FieldInfo) -> Knob:
    variable = PREFIX + _DELIMITER.join(path).upper()
    default = None if field.default is PydanticUndefined else field.default
    return Knob(variable, path, _takes(field.annotation), default, field.description or "")


def _takes(annotation: Any) -> str:
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if isinstance(annotation, type) and not arguments:
        return {
            "int": "whole number",
            "float": "number",
            "bool": "true or false",
            "str": "text",
            "SecretStr": "text",
        }.get(annotation.__name__, annotation.__name__)
    if all(isinstance(argument, str) for argument in arguments):
        return ", ".join(arguments)
    if get_origin(annotation) is tuple:
        return "list"
    return " or ".join(_takes(argument) for argument in arguments)


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = [knob.variable for knob in knobs()]
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            yield f"{name} is not a setting; did you mean {nearest}?"


def _is_variable(detail: ErrorDetails) -> bool:
    """Say whether an unknown field is a variable, which is named as such already."""
    variable = PREFIX + _DELIMITER.join(str(part) for part in detail["loc"]).upper()
    return detail["type"] == "extra_forbidden" and variable in {name.upper() for name in os.environ}


def _describe(detail: ErrorDetails) -> str:
    path = tuple(str(part) for part in detail["loc"])
    if not path:
        return detail["msg"].removeprefix("Value error, ")
    by_path = {knob.path: knob for knob in knobs()}
    knob = next((by_path[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in by_path), None)
    if knob is None:
        names = [".".join(known) for known in by_path]
        nearest = difflib.get_close_matches(".".join(path), names, n=1, cutoff=0.0)[0]
        return f"{'.'.join(path)} is not a setting; did you mean {nearest}?"
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{knob.variable}={detail['input']!r}: {message} (takes {knob.takes}; {knob.description})"
