"""A person's ratings of a folder of pictures, and the local page on which they are given.

The page is one HTML file without a build step. The server listens on 127.0.0.1 alone and answers only requests that
name it so, and ratings only from its own page, so that no other web page can read the pictures or write ratings.
Every rating is in metadata.jsonl before the page moves on.
"""

from __future__ import annotations

import json
import mimetypes
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from nft_pipeline.files.picture_list import CHOSEN_BY, find_pictures, read_rows, update_rows

from .scoring import prompts_of

PAGE = Path(__file__).with_name("rate.html")
_LARGEST_REQUEST = 10_000  # bytes
_OURS = "X-Diffusion-NFT"  # a header that another site's page cannot send without asking us first


class RatingError(ValueError):
    """A rating that cannot be kept."""


class Ratings:
    """The pictures of a folder, with who is liked, and an undo that reaches back to the start.

    Args:
        folder: the pictures.
        prompt: for pictures that have none.
        chosen_by: the name of the adapter by which the pictures that are not rated yet were put in order. It is kept
            with each of their ratings, and with later ones in this folder, as the pictures left are no fair sample.

    Attributes:
        pictures: in the order in which the page shows them, which may be changed before it is served.

    Raises:
        PictureListError: no pictures, no prompts, or a metadata.jsonl that cannot be read.
    """

    def __init__(self, folder: Path, prompt: str | None = None, chosen_by: str | None = None) -> None:
        self.folder, self.pictures = folder, find_pictures(folder)
        rows = {row["image"]: row for row in read_rows(folder)}
        self.prompts = prompts_of(folder, self.pictures, rows, prompt)
        self.liked: dict[str, bool | None] = {name: rows.get(name, {}).get("liked") for name in self.pictures}
        chosen = (rows.get(name, {}).get(CHOSEN_BY) for name in self.pictures)
        self.chosen_by = chosen_by or next((name for name in chosen if isinstance(name, str)), None)
        self.history: list[tuple[str, bool | None]] = []  # picture and what it was before
        self.lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """What the page shows: the pictures in order, each with prompt and rating (None: not rated)."""
        with self.lock:
            rows = [{"image": n, "prompt": self.prompts[n], "liked": self.liked[n]} for n in self.pictures]
            return {"pictures": rows, "undo": len(self.history)}

    def rate(self, image: object, liked: object) -> None:
        """Keep a rating.

        Raises:
            RatingError: no such picture, or a rating that is neither true nor false.
            PictureListError, OSError: the file cannot be written; then nothing has changed here either.
        """
        if not isinstance(image, str) or image not in self.liked:
            raise RatingError(f"there is no picture {image!r} here; reload the page")
        if not isinstance(liked, bool):
            raise RatingError(f"liked is {liked!r}, expected true or false")
        with self.lock:
            before = self.liked[image]
            self._write(image, liked)
            self.history.append((image, before))

    def undo(self) -> str | None:
        """Take the last rating back; returns its picture, None if there is nothing to take back."""
        with self.lock:
            if not self.history:
                return None
            image, before = self.history[-1]
            self._write(image, before)
            self.history.pop()
            return image

    def _write(self, image: str, liked: bool | None) -> None:
        change: dict[str, Any] = {"prompt": self.prompts[image], "liked": liked}
        if self.liked[image] is None or liked is None:  # a change of mind leaves it as it is
            change[CHOSEN_BY] = None if liked is None else self.chosen_by
        update_rows(self.folder, {image: change})
        self.liked[image] = liked


def rating_server(ratings: Ratings, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1, not yet started.

    Args:
        ratings: what it shows and changes.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    class Handler(_Handler):
        pass

    Handler.ratings = ratings
    return _Server(("127.0.0.1", port), Handler)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to say of a browser that was closed while it was answered; of anything else what there is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    ratings: Ratings
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_for_us():
            return
        path = unquote(self.path.partition("?")[0])
        if path == "/":
            self._answer(HTTPStatus.OK, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/state":
            self._json(HTTPStatus.OK, self.ratings.state())
        elif path.startswith("/picture/") and (name := path.removeprefix("/picture/")) in self.ratings.liked:
            try:
                picture = (self.ratings.folder / name).read_bytes()
            except OSError as error:
                self._json(HTTPStatus.NOT_FOUND, {"error": f"{name} cannot be read: {error.strerror}"})
                return
            self._answer(HTTPStatus.OK, picture, mimetypes.guess_type(name)[0] or "application/octet-stream")
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"there is nothing at {path}"})

    def do_POST(self) -> None:
        if not self._is_for_us():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST_REQUEST:
            self.close_connection = True
            self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": "that is no rating: too large, or of no length"})
            return
        body = self.rfile.read(int(length))
        if _OURS not in self.headers:
            self._json(HTTPStatus.FORBIDDEN, {"error": f"ratings come from the page, with the header {_OURS}"})
            return
        try:
            if self.path == "/rate":
                said = json.loads(body)
                if not isinstance(said, dict):
                    raise RatingError(f"a rating is {said!r}, expected an object with image and liked")
                self.ratings.rate(said.get("image"), said.get("liked"))
                self._json(HTTPStatus.OK, {})
            elif self.path == "/undo":
                self._json(HTTPStatus.OK, {"image": self.ratings.undo()})
            else:
                self._json(HTTPStatus.NOT_FOUND, {"error": f"there is nothing at {self.path}"})
        except RecursionError:
            self._json(HTTPStatus.BAD_REQUEST, {"error": "that is no rating: its JSON is nested too deeply"})
        except json.JSONDecodeError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"that is no rating: no JSON ({error})"})
        except ValueError as error:  # RatingError, PictureListError, no text
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            self._json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": f"the rating was not kept: {error}"})

    def _is_for_us(self) -> bool:
        """Whether the address asked for is ours: a page elsewhere may point a name of its own at 127.0.0.1."""
        _, port = cast("tuple[str, int]", self.server.server_address)
        if self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return True
        self.close_connection = True
        self._json(HTTPStatus.FORBIDDEN, {"error": f"open http://127.0.0.1:{port}, not another name"})
        return False

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line per request would only be noise."""
