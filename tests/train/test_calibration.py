"""AUC and reliability against cases whose answer is known."""

import numpy as np
import pytest

from nft_pipeline.training.learn.calibration import auc, calibrate_at, calibration_table, plot_reliability


def test_auc_of_known_rankings():
    liked = np.array([False, False, True, True])
    assert auc(np.array([0.1, 0.2, 0.3, 0.4]), liked) == 1.0
    assert auc(np.array([0.4, 0.3, 0.2, 0.1]), liked) == 0.0
    assert auc(np.array([0.1, 0.3, 0.2, 0.4]), liked) == 0.75
    assert auc(np.full(4, 0.5), liked) == 0.5
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([True, True])))


def test_a_calibrated_alpha_has_no_error_and_a_boastful_one_has():
    rng = np.random.default_rng(0)
    alpha = rng.random(200_000)
    r = (rng.random(200_000) < alpha).astype(float)
    calibrated = calibrate_at(0.5, alpha, r)
    assert calibrated.error < 0.01 and calibrated.auc == pytest.approx(5 / 6, abs=0.005)
    assert calibrate_at(0.5, np.sqrt(alpha), r).error == pytest.approx(1 / 6, abs=0.01)  # E[sqrt(u) - u]


def test_table_and_plot(tmp_path):
    rng = np.random.default_rng(1)
    results = [calibrate_at(t, rng.random(500), (rng.random(500) < 0.3).astype(float)) for t in (0.2, 0.9)]
    assert calibration_table(results).count("\n") == 3
    plot_reliability(results, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
