"""Runs put together into packs: what one job trains, all in one bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.errors import UserError


@dataclass(frozen=True)
class Pack:
    """The runs of one job."""

    index: int
    name: str
    specs: tuple[RunSpec, ...]


def parse_per_job(text: str | None) -> int | None:
    """`None` → 0 (one job per variant), `"all"` → None (one job for everything), `"4"` → 4 members a job."""
    if text is None:
        return 0
    if text == "all":
        return None
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise UserError(f"--per-job {text!r}: give a number of runs from 1 up, or 'all'.")


def make_packs(specs: Sequence[RunSpec], per_job: int | None = 0) -> list[Pack]:
    """`per_job` as `parse_per_job` gives it. The order of the runs is kept."""
    if per_job == 0:
        by_variant: dict[str, list[RunSpec]] = {}
        for spec in specs:
            by_variant.setdefault(spec.variant, []).append(spec)
        groups = list(by_variant.values())
    else:
        size = per_job or max(1, len(specs))
        groups = [list(specs[start : start + size]) for start in range(0, len(specs), size)]
    return [Pack(index, _name(group), tuple(group)) for index, group in enumerate(groups)]


def _name(specs: Sequence[RunSpec]) -> str:
    if len(specs) == 1:
        return specs[0].name
    variants = list(dict.fromkeys(spec.variant for spec in specs))
    return variants[0] if len(variants) == 1 else f"{variants[0]} … {variants[-1]}"
