"""What the endpoints take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from example_app.network import DARKEST, PIXELS

Pixel = Annotated[int, Field(ge=0, le=DARKEST)]
Pixels = Annotated[list[Pixel], Field(min_length=PIXELS, max_length=PIXELS)]


class Image(BaseModel):
    """An 8x8 grey image, row by row: 0 is white, 16 is black."""

    pixels: Pixels


class Prediction(BaseModel):
    """The likeliest digit, and how likely each digit from 0 to 9 is."""

    digit: int
    probability: float
    probabilities: list[float]


class Images(BaseModel):
    """A list of 8x8 grey images."""

    images: Annotated[list[Pixels], Field(min_length=1, max_length=64)]


class Visit(BaseModel):
    """A customer who looks for something."""

    customer: Annotated[int, Field(ge=0)]
    limit: Annotated[int, Field(ge=1, le=100)] = 10


class Recommendation(BaseModel):
    """An item, and what speaks for it."""

    item: int
    title: str
    category: str
    price: float
    score: float
    reasons: list[str]


class Ranking(BaseModel):
    """The best items for a customer, best first."""

    customer: int
    considered: int
    recommendations: list[Recommendation]
