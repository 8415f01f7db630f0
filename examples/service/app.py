"""A bundle as a web service: images from many clients are gathered into batches.

BUNDLE=examples/digits uvicorn app:app --app-dir examples/service
curl --data-binary @examples/seven.png localhost:8000/predict
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, is_dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgeport_runtime import BusyError, EdgeportError, ImageError, load
from edgeport_runtime.counters import prometheus
from edgeport_runtime.errors import DeadlineError

MAX_BODY_BYTES = int(os.environ.get("MAX_BODY_BYTES", 10_000_000))
MAX_QUEUE = int(os.environ.get("MAX_QUEUE", 256))
DEADLINE_MS = float(os.environ.get("DEADLINE_MS", 2000))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """On SIGTERM the server takes no new request, ends those that it has, and then comes here."""
    with load(os.environ["BUNDLE"], device=os.environ.get("DEVICE", "cpu"), batch=16) as model:
        model.warmup(batches=(1, 16))
        with model.batcher(max_batch=16, max_queue=MAX_QUEUE, deadline_ms=DEADLINE_MS) as batcher:
            app.state.model, app.state.batcher = model, batcher
            yield


async def predict(request: Request) -> Response:
    answer = await request.app.state.batcher(await request.body())
    if not is_dataclass(answer):
        return JSONResponse({"error": "this service answers with labels: load a classifier"}, 501)
    return JSONResponse(asdict(answer))


async def health(request: Request) -> Response:
    """The process is alive. It answers from the start on, since the server listens after the model was loaded."""
    return PlainTextResponse("alive\n")


async def readiness(request: Request) -> Response:
    """Whether to send more: not while half of the queue is taken."""
    waiting = request.app.state.batcher.counters()["waiting"]
    return PlainTextResponse(f"{waiting} waiting\n", 503 if waiting > MAX_QUEUE // 2 else 200)


async def metrics(request: Request) -> Response:
    model, batcher = request.app.state.model, request.app.state.batcher
    return PlainTextResponse(batcher.prometheus() + prometheus(model.counters(), prefix="edgeport_model"), media_type="text/plain; version=0.0.4")


async def fault(request: Request, error: Exception) -> Response:
    """400: the image is at fault. 503 and 504: come again later. 500: the model failed."""
    status = 400 if isinstance(error, ImageError) else 504 if isinstance(error, DeadlineError) else 503 if isinstance(error, BusyError) else 500
    return JSONResponse({"error": str(error)}, status, headers={"Retry-After": "1"} if status in (503, 504) else None)


app = Starlette(
    routes=[Route("/predict", predict, methods=["POST"]), Route("/healthz", health), Route("/readyz", readiness), Route("/metrics", metrics)],
    exception_handlers={EdgeportError: fault},
    lifespan=lifespan,
    max_body_size=MAX_BODY_BYTES,
)
