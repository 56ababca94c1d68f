"""What a reader should know before trusting a table: handicaps of single variants, classes of few
images, and what knowing nothing is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpc_mlp.errors import printable
from hpc_mlp.reporting.comparison import Comparison
from hpc_mlp.reporting.groups import Group, parts_of
from hpc_mlp.reporting.sentences import join
from hpc_mlp.runs.folder import Run
from hpc_mlp.terminal.text import count, listed, one_of

# Below it a class moves the mean over classes by much with one image.
FEW_IMAGES = 5
# Macro F1 that is worth a note, as a fraction.
HIGHER_F1 = 0.01


def cautions(rows: Sequence[Group]) -> list[str]:
    """Notes on the rows of each dataset."""
    notes: list[str] = []
    for name in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == name and row.n]
        notes += [*_lacking(own), *_early(own), *_few_images(own)]
        for peers in dict.fromkeys(row.peers for row in own):
            notes += _other_f1([row for row in own if row.peers == peers])
    return notes


def _lacking(rows: Sequence[Group]) -> list[str]:
    """Folds that are not there: a mean over the others is not one of all images."""
    notes = []
    for row in (row for row in rows if row.folds > 1):
        counted = {id(run) for run in row.models}
        if not row.complete:
            notes.append(
                f"{row.name} has results of {row.folds_done} of {row.folds} folds: its numbers "
                "are of the images that these held out."
            )
        elif left_out := sum(bool(run.test) and id(run) not in counted for run in row.runs):
            are = one_of(left_out, "is", "are")
            notes.append(
                f"{count(left_out, 'run')} of {row.name} {are} left out: not all folds of the "
                "seed have results."
            )
    return notes


def majority(row: Group) -> tuple[str, float] | None:
    """The row's most frequent test class, and its share: the accuracy of always saying it."""
    found = _supports(row)
    if not found or not sum(found.values()):
        return None
    name = max(found, key=lambda key: found[key])
    return name, found[name] / sum(found.values())


def _supports(row: Group) -> dict[str, int]:
    """Test images of each class."""
    for run in row.tested:
        # Folds are read as what they held out; a test split that the archive brought is not that.
        test = parts_of(run)[0].test if row.held_out else run.test
        if test:
            classes, matrix = run.config.dataset.classes, test.confusion_matrix
            return {name: sum(counts) for name, counts in zip(classes, matrix, strict=True)}
    return {}


def _early(rows: Sequence[Group]) -> list[str]:
    """Where early stopping ended some variants while they still learned, and let others be."""
    untouched = [row.name for row in rows if not any(_stopped(run) for run in row.runs)]
    if not untouched:
        return []
    ended = []
    for row in rows:
        hit = [run for run in row.runs if _stopped(run) and _still_falls(run)]
        if hit:
            some = f"{len(hit)} of {len(row.runs)} runs" if len(row.runs) > 1 else "its run"
            epochs = [len(run.metrics) for run in hit]
            first, last = min(epochs), max(epochs)
            when = f"epoch {first}" if first == last else f"epochs {first} to {last}"
            ended.append(f"{row.name} ({some}, after {when})")
    if not ended:
        return []
    others = join(untouched[:3]) + (" and others" if len(untouched) > 3 else "")
    return [
        f"Early stopping ended {join(ended)} while the training loss still fell, and spared "
        f"{others}: a noisy validation loss may have cost epochs. Compare with --set "
        "train.early_stopping=false or a larger train.patience."
    ]


def _stopped(run: Run) -> bool:
    return run.result is not None and run.result.stopped == "early"


def _still_falls(run: Run) -> bool:
    losses = [line.train_loss for line in run.metrics if line.train_loss is not None]
    return len(losses) > 1 and losses[-1] < min(losses[:-1])


def _other_f1(rows: Sequence[Group]) -> list[str]:
    known = [(value.mean, row) for row in rows if (value := row.values["f1"])]
    best = next(((mean, row) for mean, row in known if row.best), None)
    if best is None:
        return []
    mean, other = max(known, key=lambda pair: pair[0])
    if mean < best[0] + HIGHER_F1:
        return []
    return [
        f"By macro F1, in which every class counts alike, {other.name} is ahead of ★ "
        f"{best[1].name} on the test images ({100 * mean:.1f} against {100 * best[0]:.1f}): "
        "validation loss goes by images."
    ]


def _few_images(rows: Sequence[Group]) -> list[str]:
    found = _supports(rows[0]) if rows else {}
    few = sorted((images, name) for name, images in found.items() if images < FEW_IMAGES)
    if not few:
        return []
    named = ", ".join(f"{printable(name)} {images}" for images, name in few[:6])
    more = f", {len(few) - 6} more" if len(few) > 6 else ""
    has = one_of(len(few), "has", "have")
    return [
        f"{len(few)} of {len(found)} classes {has} fewer than {FEW_IMAGES} test images "
        f"({named}{more}): mean precision, recall and F1 over the classes hang on single images."
    ]


def of_ece(null: Mapping[str, float], comparisons: Sequence[Comparison] = ()) -> list[str]:
    """What the ECE holds that is not miscalibration. `null`: by row, of calibrated models."""
    if not null:
        return []
    told = listed([f"{100 * value:.2f} ({name})" for name, value in null.items()], 6)
    lines = [
        "ECE is never below 0: calibrated models of the same confidences would have, in points, "
        f"{told} on as many images."
    ]
    small = [
        c.name
        for c in comparisons
        if c.differs
        and {c.name, c.against} <= null.keys()
        and abs(c.difference) <= abs(null[c.name] - null[c.against])
    ]
    if small:
        lines[0] += f" The difference of {join(small)} is no larger than that of these alone."
    return lines
