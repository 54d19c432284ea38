"""Adapters that something happened to: what each reader makes of a damaged or forged copy, over and over, by seed.

    cd tests && PYTHONPATH=.. python -m helpers.mutants --count 5000

Every mutant is judged three times. `read_adapter` and the reader of the single file for ComfyUI may end in an
AdapterError, in the same numbers, or in other numbers that are legal: then `verify` must have nothing against the file,
except that its two copies of the numbers differ, where somebody wrote one of them anew.
`verify` itself must come back with its faults. Anything else is a failure: another exception, a memory error, more than
LIMIT seconds, or numbers that were loaded from a file that `verify` refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.adapter import Adapter, AdapterError, read_adapter
from nft_pipeline.adapters.single_file import read_single_file
from nft_pipeline.files.strict import safetensors_bytes
from nft_pipeline.hub_cards.verify import Fault, folder_faults
from nft_pipeline.training.demo.report import markdown

from .cards import light_adapter, shared_adapter

LIMIT = 20  # seconds for one reader and one mutant
LORA = "pytorch_lora_weights.safetensors"
HEAD = "alpha_head/diffusion_pytorch_model.safetensors"
SINGLE = "comfyui/tiny-red.safetensors"
TENSOR_FILES = (LORA, HEAD, SINGLE)
JSON_FILES = ("nft_config.json", "alpha_head/config.json", "run_report.json")
PLANTED: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1e300, -0.5, "", "x" * 300, "../x", "\ud800", "\u2028", [], [[]], {}, {"a": 1}),
    *(float("nan"), float("inf"), [1, 2, 3], "policy", "positive", "(.*)*x", 65537, 10**400),
)
TEXTS = (b"", b"{", b"[]", b"null", b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a": 1e999}', b"\xff\xfe{", b"[" * 9000)
READERS = {"API": "`read_adapter`", "ComfyUI": "the reader of the single file for ComfyUI", "verify": "`verify`"}
HEAD = [
    *("reader", "named error or faults", "same numbers, or no fault", "other numbers, legal"),
    *("a file of another tool", "other exception, memory error, hang"),
]
CARDS = (
    "widget: 7",
    "widget: [5]",
    "license: [a]",
    "base_model: {a: [b]}",
    "license: '\\ud800'",
    "- a",
    "tags: &a [*a]",
)


class TooSlow(Exception):
    """A reader took longer than LIMIT seconds."""


@dataclass(frozen=True)
class Mutant:
    """What became of one: its number, the kind of change, and each reader's result, see `judge`."""

    number: int
    kind: str
    results: dict[str, str]


def mutate(folder: Path, chance: random.Random) -> str:
    """Change one thing in an adapter's folder; returns which kind of change."""
    kind = chance.choice(list(KINDS))
    KINDS[kind](folder, chance)
    return kind


def _flip(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice((*TENSOR_FILES, *TENSOR_FILES, *JSON_FILES))
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _zero(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(TENSOR_FILES)
    data = bytearray(path.read_bytes())
    start, length = chance.randrange(len(data)), chance.choice((16, 512, 4096))
    data[start : start + length] = bytes(len(data[start : start + length]))
    path.write_bytes(data)


def _cut(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice((*TENSOR_FILES, *JSON_FILES))
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))] + bytes(chance.choice((0, 0, 5))))


def _grow(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice((*TENSOR_FILES, *JSON_FILES, "README.md"))
    path.touch()
    os.truncate(path, chance.choice((10**6 + 1, 10**8, 10 * 2**30)))


def _text(folder: Path, chance: random.Random) -> None:
    (folder / chance.choice(JSON_FILES)).write_bytes(chance.choice(TEXTS))


def _field(folder: Path, chance: random.Random) -> None:
    path = folder / chance.choice(JSON_FILES)
    values = json.loads(path.read_text("utf-8"))
    _plant(values, chance)
    path.write_text(json.dumps(values), "utf-8")


def _plant(values: Any, chance: random.Random) -> None:
    """Put an odd value somewhere into parsed JSON, take one out, or add one."""
    while isinstance(values, dict | list) and values:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = chance.choice(keys)
        if isinstance(values[key], dict | list) and values[key] and chance.random() < 0.5:
            values = values[key]
            continue
        act = chance.random()
        if act < 0.7:
            values[key] = chance.choice(PLANTED)
        elif act < 0.85:
            del values[key]
        elif isinstance(values, dict):
            values[chance.choice(("", "x", "__metadata__", "name "))] = chance.choice(PLANTED)
        return


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _forge_tensors(folder: Path, chance: random.Random) -> None:
    """Tensors of another dtype, shape or name, or with other numbers; half of the time the hash is mended."""
    path = folder / chance.choice(TENSOR_FILES)
    tensors, header = _tensors(path)
    key = chance.choice(sorted(tensors))
    tensor = tensors[key]
    dtypes = (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.bool)
    acts: list[Callable[[], Any]] = [
        lambda: tensors.update({name: value.to(torch.bfloat16) for name, value in tensors.items()}),
        lambda: tensors.update({key: tensor.to(chance.choice(dtypes))}),
        lambda: tensors.update({key: tensor.flatten()[:-1]}),
        lambda: tensors.update({key: torch.full_like(tensor, chance.choice((float("nan"), float("inf"), 3e38)))}),
        lambda: tensors.update({chance.choice(("x", "", "\u2028", key + ".alpha", "../" + key)): tensors.pop(key)}),
        lambda: tensors.pop(key),
        tensors.clear,
        lambda: tensors.update({key: torch.zeros(0)}),
    ]
    chance.choice(acts)()
    hash_key = "modelspec.hash_sha256" if chance.random() < 0.5 else None
    path.write_bytes(safetensors_bytes({k: v.contiguous() for k, v in tensors.items()}, header, hash_key))


def _forge_header(folder: Path, chance: random.Random) -> None:
    """Texts and entries in a safetensors header that no writer of ours puts there."""
    path = folder / chance.choice(TENSOR_FILES)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    texts = entries.setdefault("__metadata__", {})
    if chance.random() < 0.5 and texts:
        texts[chance.choice(sorted(texts))] = chance.choice(
            ("", "{", "{}", "[1]", "\ud800", '{"r": 1e999}', '{"r": ' * 900 + "1" + "}" * 900, "0x00", "x" * 10**6)
        )
    else:
        _plant(entries, chance)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _special(folder: Path, chance: random.Random) -> None:
    """A pipe, a device, a folder, a link or nothing where a file should be."""
    path = folder / chance.choice((*TENSOR_FILES, *JSON_FILES))
    path.unlink()
    acts: list[Callable[[], Any]] = [
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name),
        path.mkdir,
        lambda: None,
        lambda: path.write_bytes(b"PK\x03\x04" + b"x" * 90),
        lambda: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    ]
    chance.choice(acts)()


def _card(folder: Path, chance: random.Random) -> None:
    (folder / "README.md").write_text(f"---\n{chance.choice(CARDS)}\n---\n# hello\n", "utf-8")


def _picture(folder: Path, chance: random.Random) -> None:
    size = chance.choice((1, 50_000, 2**31 - 1)).to_bytes(4, "big")
    data = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size * 2 + bytes(chance.randrange(256) for _ in range(60))
    (folder / "samples" / "0-0.png").write_bytes(chance.choice((data, data[:20], b"GIF89a", b"%!PS-Adobe-3.0 EPSF")))


def _other_file(folder: Path, chance: random.Random) -> None:
    names = (
        "x.py",
        "optimizer.pt",
        "adapter_config.json",
        os.fsdecode(b"\xff.txt"),
        "samples/ a.png",
        "comfyui/b.safetensors",
    )
    (folder / chance.choice(names)).write_bytes(chance.choice((b"", b"x", *TEXTS)))


def _peft(folder: Path, chance: random.Random) -> None:
    """A checkpoint of another tool with a hostile config."""
    for name in ("nft_config.json", *TENSOR_FILES[1:]):
        (folder / name).unlink()
    shutil.rmtree(folder / "alpha_head")
    os.rename(folder / LORA, folder / "adapter_model.safetensors")
    config: dict[str, Any] = {"r": 4, "lora_alpha": 4, "peft_type": "LORA"}
    config |= {chance.choice(("r", "lora_alpha", "rank_pattern", "alpha_pattern")): chance.choice(PLANTED)}
    expressions = ("(.*)*x", "(a|a)*b", "(?i)to_q", "[z-a]", "to_q", "x" * 10**5, ".*.*.*.*.*x", "(a?){99}")
    expression = chance.choice(expressions)
    config |= {chance.choice(("rank_pattern", "alpha_pattern")): {expression: chance.choice((4, 10**400, "x"))}}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "bits flipped": _flip,
    "bytes zeroed": _zero,
    "cut short": _cut,
    "made huge": _grow,
    "JSON replaced": _text,
    "field changed": _field,
    "tensors forged": _forge_tensors,
    "header forged": _forge_header,
    "no plain file": _special,
    "card changed": _card,
    "picture forged": _picture,
    "another file": _other_file,
    "another tool's config": _peft,
}


def numbers(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What decides the pictures: every tensor, and the head's sizes."""
    head = {} if adapter.head is None else adapter.head.state_dict()
    sizes = () if adapter.head is None else (adapter.head.config.heads, adapter.head.config.queries)
    return {**adapter.lora, **head, "sizes": torch.tensor(sizes)}


def is_same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters have the same numbers."""
    a, b = numbers(one), numbers(other)
    return a.keys() == b.keys() and all(torch.equal(a[key].double(), b[key].double()) for key in a)


def timed(read: Callable[[], Any]) -> Any:
    """What `read` returns. Raises TooSlow after LIMIT seconds, where the interpreter gets a say."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"more than {LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        return read()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(folder: Path, sound: Adapter) -> dict[str, str]:
    """What each reader makes of a folder: "named", "same", "legal", "not ours", "no fault", or the failure in words."""
    results, faults = dict[str, str](), list[Fault]()
    try:
        faults = timed(lambda: folder_faults(folder, card=False))
        results["verify"] = "faults" if [str(fault).encode() for fault in faults] else "no fault"
    except Exception as error:
        results["verify"] = f"failure: {type(error).__name__}: {str(error)[:200]!r}"
    readers: dict[str, Callable[[], Any]] = {
        "API": lambda: read_adapter(folder, **_kind_of(folder)),
        "ComfyUI": lambda: read_single_file(folder / SINGLE),
    }
    for reader, read in readers.items():
        try:
            adapter = timed(read)
        except AdapterError as error:
            results[reader] = "named" if str(error).encode("utf-8", "backslashreplace") else "failure: no words"
        except Exception as error:
            results[reader] = f"failure: {type(error).__name__}: {str(error)[:200]!r}"
        else:
            results[reader] = _kind_of_load(adapter, sound, faults)
    return results


def _kind_of(folder: Path) -> dict[str, Any]:
    own = (folder / "nft_config.json").is_file() or (folder / "alpha_head").exists()
    return {} if own else {"kind": "policy", "beta": 1.0}


def _kind_of_load(adapter: Adapter | None, sound: Adapter, faults: list[Fault]) -> str:
    if adapter is None:
        return "not ours"
    if is_same(adapter, sound):
        return "same"
    if "foreign" in adapter.config.reward["description"] or adapter.config.licence == "unknown":
        return "not ours"  # a checkpoint without a hash and a contract
    against = [fault for fault in faults if "tensors are not those of" not in fault.what]
    return "legal" if not against else f"failure: loaded other numbers, which verify refuses: {against[0]}"[:300]


def judged(which: Iterable[int], seed: int) -> Iterator[Mutant]:
    """Judge mutants by their numbers, one after the other."""
    sound = light_adapter()
    with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = shared_adapter(Path(work) / "sound", sound)
        for number in which:
            chance = random.Random(f"{seed} {number}")
            folder = Path(work) / "mutant"
            shutil.copytree(original, folder)
            kind = mutate(folder, chance)
            yield Mutant(number, kind, judge(folder, sound))
            shutil.rmtree(folder)


def failures(mutants: Iterable[Mutant]) -> list[str]:
    """Each reader's failure in words."""
    return [
        f"mutant {mutant.number}, {mutant.kind}, {reader}: {result}"
        for mutant in mutants
        for reader, result in mutant.results.items()
        if result.startswith("failure")
    ]


def table(mutants: Sequence[Mutant]) -> str:
    """How often each reader came to each result, in Markdown."""
    counts = Counter(
        (reader, result.partition(":")[0]) for mutant in mutants for reader, result in mutant.results.items()
    )
    rows = []
    for reader, name in READERS.items():
        refused = counts[reader, "named"] + counts[reader, "faults"]
        same = counts[reader, "same"] + counts[reader, "no fault"]
        legal, others = counts[reader, "legal"], counts[reader, "not ours"]
        failed = counts[reader, "failure"] + counts["process", "failure"]
        rows.append([name, *(str(count) for count in (refused, same, legal, others, failed))])
    return markdown(HEAD, rows)


def all_judged(count: int, seed: int, record: Path) -> list[Mutant]:
    """Judge `count` mutants in processes of their own, and note each in `record`, from where a later call goes on.

    A mutant that ends its process is a failure, too.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    record.touch()
    while True:
        mutants = [Mutant(**json.loads(line)) for line in record.read_text("utf-8").splitlines()]
        if len(mutants) >= count:
            return mutants
        child = os.fork()
        if child == 0:
            with record.open("a", encoding="utf-8") as file:
                for mutant in judged(range(len(mutants), count), seed):
                    file.write(json.dumps(asdict(mutant)) + "\n")
                    file.flush()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            number = len(record.read_text("utf-8").splitlines())
            dead = Mutant(number, "", {"process": f"failure: it ended with {code}"})
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(dead)) + "\n")


def main() -> int:
    """Print the table and every failure; exit code 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5000, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants (default: %(default)s)")
    parser.add_argument(
        "--record", type=Path, default=Path("runs/mutants.jsonl"), help="where each is noted, to go on from there"
    )
    args = parser.parse_args()
    mutants = all_judged(args.count, args.seed, args.record)
    print(table(mutants))
    print("\n".join(failures(mutants)) or "no failure")
    return 1 if failures(mutants) else 0


if __name__ == "__main__":
    raise SystemExit(main())
