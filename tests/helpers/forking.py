"""Processes forked from one that has imported everything, so that they are at work within milliseconds."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fork(task: Callable[[], object]) -> int:
    """Run `task` in a forked process, which ends with code 0, or with 1 after an error that it prints; its id."""
    number = os.fork()
    if number == 0:
        try:
            task()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return number


def together(count: int, task: Callable[[int], object], variables: Mapping[str, object] | None = None) -> None:
    """Run `task(rank)` in forked processes that find each other over gloo, and wait for all of them.

    Args:
        count: how many processes.
        task: what each does; it gets 0, 1, ...
        variables: of the environment, beside those that accelerate launch and torchrun set.

    Raises:
        SystemExit: one failed. The others, which may wait for it, are killed.
    """
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}

    def ranked(rank: int) -> None:
        mine = {**shared, **(variables or {}), "RANK": rank, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in mine.items()}
        task(rank)

    children = {fork(lambda rank=rank: ranked(rank)) for rank in range(count)}
    while children:
        child, status = os.wait()
        children.discard(child)
        if os.waitstatus_to_exitcode(status) != 0:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit(f"one of {count} processes failed")
