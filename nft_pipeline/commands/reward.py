"""`diffusion-nft reward`: the rewards there are, and one of them over HTTP, for a run on another machine."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
from collections.abc import Iterator

from .score import add_reward_arguments, rewards_of

HELP = """\
List the rewards there are, with what each one needs here:

  diffusion-nft reward list

Serve a reward over HTTP, so that a large scorer runs on another machine, or in another environment, than the training:

  DIFFUSION_NFT_REWARD_TOKEN=... diffusion-nft reward serve --reward image_reward --device cuda --host 0.0.0.0

On the machine that trains, set the same token in the environment and write into the settings of the run
rewards: {"remote:http://that-machine:8100": 1.0}. Requests that arrive together are scored together. When the server
stops, the run waits for it; nothing is lost. The connection is not encrypted: use a tunnel, or a proxy with TLS, beyond
a network you trust."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft reward`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="one of:")
    actions.add_parser("list", help="what rewards there are, what each one scores, and what is missing to use it here")
    serve = actions.add_parser("serve", help="answer requests until Ctrl-C", formatter_class=parser.formatter_class)
    add_reward_arguments(serve)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only). 0.0.0.0 is every network it is in, and "
        "needs a token in DIFFUSION_NFT_REWARD_TOKEN",
    )
    serve.add_argument("--port", type=int, default=8100, help="port to listen on (default: %(default)s)")
    serve.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes, each with a reward of its own (default: %(default)s). More help a reward that computes on "
        "the CPU; a GPU is better used by one with a larger --batch",
    )
    serve.add_argument(
        "--max-mb",
        type=float,
        default=32.0,
        metavar="MB",
        help="largest request (default: %(default)g); raise it for pictures above 4 megapixels",
    )


def run(args: argparse.Namespace) -> int:
    """List, or serve until interrupted."""
    if args.action == "list":
        for line in listed():
            print(line)
        return 0
    from nft_pipeline.training.rewards.mix import parse_rewards

    from ..sampling import pick_device

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

    from nft_pipeline.training.rewards.server.gate import PromptProtocol
    from nft_pipeline.training.rewards.server.serve import SETTINGS_VARIABLE

    general = {"device": pick_device(args.device), **({"batch": args.batch} if args.batch else {})}
    limits = {"max_bytes": int(args.max_mb * 1e6)}
    # Worker processes are started anew and read it from there; the token is in the environment already.
    os.environ[SETTINGS_VARIABLE] = json.dumps({"rewards": spec, "general": general, "limits": limits})
    uvicorn.run(
        "nft_pipeline.training.rewards.server.serve:app_from_environment",
        factory=True,
        host=args.host,
        port=args.port,
        workers=args.workers,
        http=PromptProtocol,
        timeout_graceful_shutdown=30,
        # A worker that loads a large model answers nothing for a while; uvicorn would kill it after 5 s, for ever.
        timeout_worker_healthcheck=600,
        log_level="info",
        access_log=False,
    )
    return 0


def listed() -> Iterator[str]:
    """A line for every reward that needs no path: its name, what it scores, and what is missing to use it here."""
    from nft_pipeline.training.rewards.contract import RewardError
    from nft_pipeline.training.rewards.registry import ENTRY_POINTS, find_target, known_rewards, lacking

    names = known_rewards()
    width = max(map(len, names))
    for name in names:
        try:
            target = find_target(name)
            about, fault = (inspect.getdoc(target) or "").partition("\n")[0], lacking(target)
        except RewardError as error:
            about, fault = "", str(error)
        yield f"{name:<{width}}  {about}" + (f"  [{fault}]" if fault else "")
    yield ""
    yield "Besides: module:name, one of your own; remote:URL, one on another machine; and what packages offer by the"
    yield f"entry point group {ENTRY_POINTS}. docs/rewards.md says how to read the scores."
