"""Calling a server that may be slow, busy, or gone for a while: time-outs, retries with back-off, a circuit breaker.

What may pass by itself (no connection, no answer in time, 429, 502, 503, 504) is tried again, a little later each
time. If it
does not pass, the circuit opens: every thread stops sending, one of them says so and asks every few seconds whether the
server is back, and then all go on where they were, so a server that is restarted costs time and no sample. Only when
it stays away longer than `patience` does the run end, in an error. Any other answer is final, and an error at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import requests
from tqdm import tqdm

from nft_pipeline.files.private import Secret, without_password

from ..contract import RewardError

_PASSES = {408, 429, 502, 503, 504}
_LONGEST_WAIT = 8.0  # seconds between two tries of one request


class ServerError(RewardError):
    """A server refused, or stayed away. `kind` is its own name for that ("wrong_token"), or "gone"."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Caller:
    """Sends JSON to one server, from any number of threads.

    Args:
        url: the server's address, to which paths are added.
        token: sent as a bearer token; None sends none.
        health: path that answers 200 when the server is well.
        timeout: seconds to wait for an answer.
        retries: tries after the first before the circuit opens.
        backoff: seconds before the second try; doubled each time, with some chance in it, to 8.
        patience: seconds that the server may stay away.
        probe_every: seconds between two looks while it is away.
        say: told when the run pauses and when it goes on (default: a line that leaves progress bars intact).
    """

    def __init__(
        self,
        url: str,
        token: str | Secret | None = None,
        *,
        health: str = "/health",
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 0.5,
        patience: float = 1800.0,
        probe_every: float = 5.0,
        say: Callable[[str], None] = tqdm.write,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RewardError(
                f"the server's address is {without_password(url)!r}, expected one that begins with http:// or https://"
            )
        self.url, self.health, self.timeout, self.retries = url.rstrip("/"), health, timeout, retries
        self.shown = without_password(self.url)
        self.backoff, self.patience, self.probe_every, self.say = backoff, patience, probe_every, say
        self.token = Secret(token) if token else None
        self.circuit = threading.Lock()  # held by the one thread that waits for the server while it is away
        self.returns = 0  # how often it came back; a thread that failed before that simply tries again
        self.given_up: tuple[int, str] | None = None
        self.stopped = threading.Event()

    def map(self, function: Callable[..., Any], *items: Iterable[Any], concurrency: int) -> list[Any]:
        """`function` of the items, in threads, in order; the first error ends the others' waiting as well.

        So does Ctrl-C, which would otherwise have no effect before a server that is away comes back.
        """
        self.stopped.clear()
        with ThreadPoolExecutor(concurrency) as pool:
            futures: list[Future[Any]] = []
            try:
                futures += [pool.submit(function, *arguments) for arguments in zip(*items, strict=True)]
                left = set(futures)
                while left:  # in short pieces: a wait without an end is deaf to Ctrl-C on some systems
                    done, left = wait(left, timeout=0.2, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                return [future.result() for future in futures]
            except BaseException:
                self.stopped.set()
                for future in futures:
                    future.cancel()
                raise

    def get(self, path: str) -> Any:
        """The JSON at `path`.

        Raises:
            ServerError: refused, or away for longer than `patience`.
        """
        return self._call("GET", path, None)

    def post(self, path: str, payload: Any) -> Any:
        """The JSON answer to `payload`, sent as JSON.

        Raises:
            ServerError: as `get`.
        """
        return self._call("POST", path, payload)

    def _call(self, method: str, path: str, payload: Any) -> Any:
        tries = 0
        while True:
            with self.circuit:  # while it is open, wait here
                returns = self.returns
            answer, reason, asked = self._try(method, path, payload)
            if answer is not None:
                self.given_up = None
                return _content(answer, self.shown)
            tries += 1
            if tries <= self.retries:
                pause = min(self.backoff * 2 ** (tries - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.25)
                self._sleep(max(pause, asked))
            else:
                self._wait_for_server(reason, returns)
                tries = 0

    def _try(self, method: str, path: str, payload: Any) -> tuple[requests.Response | None, str, float]:
        """An answer that is final; or none, why, and the seconds the server asks for."""
        try:
            answer = requests.request(
                method, self.url + path, json=payload, headers=self._headers(), timeout=(10.0, self.timeout)
            )
        except requests.Timeout:
            return None, f"no answer within {self.timeout:g} s", 0.0
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            return None, f"no connection ({type(error).__name__})", 0.0
        if answer.status_code not in _PASSES:
            return answer, "", 0.0
        asked = answer.headers.get("Retry-After", "")
        return None, f"HTTP {answer.status_code}", min(float(asked), 60.0) if asked.isdecimal() else 0.0

    def _wait_for_server(self, reason: str, returns: int) -> None:
        with self.circuit:
            if self.returns != returns:
                return
            self._sleep(0)  # whoever waited for the lock may have been told to stop
            if self.given_up and self.given_up[0] == returns:
                raise ServerError(self.given_up[1], "gone")
            since = time.monotonic()
            self.say(
                f"the reward server {self.shown} does not answer: {reason}. The run is paused and nothing is lost; "
                f"looking every {self.probe_every:g} s, for up to {self.patience:g} s. Start the server again to go on"
            )
            while time.monotonic() - since < self.patience:
                self._sleep(self.probe_every)
                if self._is_well():
                    self.returns += 1
                    self.say(f"the reward server {self.shown} is back after {time.monotonic() - since:.0f} s")
                    return
            message = (
                f"the reward server {self.shown} stayed away for {self.patience:g} s ({reason}). Start it again and "
                "give the same command; what was scored before is kept"
            )
            self.given_up = (returns, message)
            raise ServerError(message, "gone")

    def _sleep(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise ServerError(f"waiting for {self.shown} was ended", "stopped")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.reveal()}"} if self.token else {}

    def _is_well(self) -> bool:
        try:
            return requests.get(self.url + self.health, headers=self._headers(), timeout=10.0).status_code == 200
        except requests.RequestException:
            return False


def _content(answer: requests.Response, url: str) -> Any:
    try:
        content = answer.json()
    except ValueError as error:
        raise ServerError(
            f"{url} answered HTTP {answer.status_code} with {answer.text[:100]!r}, expected JSON; is it a reward "
            "server, and is the address complete?",
            "no_json",
        ) from error
    if answer.status_code == 200:
        return content
    fault = content.get("error") if isinstance(content, dict) else None
    fault = fault if isinstance(fault, dict) else {"message": str(fault or content)[:300]}
    kind = str(fault.get("type", f"http_{answer.status_code}"))
    raise ServerError(f"{url} refused ({kind}): {fault.get('message', '')}", kind)
