"""`diffusion-nft eval`: an adapter on prompts and rewards of one's own, or the shapes model on ShapesEval."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nft_pipeline.laws import LAWS, laws_explained

if TYPE_CHECKING:
    from nft_pipeline.adapter import AdapterConfig

HELP = """\
Score an adapter, or a base model, on prompts and rewards of your own, at any number of denoising steps: the mean of
each reward at each strength, five statistics of the pictures, and how far both are from strength 0. Neither prompts,
rewards nor steps need be those of its training.

  diffusion-nft eval --adapter runs/ocr/adapter --prompts test.txt --reward ocr --reward pickscore --steps 40
  diffusion-nft eval --model stabilityai/stable-diffusion-3.5-medium --prompts test.txt --reward pickscore

Without prompts of yours it scores the shapes model on ShapesEval: prompts of six categories that it was not trained on,
every picture checked against its prompt from pixels alone. About half a minute for 600 pictures on two cores."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft eval`."""
    parser.add_argument(
        "--model",
        help="base model: a shipped name, a folder, a Hub id or one file (default: what the adapter was made for; for "
        'ShapesEval "shapes")',
    )
    parser.add_argument("--adapter", help="a shipped adapter's name, a folder or a Hub id; without it, the base model")
    parser.add_argument(
        "--kind", choices=("policy",), help='for somebody else\'s LoRA: "policy", as for `diffusion-nft sample`'
    )
    parser.add_argument("--beta", type=float, help="with --kind: the beta it was trained with (default: 1)")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts to draw: a text file with one per line, a .jsonl file whose facts rewards get as metadata, a "
        "built-in list, or module:function (default: ShapesEval's)",
    )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME",
        help="with --prompts: a reward that scores the pictures, a built-in one, module:function or remote:URL; give "
        "it once for each (default: none, the statistics of the pictures alone)",
    )
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=[0.0, 1.0],
        help="strengths to score (default: 0 1); 0 is the base model. Only with --adapter",
    )
    parser.add_argument(
        "--law",
        choices=LAWS,
        help=f"how strength becomes push. {laws_explained()} (default: the adapter's own way, as it was calibrated; "
        "without a calibration odds for a positive adapter, nft for a policy)",
    )
    parser.add_argument(
        "--cfg",
        type=float,
        help="classifier-free guidance scale (default: what the adapter was made for, else the model's; for ShapesEval "
        "1, which is off)",
    )
    parser.add_argument(
        "--n",
        type=int,
        help="pictures per strength (default: one of each prompt; for ShapesEval 600, 100 per category). With more "
        "than there are prompts they come in turn; two of each tell how much the pictures of a prompt differ",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="denoising steps (default: what the model sets; for ShapesEval 14, and below 10 shapes get ragged)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--batch", type=int, default=8, help="with --prompts: pictures drawn at once (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one, default), cpu, cuda, mps; with --prompts"
    )
    parser.add_argument("--out", type=Path, help="also write the scores to this JSON file")


def run(args: argparse.Namespace) -> int:
    """Sample, score and print the table."""
    if args.reward and not args.prompts:
        raise ValueError(f"--reward is {args.reward[0]!r} and there are no prompts to draw for it; give --prompts")
    if args.prompts:
        return _own(args)
    from .shapes_eval import run_shapes_eval

    return run_shapes_eval(args)


def _own(args: argparse.Namespace) -> int:
    """Prompts and rewards of one's own."""
    import torch

    from nft_pipeline import DiffusionNFTPipeline
    from nft_pipeline.adapter import read_adapter
    from nft_pipeline.files.atomic import atomic_write_bytes
    from nft_pipeline.sampling import pick_device, pick_dtype

    from ..rewards.find import find_prompts, find_reward, prompt_facts
    from ..settings.public import public_names
    from .evaluate import Drawing, evaluate, table

    if args.model is None and args.adapter is None:
        raise ValueError("nothing says which model is to draw; give --adapter, --model or both")
    prompts, facts = find_prompts(args.prompts), prompt_facts(args.prompts)
    for name, value in (("n", args.n), ("steps", args.steps), ("batch", args.batch)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected a whole number of at least 1")
    names = public_names(dict.fromkeys(args.reward))
    rewards = {shown: find_reward(name, own_scale=True, facts=facts) for name, shown in names.items()}
    device = pick_device(args.device)
    theirs = {name: value for name, value in (("kind", args.kind), ("beta", args.beta)) if value is not None}
    model = args.model or read_adapter(args.adapter, **theirs).config.base_model.id
    pipe = DiffusionNFTPipeline.from_pretrained(model, dtype=pick_dtype("auto", device)).to(device)
    config: AdapterConfig | None = None
    if args.adapter is not None:
        pipe.load_nft_adapter(args.adapter, **theirs)
        config = pipe.nft_adapters["default"].config
    scale = args.cfg if args.cfg is not None or config is None else config.guidance_scale
    given = {"guidance_scale": scale, "num_inference_steps": args.steps, "nft_law": config and args.law}
    call = {name: value for name, value in given.items() if value is not None}
    drawing = Drawing(prompts, args.n or len(prompts), args.seed, args.batch, call)
    strengths = [0.0] if config is None else args.strengths
    print(
        f"{drawing.n} pictures of {len(set(prompts))} prompts at each of {len({0.0, *strengths})} strengths, {device}"
    )
    with torch.inference_mode():
        points = evaluate(pipe, drawing, strengths, rewards)
    print(table(points))
    print("± is the standard error; in brackets the change from strength 0, of pictures with the same noise")
    if args.out:
        said = {"model": model, "adapter": args.adapter, "prompts": args.prompts, "n": drawing.n, "seed": args.seed}
        values = [
            {
                "strength": point.strength,
                **{name: vars(value) | {"change": vars(point.changes[name])} for name, value in point.values.items()},
            }
            for point in points
        ]
        text = json.dumps({**said, **call, "strengths": values}, indent=2) + "\n"
        atomic_write_bytes(args.out, text.encode())
        print(f"wrote {args.out}")
    return 0
