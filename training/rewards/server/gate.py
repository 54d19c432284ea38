"""What stands before the reward server's application: the token, then the size of a body, and a time for each part.

A stranger who knows the address gets nothing kept in memory: without the token no body is read, and a connection that
does not come to the point is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .wire import TOKEN_VARIABLE

HEADER_SECONDS = 20.0  # for the headers of a request, and between two requests of a connection
BODY_SECONDS = 120.0  # for a whole body
MAX_CONNECTIONS = 1000
MAX_WAITING_BYTES = 256_000_000  # of all bodies that are being read at once

# Answers with HTTP status, kind and words; made by the application, whose errors all look alike.
Answer = Callable[[int, str, str], Any]


class Gate:
    """Lets requests through with their whole body, once it is there.

    Args:
        app: the application behind it.
        answer: makes the answer to a request that is refused.
        token: required as a bearer token for everything but /health; None lets everybody in.
        max_bytes: of a body.
        seconds: for a body to arrive.
    """

    def __init__(
        self, app: Any, answer: Answer, token: str | None, max_bytes: int, seconds: float = BODY_SECONDS
    ) -> None:
        self.app, self.answer, self.token = app, answer, token
        self.max_bytes, self.seconds = max_bytes, seconds
        self.waiting_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._is_known(scope["path"], headers.get(b"authorization", b"")):
            words = f"the token is missing or wrong; set {TOKEN_VARIABLE} to the server's"
            await self.answer(401, "wrong_token", words)(scope, receive, send)
            return
        promised = headers.get(b"content-length", b"0")
        if promised.isdigit() and int(promised) > self.max_bytes:
            await self._too_large(scope, receive, send)
            return
        body = bytearray()
        try:
            fault = await asyncio.wait_for(self._read(body, receive), self.seconds)
        except asyncio.TimeoutError:
            fault = (408, "too_slow", f"the request did not arrive within {self.seconds:g} s")
        finally:
            self.waiting_bytes -= len(body)
        if fault is not None and fault[0] == 413:
            await self._too_large(scope, receive, send)
        elif fault is not None and fault[0]:
            await self.answer(*fault)(scope, receive, send)
        elif fault is None:
            await self.app(scope, _replay(bytes(body), receive), send)

    def _is_known(self, path: str, given: bytes) -> bool:
        if self.token is None or path == "/health":
            return True
        return secrets.compare_digest(given.removeprefix(b"Bearer "), self.token.encode())

    async def _read(self, body: bytearray, receive: Any) -> tuple[int, str, str] | None:
        """Read a body to its end; None if it is whole, else the refusal, whose status is 0 if nobody is there."""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 0, "", ""
            part = message.get("body", b"")
            body += part
            self.waiting_bytes += len(part)
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                return 413, "", ""
            if self.waiting_bytes > MAX_WAITING_BYTES:
                return 503, "overloaded", "too many large requests arrive at once; send this one again"
        return None

    async def _too_large(self, scope: Any, receive: Any, send: Any) -> None:
        # Read on for a while: a client that is cut off while it sends sees a broken connection, not the reason.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drain(receive), self.seconds)
        words = f"the request is larger than {self.max_bytes} bytes; send fewer or smaller pictures at once"
        await self.answer(413, "body_too_large", words)(scope, receive, send)

    async def _drain(self, receive: Any) -> None:
        left = 4 * self.max_bytes
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


def _replay(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    whole = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return whole.pop() if whole else await receive()

    return replay


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP, which would wait for the end of a header for ever, with a limit of time and of connections."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._was_idle = False
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(HEADER_SECONDS, self._look)

    def _look(self) -> None:
        """Close a connection on which there was no whole header since the last look."""
        if self not in self.connections:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and (self.cycle is None or self._was_idle):
            self.transport.close()
            return
        self._was_idle = is_idle
        self.loop.call_later(HEADER_SECONDS, self._look)
