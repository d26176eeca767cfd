"""The service: ``uvicorn example_app.main:app``.

asgi-mlperf is the lines that name ``plugin``; all else is as it would be without.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from asgi_mlperf import Plugin, TensorResponse
from example_app.catalogue import catalogue
from example_app.model import classifier
from example_app.network import PIXELS
from example_app.page import index_page
from example_app.ranking import rank
from example_app.schemas import Image, Images, Prediction, Ranking, Visit

plugin = Plugin()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Have the model and the catalogue in memory, and the model warm, before the first request."""
    await run_in_threadpool(catalogue)
    model = await run_in_threadpool(classifier)
    await run_in_threadpool(model.classify, [[0] * PIXELS])
    yield


app = FastAPI(
    title="Digits and recommendations",
    description="An example of a machine-learning backend with asgi-mlperf.",
    lifespan=lifespan,
)


@plugin.batched(max_size=32)
def classify_all(images: list[list[int]]) -> list[Prediction]:
    return classifier().classify(images)


@app.post("/classify")
async def classify(image: Image) -> Prediction:
    """Name the digit on an image."""
    return await classify_all(image.pixels)


@app.post("/rank", responses={404: {"description": "No such customer"}})
async def recommend(visit: Visit) -> Ranking:
    """Recommend items to a customer."""
    # A millisecond or two of pure Python: a thread of its own would only contend for the GIL.
    customers = catalogue().customers
    if visit.customer >= len(customers):
        raise HTTPException(404, f"No customer {visit.customer}: try one from 0 to {len(customers) - 1}.")
    return rank(catalogue(), customers[visit.customer], visit.limit)


@app.post("/embed", response_class=TensorResponse, responses={200: {"content": TensorResponse.CONTENT}})
async def embed(request: Images) -> TensorResponse:
    """Return the activations before the model's last layer, 128 numbers per image, as JSON or tensors."""
    embeddings = await plugin.run(classifier().embed, request.images)
    return TensorResponse({"embeddings": embeddings})


@app.get("/", include_in_schema=False)
async def index(request: Request) -> HTMLResponse:
    return HTMLResponse(index_page(str(request.base_url)))


plugin.install(app)
