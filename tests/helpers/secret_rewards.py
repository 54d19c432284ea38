"""Rewards that take secrets: a class of somebody's own, and a server that wants a password in its address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from nft_pipeline.training.rewards import Reward, RewardInfo, RewardOutput

MADE_WITH: list[dict[str, Any]] = []  # the options that each reward below was made with


class Own(Reward):
    """Mean brightness; keeps what it was made with."""

    def __init__(
        self,
        api_key: str = "",
        anything: str = "",
        deep: Any = None,
        headers: Any = None,
        endpoint: str = "",
        e_mail: str = "",
        device: str = "",
    ) -> None:
        MADE_WITH.append({"api_key": api_key, "anything": anything, "deep": deep, "headers": headers})
        self.info = RewardInfo(name="own")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """In [0, 1]."""
        return RewardOutput(torch.tensor([float(np.asarray(image).mean()) / 255 for image in images]))


class Telling(Own):
    """Fails, and tells in the error what it was made with."""

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """Raises."""
        raise ValueError(f"401 for { ({**MADE_WITH[-1], 'deep': None}) }")


@contextmanager
def reward_server() -> Iterator[tuple[str, list[str]]]:
    """Its host and port, and the Authorization headers of all requests; pictures get 0 and 1 in turns."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            card = {"name": "served", "low": 0.0, "high": 1.0, "larger_is_better": True, "middle": None}
            card |= {"spread": 1.0, "licence": "mit", "memory_gb": 0.0, "version": "1"}
            self._answer({**card, "max_pictures": 64, "max_bytes": 10**7})

        def do_POST(self) -> None:
            count = len(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["pictures"])
            self._answer({"scores": [float(place % 2) for place in range(count)], "details": {}})

        def _answer(self, value: dict[str, Any]) -> None:
            asked.append(self.headers.get("Authorization", ""))
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
