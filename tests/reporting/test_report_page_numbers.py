"""The numbers behind the page's figures, against scikit-learn's own and by definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from hpc_mlp.reporting.confusion import confused_pairs, row_shares
from hpc_mlp.reporting.predictions import RunPredictions
from hpc_mlp.reporting.ranking import RATES, RECALLS, calibrate, rank
from hpc_mlp.reporting.weights import MOST_UNITS, weight_tiles
from hpc_mlp.runs.calibration import NUM_BINS


@st.composite
def predictions(draw: st.DrawFn) -> RunPredictions:
    """Probabilities with ties, classes that never occur, near-certain and wrong rows."""
    num_classes = draw(st.integers(2, 7))
    num_images = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = draw(st.integers(1, num_classes))
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = rng.integers(0, levels + 1, (num_images, num_classes)) + 1e-3
    return RunPredictions(
        (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32),
        rng.integers(0, present, num_images),
    )


@pytest.mark.filterwarnings("error")
@settings(max_examples=150, deadline=None)
@given(predictions())
def test_areas_are_scikit_learns(found: RunPredictions) -> None:
    ranking, truth = rank(found), np.eye(found.probabilities.shape[1])[found.labels]
    assert ranking.roc.x is RATES and ranking.pr.x is RECALLS
    for k in range(truth.shape[1]):
        if 0 < truth[:, k].sum() < len(truth):
            scores = found.probabilities[:, k]
            assert ranking.roc.areas[k] == pytest.approx(roc_auc_score(truth[:, k], scores))
            assert ranking.pr.areas[k] == pytest.approx(
                average_precision_score(truth[:, k], scores)
            )
            precision, recall, _ = precision_recall_curve(truth[:, k], scores)
            # The best threshold among those that just reach the recall.
            for point in (0, 100, 200):
                least = recall[recall >= max(RECALLS[point], 1e-9) - 1e-12].min()
                assert ranking.pr.lines[k, point] == pytest.approx(
                    precision[np.isclose(recall, least)].max()
                )
        else:
            assert np.isnan(ranking.roc.areas[k]) and np.isnan(ranking.pr.lines[k]).all()
    assert ranking.roc.micro_area == pytest.approx(
        roc_auc_score(truth.ravel(), found.probabilities.ravel())
    )
    assert ranking.pr.micro_area == pytest.approx(
        average_precision_score(truth.ravel(), found.probabilities.ravel())
    )
    if ranking.roc.known:
        assert ranking.roc.macro_area == pytest.approx(np.nanmean(ranking.roc.areas))
        assert np.isfinite(ranking.roc.macro).all() and np.isfinite(ranking.pr.macro).all()


@pytest.mark.filterwarnings("error")
@settings(max_examples=100, deadline=None)
@given(predictions())
def test_calibration_by_definition(found: RunPredictions) -> None:
    calibration = calibrate([found])
    confidence, right = found.confidence.astype(np.float64), found.predicted == found.labels
    gap = 0.0
    for number in range(NUM_BINS):
        inside = [
            i for i, c in enumerate(confidence) if min(int(c * NUM_BINS), NUM_BINS - 1) == number
        ]
        assert calibration.share[number] == pytest.approx(len(inside) / len(confidence))
        if inside:
            gap += (
                len(inside)
                / len(confidence)
                * abs(right[inside].mean() - confidence[inside].mean())
            )
            assert calibration.accuracy[number] == pytest.approx(right[inside].mean())
        else:
            assert np.isnan(calibration.accuracy[number])
    assert calibration.ece.mean == pytest.approx(gap, abs=1e-12) and calibration.ece.sd is None


@pytest.mark.parametrize("confidence, number", [(1.0, NUM_BINS - 1), (0.06, 0)])
def test_certain_and_clueless_predictions_are_in_the_outer_bins(
    confidence: float, number: int
) -> None:
    scores = np.full((3, 20), (1 - confidence) / 19, np.float32)
    scores[:, 4] = confidence
    calibration = calibrate([RunPredictions(scores, np.array([4, 4, 0]))])
    assert calibration.share.tolist() == [float(k == number) for k in range(NUM_BINS)]
    assert calibration.accuracy[number] == pytest.approx(2 / 3)
    assert calibration.confidence[number] == pytest.approx(confidence)


def test_calibration_agrees_with_scikit_learn_and_pools_seeds() -> None:
    rng = np.random.default_rng(0)
    runs = [
        RunPredictions(rng.dirichlet([0.4] * 6, 500).astype(np.float32), rng.integers(0, 6, 500))
        for _ in range(3)
    ]
    calibration = calibrate(runs)
    confidence = np.concatenate([run.confidence for run in runs]).astype(np.float64)
    right = np.concatenate([run.predicted == run.labels for run in runs])
    accuracy, mean = calibration_curve(right, confidence, n_bins=NUM_BINS)
    some = calibration.share > 0
    np.testing.assert_allclose(calibration.accuracy[some], accuracy)
    np.testing.assert_allclose(calibration.confidence[some], mean)


def test_ece_is_the_mean_of_the_runs_beside_what_chance_alone_would_show() -> None:
    """Runs that are calibrated, and one that is sure of what it does not know: pooled first, errors
    of opposite sign would cancel."""
    rng = np.random.default_rng(0)
    runs = []
    for number in range(3):
        probabilities = rng.dirichlet([0.6] * 5, 400)
        chosen = np.array([rng.choice(5, p=row) for row in probabilities])
        runs.append(
            RunPredictions(probabilities.astype(np.float32), chosen if number else chosen * 0)
        )
    each = [calibrate([run]) for run in runs]
    together = calibrate(runs)
    assert together.ece.mean == pytest.approx(np.mean([one.ece.mean for one in each]))
    assert together.ece.sd == pytest.approx(np.std([one.ece.mean for one in each], ddof=1))
    assert together.null == pytest.approx(np.mean([one.null for one in each]))
    drawn = []
    for _ in range(300):
        labels = (runs[1].probabilities.cumsum(1) < rng.random((400, 1))).sum(1)
        drawn.append(
            calibrate([RunPredictions(runs[1].probabilities, np.minimum(labels, 4))]).ece.mean
        )
    assert each[1].null == pytest.approx(np.mean(drawn), rel=0.06)
    # 400 images: a perfect model shows some 4 %, and the one that is not far more.
    assert each[0].ece.mean > 3 * each[0].null and each[1].ece.mean < 2 * each[1].null
    assert calibrate(runs).null == together.null


@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_confused_pairs(size: int, seed: int, most: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 5, (size, size))
    pairs = confused_pairs(counts, most)
    wrong = sorted(
        (int(counts[t, p]) for t in range(size) for p in range(size) if t != p), reverse=True
    )
    assert [pair[2] for pair in pairs] == [n for n in wrong[:most] if n]
    for true, predicted, count, share in pairs:
        assert true != predicted and counts[true, predicted] == count
        assert share == pytest.approx(count / counts[true].sum())
    sums = row_shares(counts).sum(axis=1)
    assert np.allclose(sums, counts.sum(axis=1) > 0)


@given(st.integers(1, 60), st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))
def test_weight_tiles(units: int, channels: int, height: int, width: int) -> None:
    weight = (
        np.random.default_rng(units)
        .normal(size=(units, channels, height, width))
        .astype(np.float32)
    )
    sheet = weight_tiles(weight)
    strongest = int(np.argmax((weight.reshape(units, -1) ** 2).sum(axis=1)))
    tile = np.moveaxis(weight[strongest], 0, -1)
    np.testing.assert_allclose(
        sheet[:height, :width],
        np.broadcast_to(0.5 + 0.5 * tile / np.abs(tile).max(), (height, width, 3)),
        rtol=1e-5,
    )
    filled = np.isfinite(sheet).all(axis=2).sum()
    assert filled == min(units, MOST_UNITS) * height * width
    assert np.nanmin(sheet) >= -1e-6 and np.nanmax(sheet) <= 1 + 1e-6


def test_weights_that_are_all_zero_are_grey() -> None:
    assert (weight_tiles(np.zeros((1, 1, 4, 4), np.float32)) == 0.5).all()
