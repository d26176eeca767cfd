from __future__ import annotations

import gc
import shlex
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy
from example_app.catalogue import CUSTOMERS, catalogue
from example_app.main import app
from example_app.page import index_page
from example_app.ranking import rank
from example_app.training import held_out_digits

if TYPE_CHECKING:
    from example_app.model import Classifier
    from starlette.testclient import TestClient

BLANK = [0] * 64


class Page(HTMLParser):
    """Collects the links of a page, and its lines for the shell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.codes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"] or "")
        if tag == "code":
            self.codes.append("")

    def handle_data(self, data: str) -> None:
        if self.codes:
            self.codes[-1] += data if self.lasttag == "code" else ""

    @property
    def requests(self) -> list[tuple[str, str, str]]:
        """Each curl line's header, body and URL."""
        lines = [shlex.split(code) for code in self.codes if code.startswith("curl ")]
        assert all(line[:3] + line[4:5] == ["curl", "-s", "-H", "-d"] for line in lines)
        return [(line[3], line[5], line[6]) for line in lines]


def test_classify_names_digits_with_their_probabilities(client: TestClient) -> None:
    digits = held_out_digits()
    images, labels = digits.images[:40].int().tolist(), digits.labels[:40].tolist()
    answers = [client.post("/classify", json={"pixels": image}).json() for image in images]
    assert np.mean([answer["digit"] == label for answer, label in zip(answers, labels, strict=True)]) >= 0.95
    for answer in answers:
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert (
            answer["probability"] == answer["probabilities"][answer["digit"]] == max(answer["probabilities"])
        )


def test_embed_returns_one_vector_per_image(client: TestClient, model: Classifier) -> None:
    images = held_out_digits().images[:5].int().tolist()
    embeddings = client.post("/embed", json={"images": images}).json()["embeddings"]
    assert np.allclose(embeddings, model.embed(images), atol=1e-4)


def test_embed_answers_in_the_format_that_the_client_wants(client: TestClient, model: Classifier) -> None:
    images = held_out_digits().images[:2].int().tolist()
    answer = client.post("/embed", json={"images": images}, headers={"accept": "application/x-safetensors"})
    assert answer.headers["content-type"] == "application/x-safetensors"
    tensors = safetensors.numpy.load(answer.content)
    assert np.allclose(tensors["embeddings"], model.embed(images), atol=1e-4)


def test_rank_recommends_the_same_items_in_every_process(client: TestClient) -> None:
    answer = client.post("/rank", json={"customer": 7, "limit": 10}).json()
    items = [best["item"] for best in answer["recommendations"]]
    assert items == [9160, 6837, 14912, 2, 18670, 19236, 14265, 10886, 7482, 6897]
    scores = [best["score"] for best in answer["recommendations"]]
    assert scores == sorted(scores, reverse=True)


def test_rank_makes_thousands_of_objects_and_leaves_cycles_to_the_collector() -> None:
    shop = catalogue()
    gc.collect()
    gc.disable()
    try:
        before = gc.get_count()[0]
        rank(shop, shop.customers[7], 10)
        assert gc.get_count()[0] - before > 500
        assert gc.collect() > 100
    finally:
        gc.enable()


def test_the_catalogue_is_large_enough_to_make_full_collections_slow() -> None:
    shop = catalogue()
    events = sum(len(customer.history) for customer in shop.customers)
    assert len(shop.items) + len(shop.customers) + events > 180_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {}),
        ("/classify", {"pixels": BLANK[:63]}),
        ("/classify", {"pixels": [*BLANK, 0]}),
        ("/classify", {"pixels": [17, *BLANK[1:]]}),
        ("/classify", {"pixels": [-1, *BLANK[1:]]}),
        ("/classify", {"pixels": ["dark", *BLANK[1:]]}),
        ("/embed", {"images": []}),
        ("/embed", {"images": [BLANK] * 65}),
        ("/embed", {"images": [BLANK, BLANK[:63]]}),
        ("/rank", {"customer": -1}),
        ("/rank", {"customer": 1, "limit": 0}),
        ("/rank", {"customer": 1, "limit": 101}),
    ],
)
def test_what_makes_no_sense_is_refused_with_422(
    client: TestClient, path: str, body: dict[str, object]
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    assert response.json()["detail"]


def test_an_unknown_customer_is_not_found(client: TestClient) -> None:
    response = client.post("/rank", json={"customer": CUSTOMERS})
    assert response.status_code == 404
    assert str(CUSTOMERS - 1) in response.json()["detail"]


def test_the_page_has_a_line_for_every_endpoint_that_works_when_pasted(client: TestClient) -> None:
    page = Page(client.get("/").text)
    tried = set()
    for header, body, url in page.requests:
        name, _, value = header.partition(": ")
        response = client.post(url, content=body, headers={name: value})
        assert response.status_code == 200, response.text
        tried.add(url.removeprefix("http://testserver"))
    assert tried == set(app.openapi()["paths"])


def test_the_pages_that_the_index_links_to_exist(client: TestClient) -> None:
    links = Page(client.get("/").text).links
    assert links == ["docs", "metrics", "livez", "readyz"]
    assert [client.get(f"/{link}").status_code for link in links] == [200] * 4


def test_the_lines_are_addressed_to_where_the_page_was_asked_for(client: TestClient) -> None:
    page = Page(client.get("http://example.org:8080/").text)
    assert {url.rpartition("/")[0] for _, _, url in page.requests} == {"http://example.org:8080"}


def test_a_hostile_address_stays_text() -> None:
    address = "http://x/$(id)';<iframe>&lt;"
    page = Page(index_page(address))
    assert "iframe" not in page.tags
    assert {url.removesuffix(url.rpartition("/")[2]) for _, _, url in page.requests} == {f"{address}/"}
