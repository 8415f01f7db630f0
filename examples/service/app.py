"""A bundle as a web service: images from many clients are gathered into batches.

BUNDLE=examples/digits uvicorn app:app --app-dir examples/service --timeout-graceful-shutdown 10
curl --data-binary @examples/seven.png localhost:8000/predict
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
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
    if "BUNDLE" not in os.environ:
        raise SystemExit("set BUNDLE to the folder of a bundle, as in BUNDLE=examples/digits")
    with load(os.environ["BUNDLE"], device=os.environ.get("DEVICE", "cpu"), batch=16) as model:
        if model.contract.task != "classification":
            raise SystemExit(f"this service answers with labels, but {os.environ['BUNDLE']} is for {model.contract.task}: write your own answer in predict()")
        model.warmup(batches=(1, 16))
        with model.batcher(max_batch=16, max_queue=MAX_QUEUE, deadline_ms=DEADLINE_MS) as batcher:
            app.state.model, app.state.batcher = model, batcher
            yield


async def predict(request: Request) -> Response:
    return JSONResponse(asdict(await request.app.state.batcher(await request.body())))


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


async def gone(request: Request, error: Exception) -> Response:
    """The client left in the middle of its image, and reads no answer."""
    return Response(status_code=400)


app = Starlette(
    routes=[Route("/predict", predict, methods=["POST"]), Route("/healthz", health), Route("/readyz", readiness), Route("/metrics", metrics)],
    exception_handlers={EdgeportError: fault, ClientDisconnect: gone},
    lifespan=lifespan,
    max_body_size=MAX_BODY_BYTES,
)
