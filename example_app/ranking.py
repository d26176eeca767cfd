"""Recommendations: what speaks for each candidate, added up, then spread over shelves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from example_app.catalogue import bestsellers
from example_app.schemas import Ranking, Recommendation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from example_app.catalogue import Catalogue, Customer, Item

_FAVOURITES = 3
_PER_SHELF = 12


@dataclass(eq=False)
class Signal:
    """One reason to show an item, and how strong it is."""

    reason: str
    strength: float


@dataclass(eq=False)
class Candidate:
    """An item under consideration, with everything that speaks for it."""

    item: Item
    signals: list[Signal] = field(default_factory=list)
    score: float = 0.0


@dataclass(eq=False)
class Shelf:
    """The best candidates of one category, in order."""

    category: str
    places: list[Place] = field(default_factory=list)


@dataclass(eq=False)
class Place:
    """A candidate's place on its shelf: each knows the other, as rows of a relation do."""

    shelf: Shelf = field(repr=False)
    candidate: Candidate
    position: int

    @property
    def score(self) -> float:
        """The candidate's score, less for each better one on the same shelf, so that shelves mix."""
        return self.candidate.score * 0.95**self.position


def rank(catalogue: Catalogue, customer: Customer, limit: int) -> Ranking:
    """Return the ``limit`` best items for the customer, mixed from several categories."""
    candidates = _candidates(catalogue, customer)
    for candidate in candidates:
        candidate.score = _score(candidate, customer)
    places = [place for shelf in _shelves(candidates) for place in shelf.places]
    places.sort(key=lambda place: (-place.score, place.candidate.item.id))
    return Ranking(
        customer=customer.id,
        considered=len(candidates),
        recommendations=[_recommendation(place) for place in places[:limit]],
    )


def _candidates(catalogue: Catalogue, customer: Customer) -> list[Candidate]:
    found: dict[int, Candidate] = {}
    for item, signal in _signals(catalogue, customer):
        candidate = found.get(item.id)
        if candidate is None:
            candidate = found[item.id] = Candidate(item)
        candidate.signals.append(signal)
    return list(found.values())


def _signals(catalogue: Catalogue, customer: Customer) -> Iterator[tuple[Item, Signal]]:
    for event in customer.history:
        for item in event.item.similar:
            yield item, Signal("often bought together", event.weight)
    favourites = sorted(customer.taste, key=customer.taste.__getitem__, reverse=True)[:_FAVOURITES]
    for name in favourites:
        for item in bestsellers(catalogue.categories[name]):
            yield item, Signal("bestseller you may like", customer.taste[name] * item.popularity)


def _score(candidate: Candidate, customer: Customer) -> float:
    item = candidate.item
    if item.price <= customer.budget:
        candidate.signals.append(Signal("within budget", 0.1))
    if "new" in item.tags:
        candidate.signals.append(Signal("new", 0.05))
    taste = customer.taste[item.category.name]
    return (0.5 + taste) * sum(signal.strength for signal in candidate.signals)


def _shelves(candidates: list[Candidate]) -> list[Shelf]:
    shelves: dict[str, Shelf] = {}
    for candidate in sorted(candidates, key=lambda candidate: (-candidate.score, candidate.item.id)):
        name = candidate.item.category.name
        shelf = shelves.setdefault(name, Shelf(name))
        if len(shelf.places) < _PER_SHELF:
            shelf.places.append(Place(shelf, candidate, position=len(shelf.places)))
    return list(shelves.values())


def _recommendation(place: Place) -> Recommendation:
    item = place.candidate.item
    return Recommendation(
        item=item.id,
        title=item.title,
        category=item.category.name,
        price=item.price,
        score=place.score,
        reasons=[signal.reason for signal in place.candidate.signals],
    )
