"""Metrics against scikit-learn; every image counts exactly once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from hpc_mlp.bank.metrics import MetricSums
from hpc_mlp.machine.processes import Processes
from hpc_mlp.runs.metrics import Metrics

CPU = torch.device("cpu")


def tally_in_batches(logits: torch.Tensor, labels: torch.Tensor, sizes: list[int]) -> MetricSums:
    sums = MetricSums(logits.shape[0], logits.shape[2], CPU)
    first = 0
    for size in sizes:
        sums.add(logits[:, first : first + size], labels[first : first + size])
        first += size
    return sums


@settings(max_examples=60, deadline=None)
@given(
    members=st.integers(1, 4),
    classes=st.integers(2, 7),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    only=st.integers(1, 7),
    seed=st.integers(0, 10**6),
)
def test_metrics_are_those_of_scikit_learn(
    members: int, classes: int, sizes: list[int], only: int, seed: int
) -> None:
    """Batches of any sizes; some classes neither occur nor are predicted."""
    torch.manual_seed(seed)
    count = sum(sizes)
    logits = torch.randn(members, count, classes)
    labels = torch.randint(0, min(only, classes), (count,))
    sums = tally_in_batches(logits, labels, sizes)
    for v in range(members):
        metrics = Metrics(sums.losses()[v], sums.confusions()[v])
        json = metrics.as_json([str(k) for k in range(classes)])
        predicted = logits[v].argmax(1).numpy()
        truth = labels.numpy()
        assert json["num_images"] == count
        assert (
            json["confusion_matrix"]
            == confusion_matrix(truth, predicted, labels=range(classes)).tolist()
        )
        assert json["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
        assert sums.accuracies()[v] == pytest.approx(json["accuracy"])
        probabilities = logits[v].double().softmax(1).numpy()
        assert json["loss"] == pytest.approx(
            log_loss(truth, probabilities, labels=range(classes)), rel=1e-5
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            per_class = precision_recall_fscore_support(
                truth, predicted, labels=range(classes), zero_division=0
            )
            macro = precision_recall_fscore_support(
                truth, predicted, average="macro", zero_division=0
            )
            over_all = f1_score(
                truth, predicted, labels=range(classes), average="macro", zero_division=0
            )
        assert sums.macro_f1s()[v] == pytest.approx(over_all, rel=1e-14)
        # Alone it has the same bits.
        assert tally_in_batches(logits[v : v + 1], labels, sizes).macro_f1s() == [
            sums.macro_f1s()[v]
        ]
        for name, mean, values in zip(
            ("precision", "recall", "f1"), macro[:3], per_class[:3], strict=True
        ):
            assert json[name] == pytest.approx(mean)
            assert [row[name] for row in json["per_class"]] == pytest.approx(list(values))
        assert [row["support"] for row in json["per_class"]] == per_class[3].tolist()


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 200), world=st.integers(1, 9))
def test_the_parts_of_the_processes_make_the_whole(count: int, world: int) -> None:
    parts = [Processes(rank, world).part(count) for rank in range(world)]
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 100), world=st.integers(1, 5), batch=st.integers(1, 40))
def test_sums_over_processes_are_those_of_one(count: int, world: int, batch: int) -> None:
    torch.manual_seed(count)
    logits, labels = torch.randn(2, count, 3), torch.randint(0, 3, (count,))
    whole = tally_in_batches(logits, labels, [count])
    loss, confusion = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.int64)
    for rank in range(world):
        start, stop = Processes(rank, world).part(count)
        sizes = [min(batch, stop - first) for first in range(start, stop, batch)]
        part = tally_in_batches(logits[:, start:stop], labels[start:stop], sizes)
        loss, confusion = loss + part.tensors()[0], confusion + part.tensors()[1]
    assert torch.equal(confusion, whole.confusion)
    assert torch.allclose(loss, whole.loss, rtol=1e-9)


def test_a_class_never_predicted_has_precision_zero() -> None:
    metrics = Metrics(0.5, np.array([[3, 0], [2, 0]], dtype=np.int64))
    json = metrics.as_json(["cat", "dog"])
    assert json["per_class"][1] == {
        "class": "dog",
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 2,
    }
    assert json["precision"] == pytest.approx(0.3) and json["recall"] == pytest.approx(0.5)


def test_before_any_image_all_is_zero() -> None:
    sums = MetricSums(2, 3, CPU)
    sums.add(torch.zeros(2, 0, 3), torch.zeros(0, dtype=torch.int64))
    assert sums.losses() == sums.accuracies() == [0.0, 0.0]
    json = Metrics(0.0, sums.confusions()[0]).as_json(["a", "b", "c"])
    assert [json[name] for name in ("num_images", "accuracy", "precision", "recall", "f1")] == [
        0
    ] * 5


def test_counts_are_whole_numbers_on_the_device_given() -> None:
    assert MetricSums(1, 2, CPU).confusions().dtype == np.int64
    assert {tensor.device.type for tensor in MetricSums(1, 2, torch.device("meta")).tensors()} == {
        "meta"
    }


def test_classes_and_counts_must_fit_together() -> None:
    with pytest.raises(ValueError):
        Metrics(0.5, np.eye(3, dtype=np.int64)).as_json(["cat", "dog"])
