"""A reward served over HTTP, for a run on another machine: FastAPI on uvicorn.

Why these: the schema is typed and checked in one place, uvicorn restarts workers that die and drains them on a stop,
and both are light and known to everybody. Ray Serve brings a cluster (hundreds of MB) for what is one model behind one
address; LitServe batches as well, but owns the server loop, and there a NaN or a bad picture in a shared batch fails
every request in it. The batching we need is `batching.py`.

    GET  /health   {"status": "ok", "waiting": N}, without a token
    GET  /info     the reward's card and the server's limits
    POST /score    see `wire`

Each refusal is {"error": {"type", "message"}}: wrong_token 401, body_too_large 413, bad_request and bad_picture 422,
overloaded 503 (with Retry-After), reward_failed 500.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import json
import os
import secrets
import warnings
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image

from nft_pipeline.files.pictures import as_seen
from nft_pipeline.torchvision_repair import watch

from ..contract import Reward, RewardError
from ..mix import load_rewards
from .batching import Batcher, Overloaded
from .wire import TOKEN_VARIABLE, Card, Fault, ScoreAnswer, ScoreRequest

SETTINGS_VARIABLE = "DIFFUSION_NFT_REWARD_SERVER"
MAX_BYTES = 32_000_000  # of a request
MAX_PICTURES = 64  # in a request
MAX_PIXELS = 50_000_000  # of a picture


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

    def admitted(request: Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            raise Refusal(401, "wrong_token", f"the token is missing or wrong; set {TOKEN_VARIABLE} to the server's")

    app = FastAPI(title=f"reward {reward.info.name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_bytes)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": app.state.batcher.queued}

    @app.get("/info", dependencies=[Depends(admitted)])
    async def info() -> Response:
        card = Card.of(reward.info, max_pictures, max_bytes)
        return Response(card.model_dump_json(), media_type="application/json")  # JSONResponse refuses infinities

    @app.post("/score", dependencies=[Depends(admitted)])
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
        images = await asyncio.to_thread(lambda: [decode(p, i, max_pixels) for i, p in enumerate(request.pictures)])
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

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> JSONResponse:
        return _fault(503, "overloaded", str(error), {"Retry-After": "1"})

    @app.exception_handler(RewardError)
    async def failed(_: Request, error: RewardError) -> JSONResponse:
        return _fault(500, "reward_failed", str(error))

    return app


def decode(picture: str, number: int, max_pixels: int) -> Image.Image:
    """A picture of a request.

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
                return as_seen(file)
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise Refusal(422, "bad_picture", f"picture {number} is no PNG that can be read: {error}") from error


class BodyLimit:
    """Refuses a request whose body is larger than `max_bytes`, as soon as that is known, whatever its header says."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                await self._refuse(scope, receive, send)
                return
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        # Read on for a while: a client that is cut off while it sends sees a broken connection, not the reason.
        left = 4 * self.max_bytes
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                break
        words = f"the request is larger than {self.max_bytes} bytes; send fewer or smaller pictures at once"
        await _fault(413, "body_too_large", words, {"Connection": "close"})(scope, receive, send)


def _fault(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Fault.of(kind, message).model_dump(), status, headers)


def app_from_environment() -> FastAPI:
    """The application of a worker process, which is told what to serve by the environment (a JSON object)."""
    watch()  # uvicorn starts workers anew, and they import this function, not the command
    settings = json.loads(os.environ[SETTINGS_VARIABLE])
    reward = load_rewards(settings["rewards"], **settings["general"])
    # A single reward is served on its own scale, several as their mix.
    single = [part for part, _ in reward.parts.values()]
    served = single[0] if len(single) == 1 else reward
    return create_app(served, token=os.environ.get(TOKEN_VARIABLE) or None, **settings["limits"])
