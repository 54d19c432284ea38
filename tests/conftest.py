"""Shared by all tests: no network, few threads, no window, and a list of every skipped test with its reason."""

from __future__ import annotations

import os
import signal

# Read by the libraries when they are imported, hence before anything else. A developer's own setting wins.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# The tests' models are tiny: more than two threads cost more in waiting than they bring, and where several processes
# share the cores a second thread makes each of them ten times slower. (A worker inherits the first process's two.)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

import pytest

from nft_pipeline.torchvision_repair import watch

watch()  # before diffusers and transformers, which import torchvision where it is installed

# A job in the background ignores Ctrl-C, and so would the processes that tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist the tests run all the same
def pytest_xdist_auto_num_workers() -> int:
    """As many processes as cores, up to 8: each holds its own torch and diffusers."""
    return min(8, os.cpu_count() or 1)


def pytest_report_header() -> str:
    """Say how the run is set up."""
    return f"threads: {os.environ['OMP_NUM_THREADS']}, HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """No silent skips: each one by name, with its reason, and a line that says so when there are none."""
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.section(f"skipped tests: {len(skipped) or 'none'}", sep="-")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.line(f"{report.nodeid}: {reason.removeprefix('Skipped: ') or 'NO REASON GIVEN'}")
