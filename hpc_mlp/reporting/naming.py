"""What rows and runs are called on the page: by what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hpc_mlp.reporting.folds import FoldedRun
from hpc_mlp.reporting.groups import Group, reference_and_best, show
from hpc_mlp.runs.folder import Run
from hpc_mlp.terminal.text import count, last_parts

# As many have looks of their own in figures: of more, those that are drawn first.
_LOOKS = 6


def labelled(groups: Sequence[Group]) -> list[Group]:
    """With a `label` of what differs: the variant unless all have the same, and of its keys those
    that differ within it. Of many, those that are drawn first get the looks that differ most."""
    found: dict[tuple[str, str], set[str]] = {}
    for group in groups:
        for key, value in group.by.items():
            found.setdefault((group.variant, key), set()).add(show(value))
    differ = list(dict.fromkeys(key for (_, key), values in found.items() if len(values) > 1))
    short = dict(zip(differ, last_parts(differ), strict=True))
    alone = len({group.variant for group in groups}) == 1 and bool(differ)
    labels = []
    for group in groups:
        own = [key for key in group.by if len(found[group.variant, key]) > 1]
        settings = [f"{short[key]}={_brief(group.by[key])}" for key in own]
        labels.append(" ".join(([] if alone else [group.variant]) + settings))
    if len(set(labels)) < len(labels):
        labels = [group.name for group in groups]
    order = groups if len(groups) <= _LOOKS else reference_and_best(groups)
    index = {id(group): i for i, group in enumerate(order)}
    named = []
    for group, label in zip(groups, labels, strict=True):
        look = index[id(group)]
        # A row's ensemble has its colour.
        ensemble = group.ensemble and replace(group.ensemble, index=look)
        named.append(replace(group, label=label, index=look, ensemble=ensemble))
    return named


def _brief(value: Any) -> str:
    """Of a search's `0.0031622776601683795` the first digits."""
    text = show(value)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > 8 else text


def described(group: Group, run: Run) -> str:
    """A run of the group in a title: `dropout lr=0.01, seed 1`."""
    parts = [group.shown]
    if "seed" not in group.by:
        parts.append(f"seed {run.seed}")
    if isinstance(run, FoldedRun):
        parts.append(count(len(run.members), "fold"))
    elif run.fold is not None and "fold" not in group.by:
        parts.append(f"fold {run.fold}")
    return ", ".join(parts)
