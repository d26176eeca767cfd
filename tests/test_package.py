from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_mlperf

SOURCE = Path(asgi_mlperf.__file__).parent


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_reads_no_environment_starts_no_thread_and_leaves_gc_alone():
    code = """
import gc, json, os, signal, sys, threading
import anyio, anyio._backends._asyncio, orjson, prometheus_client, pydantic_settings, threadpoolctl
import starlette.testclient
read = []
class Environment(dict):
    def __getitem__(self, name):
        read.append(name); return super().__getitem__(name)
    def get(self, name, default=None):
        read.append(name); return super().get(name, default)
def state():
    return [gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(), len(gc.callbacks),
            threading.active_count(), str(threading.Thread.run), str(signal.getsignal(signal.SIGTERM))]
before = state()
os.environ = Environment(os.environ)
import asgi_mlperf, asgi_mlperf.cli
print(json.dumps([before == state(), [name for name in read if name.startswith("ASGI_MLPERF")]]))
"""
    assert json.loads(run(code, ASGI_MLPERF_NONSENSE="1")) == [True, []]


def test_a_bare_starlette_app_is_served_without_fastapi_torch_or_numpy():
    code = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"fastapi", "torch", "numpy", "sklearn", "pandas", "uvloop"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from asgi_mlperf import ORJSONResponse, PerfMiddleware, Plugin
plugin = Plugin()
@plugin.batched
def double(items): return [item * 2 for item in items]
async def compute(request):
    return ORJSONResponse({"run": await plugin.run(abs, -1), "batched": await double(3), "nan": float("nan")})
app = Starlette(routes=[Route("/", compute)], lifespan=plugin.lifespan)
app.add_middleware(PerfMiddleware, plugin=plugin)
with TestClient(app) as client:
    print(client.get("/").text)
    assert "asgi_mlperf_batch_size" in client.get("/metrics").text
assert not {"fastapi", "torch", "numpy"} & set(sys.modules)
"""
    assert run(code).strip() == '{"run":1,"batched":6,"nan":null}'


def test_all_lists_exactly_the_public_names():
    public = {
        name
        for name, value in vars(asgi_mlperf).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("asgi_mlperf")
    }
    assert set(asgi_mlperf.__all__) == public
    assert asgi_mlperf.__all__ == sorted(asgi_mlperf.__all__)


@pytest.mark.parametrize("name", asgi_mlperf.__all__)
def test_every_public_name_says_what_it_guarantees(name):
    assert getattr(asgi_mlperf, name).__doc__


def test_every_module_imports_and_says_why_it_exists():
    names = [module.name for module in pkgutil.walk_packages([str(SOURCE)], "asgi_mlperf.")]
    silent = [
        name for name in names if name != "asgi_mlperf.__main__" and not importlib.import_module(name).__doc__
    ]
    assert silent == []


def test_the_error_tree_in_the_docstring_is_the_one_in_the_code():
    from asgi_mlperf import exceptions

    classes = [
        value
        for value in vars(exceptions).values()
        if isinstance(value, type)
        and issubclass(value, BaseException)
        and value.__module__ == exceptions.__name__
    ]
    assert all(issubclass(cls, asgi_mlperf.ASGIMLPerfError) for cls in classes)
    drawn = exceptions.__doc__ or ""
    assert [cls.__name__ for cls in classes if cls.__name__ not in drawn] == []


def test_the_package_ships_its_types():
    assert (SOURCE / "py.typed").exists()
