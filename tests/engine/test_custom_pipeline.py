"""pipeline.py beside a saved model: the guided pipeline by diffusers' own custom_pipeline route."""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import shutil
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import check_imports, find_pipeline_class

from helpers.zoo import CASES, adapter_for
from nft_pipeline import AdapterError, DiffusionNFTPipeline, write_adapter
from nft_pipeline.call.custom_pipeline import render_custom_pipeline

FAMILIES = ["StableDiffusion3Pipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"]
SD3 = CASES["StableDiffusion3Pipeline"]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """diffusers copies a pipeline.py to HF_MODULES_CACHE, read once at its import, and imports it from there."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()
    yield


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Weights mapped from a file lie differently in memory, which may change the last bit of a product."""
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def guided_pipe(name: str = "StableDiffusion3Pipeline") -> Any:
    pipe = CASES[name].pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, adapter_for(CASES[name], pipe))


def load(place: Any, custom_pipeline: Any = "pipeline", **kwargs: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(
        place, custom_pipeline=str(custom_pipeline), trust_remote_code=True, **kwargs
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_loads_the_guided_pipeline_from_the_folder(tmp_path: Path, name: str) -> None:
    case, guided, folder = CASES[name], guided_pipe(name), tmp_path / "saved"
    guided.save_pretrained(folder, custom_pipeline=True)
    loaded = load(folder)
    stock_class = getattr(diffusers, name)
    assert type(loaded).__name__ == name.replace("Pipeline", "NFTPipeline")
    assert isinstance(loaded, stock_class) and isinstance(loaded, DiffusionNFTPipeline)
    assert loaded.nft_config == guided.nft_config and loaded.components.keys() == guided.components.keys()
    for call in ({}, {"nft_strength": 0.5, "nft_law": "odds"}, {"nft_strength": 0}, {"cfg": True}):
        close(case.sample(loaded, [0, 1], **call), case.sample(guided, [0, 1], **call))
    torch.testing.assert_close(loaded.nft_stats.alpha, guided.nft_stats.alpha, atol=1e-4, rtol=0)

    # Without custom_pipeline the folder is the base model.
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == name
    absent = {key: None for key, part in guided.components.items() if part is None}
    stock = DiffusionPipeline.from_pretrained(folder, **absent)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is stock_class
    close(case.sample(stock), case.sample(guided, nft_strength=0))

    # What was loaded so is saved as any other, and unwraps.
    loaded.save_pretrained(tmp_path / "again", custom_pipeline=True)
    assert (tmp_path / "again" / "pipeline.py").read_text() == (folder / "pipeline.py").read_text()
    close(case.sample(load(tmp_path / "again")), case.sample(guided))
    assert type(loaded.unwrap()) is stock_class


def test_the_file_may_be_named_as_diffusers_allows(tmp_path: Path) -> None:
    guided = guided_pipe()
    guided.save_pretrained(tmp_path / "saved", custom_pipeline=True)
    expected = SD3.sample(guided)
    for custom_pipeline in (tmp_path / "saved", tmp_path / "saved" / "pipeline.py"):
        close(SD3.sample(load(tmp_path / "saved", custom_pipeline)), expected)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path / "saved", custom_pipeline="pipeline")


def test_a_hub_repository_offline(tmp_path: Path) -> None:
    """From a cache as huggingface_hub lays it out: diffusers itself would leave nft_adapter/ on the Hub."""
    guided = guided_pipe()
    guided.call_defaults = {"num_inference_steps": 2}
    repository = tmp_path / "cache" / "models--someone--tiny"
    snapshot = repository / "snapshots" / REVISION
    guided.save_pretrained(snapshot, custom_pipeline=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    loaded = load("someone/tiny", cache_dir=tmp_path / "cache")
    assert loaded.name_or_path == "someone/tiny" and loaded.call_defaults == {"num_inference_steps": 2}
    close(SD3.sample(loaded), SD3.sample(guided))


def test_the_adapters_are_fetched_at_the_models_own_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "cache" / "models--someone--tiny" / "snapshots" / REVISION
    guided_pipe().save_pretrained(snapshot, custom_pipeline=True)
    asked: list[Any] = []

    def snapshot_download(repo: str, **kwargs: Any) -> str:
        asked.append((repo, kwargs))
        return str(snapshot)

    loaded = load(snapshot)
    loaded.unload_nft_adapter()
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded.register_to_config(_name_or_path="someone/tiny")
    ((repo, kwargs),) = asked
    assert repo == "someone/tiny" and kwargs["revision"] == REVISION and kwargs["cache_dir"] == tmp_path / "cache"
    assert "nft_adapter/*.safetensors" in kwargs["allow_patterns"] and loaded.nft_config is not None

    def fail(repo: str, **kwargs: Any) -> str:
        raise OSError("no route")

    loaded.unload_nft_adapter()
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(AdapterError, match=r"beside someone/tiny could not be fetched(.|\n)*no route(.|\n)*Try again"):
        loaded.register_to_config(_name_or_path="someone/tiny")


def test_several_adapters_keep_their_names(tmp_path: Path) -> None:
    pipe = SD3.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe)
    for name, tilt in (("text", 1.0), ("aesthetic", 3.0)):
        guided.load_nft_adapter(adapter_for(SD3, pipe, tilt=tilt), name=name)
    guided.save_pretrained(tmp_path / "saved", custom_pipeline=True)
    loaded, call = load(tmp_path / "saved"), {"nft_strength": {"text": 0.5, "aesthetic": 0.25}}
    assert set(loaded.nft_adapters) == {"text", "aesthetic"}
    close(SD3.sample(loaded, **call), SD3.sample(guided, **call))


def test_without_an_adapter_beside_it_a_warning_and_the_base_model(tmp_path: Path) -> None:
    pipe = SD3.pipe()
    DiffusionNFTPipeline.from_pipe(pipe).save_pretrained(tmp_path / "saved", custom_pipeline=True)
    with pytest.warns(UserWarning, match=r"there is no adapter in nft_adapter/ beside .*saved, so this is the base"):
        loaded = load(tmp_path / "saved")
    close(SD3.sample(loaded), SD3.sample(pipe))
    adapter = adapter_for(SD3, pipe)
    loaded.load_nft_adapter(adapter)
    close(SD3.sample(loaded), SD3.sample(DiffusionNFTPipeline.from_pipe(pipe, adapter)))


def test_a_repository_that_holds_the_adapter_alone(tmp_path: Path) -> None:
    """Any base model, and a pipeline.py that names its adapter."""
    pipe, place = SD3.pipe(), tmp_path / "adapter"
    DiffusionNFTPipeline.from_pipe(pipe).save_pretrained(tmp_path / "base")
    adapter = adapter_for(SD3, pipe)
    write_adapter(place, adapter)
    absent = [key for key, part in pipe.components.items() if part is None]
    source = render_custom_pipeline(type(pipe), absent=absent, nft_adapter=str(place))
    (place / "pipeline.py").write_text(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load(tmp_path / "base", place)
    close(SD3.sample(loaded), SD3.sample(DiffusionNFTPipeline.from_pipe(pipe, adapter)))


def test_an_adapter_for_another_base_model_is_an_error_of_loading(tmp_path: Path) -> None:
    guided_pipe().save_pretrained(tmp_path / "saved", custom_pipeline=True)
    shutil.rmtree(tmp_path / "saved" / "nft_adapter")
    other = CASES["FluxPipeline"]
    write_adapter(tmp_path / "saved" / "nft_adapter", adapter_for(other, other.pipe()))
    with pytest.raises(AdapterError, match="made for another base model"):
        load(tmp_path / "saved")


def test_no_file_is_written_unless_asked_for(tmp_path: Path) -> None:
    guided_pipe().save_pretrained(tmp_path)
    assert not (tmp_path / "pipeline.py").exists()


@pytest.mark.parametrize("name", sorted({name.partition(",")[0] for name in CASES}))
def test_the_file_of_every_tested_pipeline_makes_its_class(name: str) -> None:
    stock = getattr(diffusers, name)
    space: dict[str, Any] = {"__name__": "pipeline"}
    source = render_custom_pipeline(stock)
    assert max(map(len, source.splitlines())) <= 120 and len(source.splitlines()) < 40
    exec(compile(source, "pipeline.py", "exec"), space)
    made = space[name.replace("Pipeline", "NFTPipeline")]
    assert DiffusionPipeline._get_signature_keys(made) == DiffusionPipeline._get_signature_keys(stock)
    # Python 3.10 adds None to the types of what is None by default, by its own rules.
    kinds = [
        {part: set(types) - {type(None)} for part, types in cls._get_signature_types().items()} for cls in (made, stock)
    ]
    assert kinds[0] == kinds[1]
    assert "nft_strength" in inspect.signature(made.__call__).parameters


def test_two_files_in_the_one_namespace_diffusers_has_for_them() -> None:
    module = types.ModuleType("pipeline")
    for stock in (diffusers.StableDiffusion3Pipeline, diffusers.FluxPipeline):
        exec(render_custom_pipeline(stock), vars(module))
        assert issubclass(find_pipeline_class(module), stock)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "nft_pipeline":
            raise ModuleNotFoundError("No module named 'nft_pipeline'", name=name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    message = "needs the package diffusion-nft, which cannot be imported: pip install diffusion-nft. Without it"
    with pytest.raises(ImportError, match=message):
        exec(render_custom_pipeline(diffusers.FluxPipeline), {"__name__": "pipeline"})


def test_diffusers_gives_no_advice_to_install_another_package(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.py"
    file.write_text(render_custom_pipeline(diffusers.FluxPipeline))
    original = importlib.import_module
    looked_up: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib, "import_module", lambda name: (looked_up.append(name), original(name))[1])
        assert check_imports(file) == []
    assert set(looked_up) == {"diffusers"}


def test_only_diffusers_own_classes() -> None:
    class Mine(diffusers.FluxPipeline):
        pass

    for wrong in (Mine, diffusers.DDIMScheduler, "FluxPipeline"):
        with pytest.raises(ValueError, match="expected one of diffusers' own pipeline classes"):
            render_custom_pipeline(wrong)
