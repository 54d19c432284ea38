"""The Space beside an adapter: three files on a local Hub, in which the page of `play` starts."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from helpers.cards import light_adapter, shared_adapter
from helpers.local_hub import Fault, LocalHub
from helpers.repository import ROOT
from nft_pipeline import __version__
from nft_pipeline.adapter import AdapterError, write_adapter
from nft_pipeline.cli import main
from nft_pipeline.hub_cards.hub import HubError
from nft_pipeline.hub_cards.push import make_space, push
from nft_pipeline.hub_cards.space import GRADIO

REPO = "someone/tiny-red"
SPACE = f"spaces/{REPO}"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_adapter(tmp_path_factory.mktemp("space") / "adapter")


def front_matter(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---\n")[1])


def test_the_dry_run_shows_the_spaces_files_and_sends_nothing(
    adapter: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(adapter), REPO, "--space", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"3 files would go to the Space {REPO}" in printed
    assert "sdk: gradio" in printed and "--- app.py" in printed and "diffusion-nft[play]==" in printed
    assert not hub.repos


def test_it_goes_up_beside_the_adapter_and_again_changes_nothing(
    adapter: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(adapter), REPO, "--space"]) == 0
    assert f"{hub.endpoint}/spaces/{REPO}" in capsys.readouterr().out
    assert hub.repos[SPACE].private and hub.repos[REPO].private
    assert set(hub.files(SPACE)) == {"README.md", "app.py", "requirements.txt"}
    assert "nft_config.json" in hub.files(REPO)
    assert main(["push", str(adapter), REPO, "--space"]) == 0
    assert hub.history(SPACE) == 1 and hub.history(REPO) == 1


def test_without_being_asked_there_is_no_space(adapter: Path, hub: LocalHub) -> None:
    assert push(adapter, REPO).space is None and SPACE not in hub.repos


def test_a_new_space_is_as_private_as_the_adapter_that_is_there(adapter: Path, hub: LocalHub) -> None:
    push(adapter, REPO, private=False)
    push(adapter, REPO, space=True)
    assert not hub.repos[SPACE].private


def test_what_the_owner_has_added_to_the_space_stays(adapter: Path, hub: LocalHub) -> None:
    push(adapter, REPO, space=True)
    own = {".gitattributes": b"x", "samples/mine.png": b"x", "README.md": b"old"}
    hub.commit(hub.repos[SPACE], "main", {**hub.files(SPACE), **own})
    push(adapter, REPO, space=True)
    held = hub.files(SPACE)
    assert held[".gitattributes"] == b"x" and held["samples/mine.png"] == b"x" and b"sdk: gradio" in held["README.md"]


def test_its_files_say_what_the_hub_and_the_page_need(adapter: Path, hub: LocalHub) -> None:
    files = make_space(adapter, REPO).files
    facts = front_matter(files["README.md"])
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == GRADIO and facts["app_file"] == "app.py"
    assert facts["license"] == "apache-2.0" and REPO in facts["models"]
    (call,) = [node for node in ast.walk(ast.parse(files["app.py"])) if isinstance(node, ast.Call)]
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    config = json.loads((adapter / "nft_config.json").read_text())
    report = json.loads((adapter / "run_report.json").read_text())
    assert options["model"] == config["base_model"]["id"] and options["adapters"] == [REPO]
    assert options["prompts"] and set(options["prompts"]) <= {sample["prompt"] for sample in report["samples"]}
    assert files["requirements.txt"].decode().strip() == f"diffusion-nft[play]=={__version__}"


def test_without_samples_it_begins_with_the_base_models_examples(tmp_path: Path, hub: LocalHub) -> None:
    adapter = light_adapter("policy")
    shapes = replace(adapter.config, base_model=replace(adapter.config.base_model, id="shapes"))
    app = make_space(write_adapter(tmp_path / "a", replace(adapter, config=shapes)), REPO).files["app.py"].decode()
    assert "a circle left of a cross" in app and "model='shapes'" in app


def test_the_extra_takes_the_gradio_of_the_space() -> None:
    (line,) = re.findall(r'^    "(gradio>=[^"]*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert Requirement(line).specifier.contains(GRADIO)


def test_a_base_model_that_a_space_cannot_load_is_refused_before_anything_is_sent(
    tmp_path: Path, hub: LocalHub
) -> None:
    adapter = light_adapter("policy")
    local = replace(adapter.config, base_model=replace(adapter.config.base_model, id="my_model"))
    with pytest.raises(AdapterError, match="neither a Hub id nor shipped"):
        push(write_adapter(tmp_path / "a", replace(adapter, config=local)), REPO, space=True, licence="mit")
    assert not hub.repos


def test_a_space_does_not_go_with_a_pull_request_or_a_branch(adapter: Path, hub: LocalHub) -> None:
    for options in ({"create_pr": True}, {"revision": "next"}):
        with pytest.raises(AdapterError, match="a Space plays with the adapter in main"):
            push(adapter, REPO, space=True, **options)
    assert not hub.repos


def test_a_space_that_is_refused_says_that_the_adapter_is_there(adapter: Path, hub: LocalHub) -> None:
    hub.fail(Fault("POST", "/api/spaces/.*/commit/", 403, times=None))
    with pytest.raises(HubError, match="the adapter is in someone/tiny-red, but its Space was not put up"):
        push(adapter, REPO, space=True, pause=0)
    assert "nft_config.json" in hub.files(REPO)


def test_a_lost_answer_does_not_lead_to_a_second_commit(adapter: Path, hub: LocalHub) -> None:
    hub.fail(Fault("POST", "/api/spaces/.*/commit/", "lost"))
    push(adapter, REPO, space=True, pause=0, timeout=2)
    assert hub.history(SPACE) == 1
