"""A shop's items and customers, held in memory as plain objects and linked as an ORM would link them.

The data are made up from a fixed seed, the same in every process: what is ranked is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Final

CATEGORIES: Final = (
    "Books",
    "Garden",
    "Kitchen",
    "Lighting",
    "Music",
    "Outdoor",
    "Paper",
    "Tools",
    "Toys",
    "Wool",
)
ITEMS: Final = 20_000
CUSTOMERS: Final = 8_000
_ADJECTIVES = ("Blue", "Folding", "Light", "Little", "Oak", "Quiet", "Round", "Sturdy", "Tall", "Warm")
_NOUNS = ("basket", "bench", "bowl", "hook", "kettle", "lamp", "ladder", "notebook", "puzzle", "shelf")
_TAGS = ("gift", "handmade", "new", "recycled", "sale", "seasonal")
_SIMILAR = 12
_EVENTS = 20
_BESTSELLERS = 200


@dataclass(eq=False)
class Category:
    """A shelf of the shop; its first items are its bestsellers."""

    name: str
    items: list[Item] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Item:
    """Something to buy, with the items that customers bought together with it."""

    id: int
    title: str
    category: Category
    price: float
    popularity: float
    tags: list[str]
    similar: list[Item] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Event:
    """Something that a customer did with an item; the weight fades with time."""

    customer: Customer = field(repr=False)
    item: Item
    weight: float


@dataclass(eq=False)
class Customer:
    """Somebody with a history and a taste."""

    id: int
    budget: float
    taste: dict[str, float]
    history: list[Event] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Catalogue:
    """Everything the shop knows."""

    categories: dict[str, Category]
    items: list[Item]
    customers: list[Customer]


@cache
def catalogue() -> Catalogue:
    """Return the process's catalogue; the first call builds it, some 250,000 objects."""
    random = Random(20)  # noqa: S311 - made-up data, not a secret
    categories = {name: Category(name) for name in CATEGORIES}
    items = [_item(random, number, categories) for number in range(ITEMS)]
    for item in items:
        item.similar.extend(random.choices(items, k=_SIMILAR))
    for category in categories.values():
        category.items.sort(key=lambda item: item.popularity, reverse=True)
    customers = [_customer(random, number, items) for number in range(CUSTOMERS)]
    return Catalogue(categories, items, customers)


def bestsellers(category: Category) -> list[Item]:
    """Return the most popular items of a category, best first."""
    return category.items[:_BESTSELLERS]


def _item(random: Random, number: int, categories: dict[str, Category]) -> Item:
    category = categories[random.choice(CATEGORIES)]
    item = Item(
        id=number,
        title=f"{random.choice(_ADJECTIVES)} {random.choice(_NOUNS)} no. {number}",
        category=category,
        price=round(random.uniform(2, 200), 2),
        popularity=random.random(),
        tags=random.sample(_TAGS, k=2),
    )
    category.items.append(item)
    return item


def _customer(random: Random, number: int, items: list[Item]) -> Customer:
    taste = {name: random.random() for name in CATEGORIES}
    customer = Customer(id=number, budget=random.uniform(20, 150), taste=taste)
    customer.history.extend(
        Event(customer, item, weight=0.9**age) for age, item in enumerate(random.choices(items, k=_EVENTS))
    )
    return customer
