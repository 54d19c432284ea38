"""A reward served over HTTP, for a run on another machine: FastAPI on uvicorn.

Why these: the schema is typed and checked in one place, uvicorn restarts workers that die and drains them on a stop,
and both are light and known to everybody. Ray Serve brings a cluster (hundreds of MB) for what is one model behind one
address; LitServe batches as well, but owns the server loop, and there a NaN or a bad picture in a shared batch fails
every request in it. The batching we need is `batching.py`.

    GET  /health   {"status": "ok", "waiting": N}, without a token
    GET  /info     the reward's card and the server's limits
    POST /score    see `wire`

Each refusal is {"error": {"type", "message"}}: wrong_token 401, too_slow 408, body_too_large 413, bad_request and
bad_picture 422, overloaded 503 (with Retry-After), reward_failed 500.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import json
import os
import warnings
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException

from nft_pipeline.files.pictures import as_seen
from nft_pipeline.torchvision_repair import watch

from ..contract import Reward, RewardError
from ..mix import load_rewards
from .batching import Batcher, Overloaded
from .gate import Gate
from .wire import TOKEN_VARIABLE, Card, Fault, ScoreAnswer, ScoreRequest

SETTINGS_VARIABLE = "DIFFUSION_NFT_REWARD_SERVER"
MAX_BYTES = 32_000_000  # of a request
MAX_PICTURES = 64  # in a request
MAX_PIXELS = 50_000_000  # of a picture
MAX_REQUEST_PIXELS = 100_000_000  # of all pictures in a request: 0.3 GB decoded


class Refusal(Exception):
    """A request that is not served: HTTP status, kind, words."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def create_app(
    reward: Reward,
    *,
    token: str | None = None,
    max_bytes: int = MAX_BYTES,
    max_pictures: int = MAX_PICTURES,
    max_pixels: int = MAX_PIXELS,
    wait: float = 0.01,
    limit: int = 1024,
) -> FastAPI:
    """The application.

    Args:
        reward: what it serves.
        token: required as a bearer token; None lets everybody in who reaches the address.
        max_bytes, max_pictures, max_pixels: limits of a request, and of a picture in it.
        wait, limit: as `Batcher`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(reward, wait, limit)
        task = asyncio.create_task(app.state.batcher.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app = FastAPI(title=f"reward {reward.info.name}", lifespan=lifespan, openapi_url=None)
    app.add_middleware(Gate, answer=_closing, token=token, max_bytes=max_bytes)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": app.state.batcher.queued}

    @app.get("/info")
    async def info() -> Response:
        card = Card.of(reward.info, max_pictures, max_bytes)
        return Response(card.model_dump_json(), media_type="application/json")  # JSONResponse refuses infinities

    @app.post("/score")
    async def score(request: ScoreRequest) -> ScoreAnswer:
        n = len(request.pictures)
        metadata = request.metadata or [{}] * n
        if not len(request.prompts) == len(metadata) == n:
            raise Refusal(
                422, "bad_request", f"{n} pictures, {len(request.prompts)} prompts and {len(metadata)} metadata"
            )
        if n > max_pictures:
            raise Refusal(422, "bad_request", f"{n} pictures in a request, {max_pictures} is the most")
        # In a thread: while a large picture is decoded, others are answered.
        images = await asyncio.to_thread(decode_all, request.pictures, max_pixels)
        output = await app.state.batcher.score(images, request.prompts, metadata)
        return ScoreAnswer(scores=output.scores.tolist(), details=output.details)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return _fault(error.status, error.kind, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return _fault(422, "bad_request", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return _fault(error.status_code, "bad_request", str(error.detail))

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> JSONResponse:
        return _fault(503, "overloaded", str(error), {"Retry-After": "1"})

    @app.exception_handler(RewardError)
    async def failed(_: Request, error: RewardError) -> JSONResponse:
        return _fault(500, "reward_failed", str(error))

    return app


def decode_all(pictures: list[str], max_pixels: int) -> list[Image.Image]:
    """The pictures of a request.

    Raises:
        Refusal: as `decode`; or together they have more than `MAX_REQUEST_PIXELS` pixels.
    """
    images: list[Image.Image] = []
    left = MAX_REQUEST_PIXELS
    for number, picture in enumerate(pictures):
        images.append(decode(picture, number, max_pixels, left))
        left -= images[-1].width * images[-1].height
    return images


def decode(picture: str, number: int, max_pixels: int, left: int) -> Image.Image:
    """A picture of a request, of which `left` pixels may still be decoded.

    Raises:
        Refusal: it is no base64, no PNG, cut off, or too large.
    """
    try:
        data = base64.b64decode(picture, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
            with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
                if file.width * file.height > max_pixels:
                    size = f"{file.width} x {file.height} px"
                    raise Refusal(422, "bad_picture", f"picture {number} is {size}, {max_pixels} pixels is the most")
                if file.width * file.height > left:
                    words = f"the pictures have more than {MAX_REQUEST_PIXELS} pixels together; send fewer at once"
                    raise Refusal(422, "bad_request", words)
                return as_seen(file)
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise Refusal(422, "bad_picture", f"picture {number} is no PNG that can be read: {error}") from error


def _fault(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Fault.of(kind, message).model_dump(), status, headers)


def _closing(status: int, kind: str, message: str) -> JSONResponse:
    """A refusal after which the connection is closed, since what comes next on it was not read."""
    return _fault(status, kind, message, {"Connection": "close"})


def app_from_environment() -> FastAPI:
    """The application of a worker process, which is told what to serve by the environment (a JSON object)."""
    watch()  # uvicorn starts workers anew, and they import this function, not the command
    settings = json.loads(os.environ[SETTINGS_VARIABLE])
    reward = load_rewards(settings["rewards"], **settings["general"])
    # A single reward is served on its own scale, several as their mix.
    single = [part for part, _ in reward.parts.values()]
    served = single[0] if len(single) == 1 else reward
    return create_app(served, token=os.environ.get(TOKEN_VARIABLE) or None, **settings["limits"])
