"""Dynamic batching: requests that arrive together are scored together, in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from ..contract import Reward, RewardError, RewardOutput


class Overloaded(RuntimeError):
    """More is waiting than the server takes; ask again later."""


@dataclass
class _Job:
    images: Sequence[Image]
    prompts: Sequence[str]
    metadata: Sequence[dict[str, Any]]
    result: asyncio.Future[RewardOutput] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Runs a reward in one thread of its own, on whatever has arrived.

    A request waits at most `wait` seconds for company, and not at all while the reward is busy with others. If a batch
    fails, each of its requests is scored alone, so that one bad picture spoils no other's score.

    Args:
        reward: the reward; `reward.batch` is the most pictures that are joined.
        wait: seconds.
        limit: pictures that may wait.
    """

    def __init__(self, reward: Reward, wait: float = 0.01, limit: int = 1024) -> None:
        self.reward, self.wait, self.limit = reward, wait, limit
        self.waiting: list[_Job] = []
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self.batches = 0

    @property
    def queued(self) -> int:
        """Pictures that wait."""
        return sum(len(job.images) for job in self.waiting)

    async def score(
        self, images: Sequence[Image], prompts: Sequence[str], metadata: Sequence[dict[str, Any]]
    ) -> RewardOutput:
        """Scores of one request.

        Raises:
            Overloaded: too many pictures are waiting.
            RewardError, Exception: what the reward raised for this request.
        """
        if self.queued + len(images) > self.limit:
            raise Overloaded(f"{self.queued} pictures are waiting, and {self.limit} is the most; ask again later")
        job = _Job(images, prompts, metadata)
        self.waiting.append(job)
        self.arrived.set()
        return await job.result

    async def run(self) -> None:
        """Score what arrives, until cancelled; what is waiting then is refused."""
        loop = asyncio.get_running_loop()
        jobs: list[_Job] = []
        try:
            while True:
                await self.arrived.wait()
                if self.queued < self.reward.batch:
                    await asyncio.sleep(self.wait)
                jobs = self._next()
                await loop.run_in_executor(self.thread, self._score, jobs, loop)
                self.batches += 1
        finally:
            for job in [*jobs, *self.waiting]:
                if not job.result.done():
                    job.result.set_exception(Overloaded("the server is stopping; ask again later"))
            self.thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[_Job]:
        jobs: list[_Job] = []
        count = 0
        while self.waiting and (not jobs or count + len(self.waiting[0].images) <= self.reward.batch):
            count += len(self.waiting[0].images)
            jobs.append(self.waiting.pop(0))
        if not self.waiting:
            self.arrived.clear()
        return [job for job in jobs if not job.result.cancelled()]

    def _score(self, jobs: list[_Job], loop: asyncio.AbstractEventLoop) -> None:
        try:
            results: list[Any] = self._together(jobs) if len(jobs) > 1 else [self._alone(job) for job in jobs]
        except Exception:  # whatever one request's pictures did, the others are scored
            results = [self._alone(job) for job in jobs]
        for job, result in zip(jobs, results, strict=True):
            loop.call_soon_threadsafe(_settle, job.result, result)

    def _together(self, jobs: list[_Job]) -> list[RewardOutput]:
        joined = [[value for job in jobs for value in getattr(job, name)] for name in ("images", "prompts", "metadata")]
        output = self.reward(joined[0], joined[1], joined[2])
        parts, start = [], 0
        for job in jobs:
            rows = slice(start, start + len(job.images))
            details = {name: values[rows] for name, values in output.details.items()}
            parts.append(RewardOutput(output.scores[rows], details))
            start = rows.stop
        return parts

    def _alone(self, job: _Job) -> RewardOutput | Exception:
        try:
            return self.reward(job.images, job.prompts, job.metadata)
        except RewardError as error:
            return error
        except Exception as error:
            return RewardError(f"reward {self.reward.info.name!r} failed: {type(error).__name__}: {error}")


def _settle(result: asyncio.Future[RewardOutput], value: RewardOutput | Exception) -> None:
    if result.done():
        return
    if isinstance(value, Exception):
        result.set_exception(value)
    else:
        result.set_result(value)
