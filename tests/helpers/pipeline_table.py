"""docs/measured/pipelines.md: every pipeline class of diffusers, and what guidance does on it.

    git clone https://github.com/huggingface/diffusers NEW
    git clone --branch v0.34.0 --depth 1 https://github.com/huggingface/diffusers OLD
    cd tests && PYTHONPATH=.. python -m helpers.pipeline_table NEW OLD

The page here was made with NEW at 58eb52c0; ftfy, sentencepiece and torchsde let more classes be built.

A class of the zoo is measured on its case there. Any other is built tiny as diffusers' own tests build it, or, where
they have none, of the parts of its siblings' tests; what neither builds, helpers/by_hand.py may.
helpers/whole_properties.py says what is measured. What is known stays in build/pipelines, a file for each class. The
names of classes behind the folders measure these anew; without names, all that have no file yet are measured. Rows of
other classes stay as the page has them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.by_hand import BY_HAND
from helpers.by_hand_case import TestByHand
from helpers.derived_tests import derived_tests
from helpers.pipeline_classes import pipeline_class, pipeline_names, refusal_by_signature
from helpers.pipeline_results import PAGE, results_in, written
from helpers.repository import ROOT
from helpers.stock_case import StockCase
from helpers.stock_tests import StockTests
from helpers.whole_properties import whole
from helpers.zoo import CASES, GENERIC, SIBLINGS
from nft_pipeline.errors import AdapterError, FamilyError, GuidanceError

CACHE = ROOT / "build" / "pipelines"
SECONDS = 60  # of processor time, for a class
BOUND = 2e-5
ZOO = {**CASES, **SIBLINGS, **GENERIC}
_REFUSALS = (AdapterError, FamilyError, GuidanceError)


class _TooSlow(BaseException):
    pass


def _stop(*_: Any) -> None:
    raise _TooSlow


def result_of(name: str, tests: StockTests) -> dict[str, Any]:
    """What is known of a class: its verdict, and the measured properties or the reason."""
    if not hasattr(pipeline_class(name), "from_pipe"):
        return {"verdict": "not buildable", "why": "a package that it needs is not installed"}
    reason = refusal_by_signature(name)
    if reason is not None:
        return reason
    first = {"verdict": "not buildable", "why": "diffusers has no test of it, and none of its siblings' parts fit"}
    tried = False
    for source, make in _cases(name, tests):
        try:
            case, pipe, variants = make()
        except Exception as error:
            if not tried:
                first = {"verdict": "not buildable", **_failure(error), "source": source}
            tried = True
            continue
        try:
            measured = whole(case, pipe, variants, text=source == "ours")
            if judged(measured)["verdict"] == "wrong":  # or right but for rounding, which some enlarge?
                with contextlib.suppress(RuntimeError):  # not every class can do with fp64
                    measured = whole(case, case.pipe().to(torch.float64), variants, text=source == "ours")
        except _REFUSALS as error:
            return {"verdict": "refused", "why": str(error), "source": source}
        except Exception as error:
            return {"verdict": "wrong", **_failure(error), "source": source}
        return {**judged(measured), "measured": measured, "source": source}
    return first


def _failure(error: Exception) -> dict[str, str]:
    """What went wrong, and where, for the cache."""
    return {"why": f"{type(error).__name__}: {error}"[:300], "trace": traceback.format_exc()[-2500:]}


def _cases(name: str, tests: StockTests) -> Iterator[tuple[str, Any]]:
    zoo = next((key for key in ZOO if key.partition(",")[0] == name), None)
    if zoo is not None:
        yield "ours", lambda: _of_case(ZOO[zoo])
    if name in BY_HAND:
        yield "by hand", lambda: _by_hand(name, tests)
    for source, found in (("theirs", tests.of(name)), ("siblings", derived_tests(name, tests))):
        for test in found:
            yield source, lambda test=test: _of_test(name, test)


def _by_hand(name: str, tests: StockTests) -> tuple[Any, Any, dict[str, bool]]:
    made = BY_HAND[name]
    return _of_test(name, made.found(tests)) if isinstance(made, TestByHand) else _of_case(made)


def _of_case(case: Any) -> tuple[Any, Any, dict[str, bool]]:
    variants = {**({"CFG": True} if case.cfg([0]) else {}), "without CFG": False}
    return case, case.pipe(), variants


def _of_test(name: str, test: Any) -> tuple[Any, Any, dict[str, bool]]:
    case = StockCase(name, test)
    pipe = case.pipe()
    if any(isinstance(getattr(pipe, part, None), nn.Module) for part in ("unet", "transformer")):
        case.settle(pipe)
    return case, pipe, {"CFG" if cfg else "without CFG": cfg for cfg in case.variants()}


def judged(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The verdict on a class, and what is wrong or why it is refused, from its properties by variant."""
    at_1 = [each["at 1"] for each in measured.values() if "at 1" in each]
    if all(isinstance(error, str) for error in at_1):
        return {"verdict": "refused", "why": at_1[0]}
    if any(each.get("effect", 1) < 1e-3 for each in measured.values()):
        return {"verdict": "not buildable", "why": "the LoRA does nothing in this tiny call, so nothing can be told"}
    wrong = [
        f"{prop} {error:.1e} ({variant})"
        for variant, each in measured.items()
        for prop, error in each.items()
        if not isinstance(error, str) and prop != "effect" and not error <= _bound(prop, each)
    ]
    return {"verdict": "wrong", "why": "; ".join(wrong)} if wrong else {"verdict": "right"}


def _bound(prop: str, measured: dict[str, Any]) -> float:
    return 0.0 if prop == "at 0" else max(BOUND, 1e-3 * measured.get("effect", 0))


def measure(names: list[str], tests: StockTests) -> None:
    """Measure these classes, a file in the cache for each."""
    CACHE.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGPROF, _stop)
    gc.freeze()  # what is imported by now need not be looked through after each class
    for name in names:
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            result = result_of(name, tests)
        except _TooSlow:
            result = {"verdict": "not buildable", "why": f"not done within {SECONDS} s"}
        except Exception as error:
            result = {"verdict": "not buildable", **_failure(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        result["seconds"] = round(time.process_time() - start, 1)
        (CACHE / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(name, result["verdict"], result.get("why", "")[:150].replace("\n", " "), result["seconds"], flush=True)
        gc.collect()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folders = [Path(argument) for argument in sys.argv[1:] if Path(argument).is_dir()]
    asked = [argument for argument in sys.argv[1:] if not Path(argument).is_dir()]
    unknown = [name for name in pipeline_names() if not (CACHE / f"{name}.json").exists()]
    measure(asked or unknown, StockTests(folders))
    PAGE.write_text(written(results_in(CACHE, pipeline_names()), BOUND), encoding="utf-8")
