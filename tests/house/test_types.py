"""What a type checker says of a script that somebody writes with this package: a typo is an error, the rest is none."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import diffusers
import pytest

from helpers.repository import ROOT
from nft_pipeline.call import typed
from nft_pipeline.call.guided_call import GUIDANCE_ARGUMENTS

SCRIPT = """
import numpy as np
import torch
from nft_pipeline import DiffusionNFTPipeline, NFTStats, read_adapter

pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm", nft_revision=None)
pipe.to("cpu")
pipe.transformer.eval()
images = pipe("a circle", nft_strength=[0.0, 1.0], nft_cap=0.3, num_inference_steps=2).images
pipe(nft_strength={"warm": 1.0, "follow": [0, 1]})
pipe(nft_strength=np.linspace(0, 1, 4), nft_beta=None)
pipe(nft_strength=torch.tensor([0.0, 1.0]))
stats: NFTStats | None = pipe.nft_stats
pipe.load_nft_adapter(read_adapter("shapes-warm"), name="again")
other = DiffusionNFTPipeline.from_pipe(pipe.unwrap())
other.set_nft_strength([0.5, 1.0])
print(pipe.promise(strength=1).rate)

pipe.load_nft_adaptor("x")  # wrong
pipe("a", nft_law=2)  # wrong
pipe("a", nft_candidates=2.5)  # wrong
pipe.load_nft_adapter("x", nam="y")  # wrong
number: int = pipe.nft_stats  # wrong
other.unwarp()  # wrong
read_adapter("x").confg  # wrong
"""
# Instead of the libraries themselves, which take a minute to read.
CONFIG = """
[mypy]
follow_imports = silent
[mypy-torch.*,numpy.*,transformers.*,peft.*,accelerate.*,safetensors.*,huggingface_hub.*,PIL.*,diffusers.*]
follow_imports = skip
[mypy-diffusers.pipelines.pipeline_utils]
follow_imports = silent
"""
DIFFUSERS = """
from typing import Any, Self
class DiffusionPipeline:
    def __getattr__(self, name: str) -> Any: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
"""


WRONG = {number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The script, and diffusers' own types in short."""
    (tmp_path / "script.py").write_text(SCRIPT)
    stub = tmp_path / "stubs" / "diffusers" / "pipelines" / "pipeline_utils.pyi"
    stub.parent.mkdir(parents=True)
    stub.write_text(DIFFUSERS)
    for package in (stub.parent, stub.parent.parent):
        (package / "__init__.pyi").write_text("def __getattr__(name: str) -> object: ...\n")
    return tmp_path


def test_typos_in_a_script_are_errors_under_mypy_and_nothing_else_is(folder: Path) -> None:
    (folder / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "script.py"]
    environment = {"MYPYPATH": f"{folder / 'stubs'}:{ROOT}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    reported = {int(line) for line in re.findall(r"^script\.py:(\d+): error", done.stdout, re.MULTILINE)}
    assert reported == WRONG, done.stdout + done.stderr
    assert (ROOT / "nft_pipeline" / "py.typed").is_file()


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed (npm install -g pyright)")
def test_typos_in_a_script_are_errors_under_pyright_and_nothing_else_is(folder: Path) -> None:
    settings = {"include": ["script.py"], "stubPath": "stubs", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    problems = json.loads(done.stdout)["generalDiagnostics"]
    # Pyright counts lines from 0.
    reported = {problem["range"]["start"]["line"] + 1 for problem in problems if problem["file"].endswith("script.py")}
    assert reported == WRONG, done.stdout + done.stderr


def declared() -> tuple[ast.FunctionDef, set[str]]:
    """The call that checkers see, and the names that it stands beside."""
    tree = ast.parse(inspect.getsource(typed))
    (stock,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    (call,) = [node for node in stock.body if isinstance(node, ast.FunctionDef)]
    names = {
        node.target.id for node in stock.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return call, names


def test_the_call_that_checkers_see_is_the_call() -> None:
    call, _ = declared()
    shown = {
        each.arg: ast.literal_eval(default)
        for each, default in zip(call.args.kwonlyargs, call.args.kw_defaults, strict=True)
        if default is not None
    }
    assert shown == {name: default for name, (default, _) in GUIDANCE_ARGUMENTS.items()}


def test_what_most_pipelines_have_is_declared() -> None:
    kinds = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "QwenImage", "ZImage", "Sana", "Wan")
    classes = [getattr(diffusers, f"{kind}Pipeline") for kind in kinds]
    counts = Counter(
        name
        for each in classes
        for name in {*dir(each), *inspect.signature(each.__init__).parameters}
        if not name.startswith("_") and not hasattr(diffusers.DiffusionPipeline, name) and name != "self"
    )
    _, names = declared()
    missing = sorted(name for name, count in counts.items() if count >= 3 and name not in names)
    assert not missing, "declare them in nft_pipeline/call/typed.py"
