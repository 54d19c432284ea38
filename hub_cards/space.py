"""The Space beside an adapter: the page of `diffusion-nft play` for everybody, as three small files."""

from __future__ import annotations

from nft_pipeline import __version__
from nft_pipeline.adapter import AdapterError
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.adapters.read import is_hub_id
from nft_pipeline.families.registry import draws_videos
from nft_pipeline.models import MODELS, example_prompts

from .card import CARD_FILE, Card
from .licence import Licence
from .report import RunReport

GRADIO = "6.31.0"  # what the page was tested with; the Hub installs this one
PYTHON = "3.11"
MOST_PROMPTS = 6
_README = """\
---
{metadata}
---

# {name}

A page to play with the adapter [{repo}](https://huggingface.co/{repo}): what its reward likes is a dial that
redraws as it moves, with the base model's picture beside the guided one and the chance that a picture will be liked.
What you like and dislike is kept for you alone, for an hour, and can be downloaded as a folder that training takes.

`diffusion-nft push --space` of [diffusion-nft](https://pypi.org/project/diffusion-nft/) wrote these files.
"""
_APP = '''\
"""The page of diffusion-nft for one adapter."""

from nft_pipeline.play.page import serve

serve(model={model!r}, adapters=[{repo!r}], prompts={prompts!r})
'''


def space_files(
    config: AdapterConfig, report: RunReport, *, repo_id: str, licence: Licence
) -> tuple[Card, dict[str, bytes]]:
    """The Space of an adapter.

    Args:
        config: the adapter's config.
        report: whose samples' prompts the page begins with; without any it takes the base model's examples.
        repo_id: where the adapter is, "owner/name"; the Space has the same name.
        licence: of the adapter.

    Returns:
        The README, and all files by path.

    Raises:
        AdapterError: the base model is neither on the Hub nor shipped, or it draws videos.
    """
    base = config.base_model.id
    if not is_hub_id(base) and base not in MODELS:
        raise AdapterError(
            f"a Space cannot load the base model {base!r}, which is neither a Hub id nor shipped; push without a Space"
        )
    if draws_videos(config.denoiser):
        raise AdapterError(f"the page shows pictures, and {base} draws videos; push without a Space")
    prompts = list(dict.fromkeys(sample.prompt for sample in report.samples)) or example_prompts(base)
    from huggingface_hub import SpaceCardData

    facts = SpaceCardData(
        title=config.name,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        license=licence.id,
        models=[repo_id, *([base] if is_hub_id(base) else [])],
        tags=["diffusion-nft"],
    )
    card = Card(_README.format(metadata=facts.to_yaml().strip(), name=config.name, repo=repo_id), {})
    files = {
        CARD_FILE: card.text.encode(),
        "app.py": _APP.format(model=base, repo=repo_id, prompts=prompts[:MOST_PROMPTS]).encode(),
        "requirements.txt": f"diffusion-nft[play]=={__version__}\n".encode(),
    }
    return card, files
