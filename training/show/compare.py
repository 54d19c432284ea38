"""Two runs side by side on one page: what their settings differ in, curves, sweeps and sample grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nft_pipeline.files.atomic import atomic_write_bytes

from ..learn.export import without_paths
from .page import data_url, grid_url
from .plots import curves
from .records import TABLES, read_table

GRIDS = 4  # steps whose grids are shown
_STEP = "step-"


class CompareError(ValueError):
    """A folder that holds no run."""


@dataclass(frozen=True)
class RunRecords:
    """What a run's folder says.

    Args:
        name: for headings; two runs of one name get their folders' names.
        settings: by name.
        tables: the flat lines of each table.
        grids: the sample grids by step.
    """

    name: str
    settings: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    grids: Mapping[int, Path]

    @classmethod
    def of(cls, out: Path) -> RunRecords:
        """Read a run's folder.

        Raises:
            CompareError: there is no run in it.
        """
        import yaml

        path = out / "settings.yaml"
        if not path.is_file():
            raise CompareError(f"there is no run in {out}: no {path.name}. Give the folder that `train` wrote")
        settings = yaml.safe_load(path.read_text("utf-8"))
        grids = {int(each.stem.removeprefix(_STEP)): each for each in (out / "samples").glob(f"{_STEP}*.png")}
        return cls(settings["name"], settings, {table: read_table(out, table) for table in TABLES}, grids)

    @property
    def last_sweep(self) -> list[Mapping[str, Any]]:
        """The lines of the last sweep, by rising strength."""
        rows = self.tables["sweeps"]
        return [row for row in rows if row["step"] == rows[-1]["step"]] if rows else []


def write_comparison(first: Path, second: Path, to: Path) -> Path:
    """Write the page.

    Args:
        first, second: the runs' folders.
        to: the HTML file, with everything inside it.

    Raises:
        CompareError: one holds no run.
    """
    from jinja2 import Environment, StrictUndefined

    runs = [RunRecords.of(first), RunRecords.of(second)]
    names = [run.name for run in runs]
    if names[0] == names[1]:
        names = [str(first), str(second)]
    plots = {
        "Losses": _overlaid(names, runs, "losses", "step", smooth=True),
        "Speed and memory": _overlaid(names, runs, "speed", "step", smooth=True),
        "Rewards of the rounds": _overlaid(names, runs, "rounds", "round", only=("mean ", "spread ")),
    }
    differing = [
        (name, *(without_paths(run.settings.get(name)) for run in runs))
        for name in sorted(runs[0].settings.keys() | runs[1].settings.keys())
        if runs[0].settings.get(name) != runs[1].settings.get(name)
    ]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "compare.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        names=names,
        differing=differing,
        plots={name: data_url(picture, "png") for name, picture in plots.items() if picture is not None},
        sweeps=_sweep_table(runs),
        grids=_grids(runs),
    )
    return atomic_write_bytes(to, page.encode())


def _overlaid(names: Sequence[str], runs: Sequence[RunRecords], table: str, x: str, **how: Any) -> bytes | None:
    return curves({name: run.tables[table] for name, run in zip(names, runs, strict=True)}, x, **how)


def _sweep_table(runs: Sequence[RunRecords]) -> list[tuple[str, list[tuple[float, list[str]]]]]:
    """(quantity, [(strength, [first run's value, second run's value])]), of the last sweeps, "" where one has none."""
    sweeps = [{float(row["strength"]): row for row in run.last_sweep} for run in runs]
    strengths = sorted(set(sweeps[0]) | set(sweeps[1]))
    skipped = ("step", "strength", "trusted", "verdict")
    found = dict.fromkeys(name for sweep in sweeps for row in sweep.values() for name in row)
    values = [name for name in found if name not in skipped and "±" not in name and not name.endswith(" change")]
    return [
        (name, [(strength, [_value(sweep.get(strength, {}), name) for sweep in sweeps]) for strength in strengths])
        for name in values
    ]


def _value(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get(name), (int, float)):
        return ""
    error = row.get(f"{name} ±")
    return f"{row[name]:.3g}" + (f" ± {error:.2g}" if isinstance(error, (int, float)) and error == error else "")


def _grids(runs: Sequence[RunRecords]) -> list[tuple[str, list[str]]]:
    """(heading, pictures) of the steps that both runs have grids of; without one, the last of each."""
    both = sorted(runs[0].grids.keys() & runs[1].grids.keys())
    if len(both) > GRIDS:
        both = [both[round(place * (len(both) - 1) / (GRIDS - 1))] for place in range(GRIDS)]
    if both:
        return [(f"step {step}", [grid_url(run.grids[step]) for run in runs]) for step in both]
    last = [grid_url(run.grids[max(run.grids)]) if run.grids else "" for run in runs]
    return [("the last of each", last)] if any(last) else []
