"""What the demo and the benchmarks conclude from their points."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.adapters import config_values
from helpers.dialled import a_dial
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.dial.promise import mean_promise, odds_rate
from nft_pipeline.training.demo.demo_command import _verdict
from nft_pipeline.training.demo.measure import (
    CALIBRATED,
    Point,
    Workload,
    matched_quality,
    measure_base,
    measure_laws,
)
from nft_pipeline.training.demo.report import law_table, plot_promise, rival_table


def points(*rows):
    return [Point(method, setting, n, rate, quality, promise) for method, setting, n, rate, quality, promise in rows]


RIVALS = points(("lora weight", 0.5, 100, 0.4, 0.9, None), ("lora weight", 1.0, 100, 0.8, 0.7, None))


def test_a_rival_is_compared_at_the_same_rate():
    assert matched_quality(RIVALS, 0.6) == pytest.approx(0.8)
    assert matched_quality(RIVALS[::-1], 0.4) == pytest.approx(0.9)
    assert matched_quality(RIVALS, 0.9) is None and matched_quality([], 0.5) is None


def test_the_standard_error_is_never_zero():
    assert Point("base", 0.0, 400, 0.5, 0.9).error == pytest.approx(0.025)
    assert Point("base", 0.0, 400, 1.0, 0.9).error > 0


def test_the_demo_says_yes_only_if_the_odds_law_helped(capsys):
    base = Point("base", 0.0, 240, 0.33, 0.9, 0.33)
    good = points(
        ("odds", 1.0, 240, 0.35, 0.9, 0.5), ("odds", 4.0, 240, 0.9, 0.9, 0.9), ("nft", 4.0, 240, 0.3, 0.9, 0.9)
    )
    assert _verdict(base, good) == 0 and "Guidance helped: odds, P(o=1) 0.330 -> 0.900" in capsys.readouterr().out
    weak = points(
        ("odds", 1.0, 240, 0.9, 0.9, 0.9), ("odds", 4.0, 240, 0.42, 0.9, 0.9), ("nft", 4.0, 240, 0.9, 0.9, 0.9)
    )
    assert _verdict(base, weak) == 1
    assert "did not help: odds, P(o=1) 0.330 -> 0.420 at strength 2; expected 0.1" in capsys.readouterr().out


def test_tables_and_plot_hold_promise_measurement_and_rival(tmp_path):
    laws = points(("odds", 0.0, 100, 0.3, 0.9, 0.3), ("odds", 2.0, 100, 0.6, 0.85, 0.76))
    table = law_table(laws, RIVALS)
    assert "| odds | +2 | 0.760 | 0.600 ± 0.049 | -0.160 | 0.850 | 0.800 |" in table
    assert "out of its reach" in table and "lora weight | 0.5 | 0.400" in rival_table(RIVALS)
    plot_promise([laws], RIVALS, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_workload_goes_round_its_prompts():
    work = Workload(["a", "b", "c"], n=5, seed=0, batch=2, call={})
    assert work.texts() == ["a", "b", "c", "a", "b"]


def test_what_is_promised_is_averaged_over_prompts_that_differ(monkeypatch):
    monkeypatch.setattr(Workload, "pictures", lambda *_, **__: np.zeros((n, 1, 1, 3), np.uint8))
    n, often = 800, {f"{name} {i}": rate for i in range(10) for name, rate in (("easy", 0.8), ("hard", 0.2))}
    work = Workload(list(often), n=n, seed=0, batch=2, call={}, quality=lambda pictures, texts: 1.0)
    draws = np.random.default_rng(0).random(n)
    reward = lambda pictures, texts: (draws < np.array([often[text] for text in texts])).astype(float)  # noqa: E731
    base = measure_base(None, work, reward)
    assert base.spread == pytest.approx(0.3, abs=0.03)
    guided = SimpleNamespace(nft_config=SimpleNamespace(tilt=2.0, dial=None))
    (point,) = measure_laws(guided, work, reward, base, (2.0,), ("odds",))
    each = np.mean([odds_rate(rate, 2.0) for rate in often.values()])
    assert point.promise == pytest.approx(each, abs=0.03)
    assert odds_rate(base.rate, 2.0) - each > 0.05  # what the pooled rate would have promised


def test_what_is_promised_goes_by_the_spread_that_a_calibration_measured(monkeypatch):
    """Pictures that agree by chance say nothing of how far prompts differ."""
    monkeypatch.setattr(Workload, "pictures", lambda *_, **__: np.zeros((4, 1, 1, 3), np.uint8))
    work = Workload(["a", "b"], n=4, seed=0, batch=2, call={}, quality=lambda pictures, texts: 1.0)
    base = Point("base", 0.0, 4, 0.4, 1.0, 0.4, spread=0.0)
    config = AdapterConfig.from_dict(config_values(kind="policy"))
    guided = SimpleNamespace(nft_config=replace(config, dial=a_dial(spread=0.3)))
    reward = lambda pictures, texts: np.zeros(len(texts))  # noqa: E731
    found = measure_laws(guided, work, reward, base, (0.0, 2.0), ("nft", CALIBRATED))
    assert [point.promise for point in found] == pytest.approx([0.4, mean_promise(0.4, 0.3, 2.0)] * 2, abs=1e-6)
    assert mean_promise(0.4, 0.3, 2.0) < odds_rate(0.4, 2.0) - 0.04
