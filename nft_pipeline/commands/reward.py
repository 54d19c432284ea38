"""`diffusion-nft reward serve`: a reward over HTTP, for a run on another machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os

from .score import add_reward_arguments, rewards_of

HELP = """\
Serve a reward over HTTP, so that a large scorer runs on another machine, or in another environment, than the training:

  DIFFUSION_NFT_REWARD_TOKEN=... diffusion-nft reward serve --reward image_reward --device cuda --host 0.0.0.0

and there, with the same token in the environment, rewards: {"remote:http://that-machine:8100": 1.0}. Requests that come
together are scored together. When the server stops, the run waits for it; nothing is lost. The connection is not
encrypted: use a tunnel, or a proxy with TLS, beyond a network you trust."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft reward`."""
    parser.add_argument("action", choices=("serve",), help="serve: answer requests until Ctrl-C")
    add_reward_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only). 0.0.0.0 is every network it is in, and "
        "needs a token in DIFFUSION_NFT_REWARD_TOKEN",
    )
    parser.add_argument("--port", type=int, default=8100, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes, each with a reward of its own (default: %(default)s). More help a reward that computes on "
        "the CPU; a GPU is better used by one with a larger --batch",
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=32.0,
        metavar="MB",
        help="largest request (default: %(default)g); raise it for pictures above 4 megapixels",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from nft_pipeline.commands.sample import pick_device
    from nft_pipeline.training.rewards.mix import parse_rewards

    spec = rewards_of(args)
    parse_rewards(spec)
    token = os.environ.get("DIFFUSION_NFT_REWARD_TOKEN")
    if args.host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise ValueError(
            f"--host {args.host} opens the server to others, and DIFFUSION_NFT_REWARD_TOKEN is not set; set it to a "
            'long random text, for example that of: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    for name, value in (("--workers", args.workers), ("--max-mb", args.max_mb)):
        if value <= 0:
            raise ValueError(f"{name} is {value}, expected more than 0")
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'serving needs {package}, which is not installed: pip install "diffusion-nft[serve]"')
    import uvicorn

    from nft_pipeline.training.rewards.serve import SETTINGS_VARIABLE

    general = {"device": pick_device(args.device), **({"batch": args.batch} if args.batch else {})}
    limits = {"max_bytes": int(args.max_mb * 1e6)}
    # Worker processes are started anew and read it from there; the token is in the environment already.
    os.environ[SETTINGS_VARIABLE] = json.dumps({"rewards": spec, "general": general, "limits": limits})
    uvicorn.run(
        "nft_pipeline.training.rewards.serve:app_from_environment",
        factory=True,
        host=args.host,
        port=args.port,
        workers=args.workers,
        timeout_graceful_shutdown=30,
        log_level="info",
        access_log=False,
    )
    return 0
