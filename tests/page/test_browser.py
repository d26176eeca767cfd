"""The page in a real browser, with figures of a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.page.chromium import Tab, browsing, executable
from tests.servers.serving import COMMANDS, Server, serving

pytestmark = pytest.mark.skipif(executable() is None, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("page")
    with serving(COMMANDS["uvicorn"], directory, environ={"ASGI_MLPERF_PAGE__TOKEN": "secret"}) as server:
        server.wait_for("startup")
        yield server


@pytest.fixture(scope="module")
def tab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """The page, after two rounds of figures with some requests between them."""
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        tab.open(f"http://127.0.0.1:{server.port}/mlperf", password="secret")
        tab.wait_for("document.querySelector('#state.good')")
        for number in range(20):
            server.get(f"/double?number={number}")
            server.get(f"/triple?number={number}")
        tab.wait_for("[...document.querySelectorAll('#routes th')].some(th => th.innerText == '/double')")
        tab.wait_for(
            "history0().includes('ms')".replace("history0()", "document.querySelector('#tiles').innerText")
        )
        yield tab


def test_the_page_shows_latency_decomposition_queue_collections_and_lag(tab):
    titles = tab.evaluate("[...document.querySelectorAll('h2')].map(each => each.innerText)")
    assert titles == [
        "Latency",
        "A model call",
        "An item of a batch",
        "Batch size",
        "Queue",
        "Garbage collection and event-loop lag",
    ]
    assert tab.evaluate("document.querySelectorAll('.plot path').length") >= 9
    routes = tab.evaluate("[...document.querySelectorAll('#routes th')].map(each => each.innerText)")
    assert {"/double", "/triple"} <= set(routes)
    assert tab.evaluate("document.querySelector('#pools th').innerText") == "default"


def test_every_chart_says_in_words_what_it_shows(tab):
    labels = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map(each => each.getAttribute('aria-label'))"
    )
    assert len(labels) == 6
    assert all(", now: " in label for label in labels)
    assert tab.evaluate("[...document.querySelectorAll('table')].every(each => each.caption)")
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.evaluate("document.querySelector('[role=status]').innerText") == "ready"


def test_the_page_has_a_light_and_a_dark_look(tab):
    looks = []
    for scheme in ("dark", "light"):
        tab.show(scheme)
        looks.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert looks == ["rgb(18, 22, 28)", "rgb(246, 247, 249)"]


@pytest.mark.parametrize("width", [1180, 360])
def test_nothing_is_cut_off_in_a_window_of_any_width(tab, width):
    tab.show("light", (width, 900))
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_asks_nobody_else_and_its_policy_is_kept(tab, server):
    origin = f"http://127.0.0.1:{server.port}/mlperf"
    elsewhere = [url for url in tab.requested if not url.startswith((origin, "data:", "about:"))]
    assert elsewhere == []
    assert tab.complaints == []
