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

LONG = "takes long: make test-long runs it"

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is slow comes first. What takes long is skipped unless -m asks for it, and what needs a GPU without one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if "long" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason=LONG))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))


def _reason(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ") or "NO REASON GIVEN"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """No silent skips: each one by name, with its reason, and a line that says so when there are none."""
    skipped = [(report.nodeid, _reason(report)) for report in terminalreporter.stats.get("skipped", [])]
    left = [name for name, reason in skipped if reason == LONG]
    terminalreporter.section(f"left to make test-long: {len(left) or 'none'}", sep="-")
    for name in left:
        terminalreporter.line(name)
    terminalreporter.section(f"skipped tests: {len(skipped) - len(left) or 'none'}", sep="-")
    for name, reason in skipped:
        if reason != LONG:
            terminalreporter.line(f"{name}: {reason}")
