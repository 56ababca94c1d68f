"""What a comparison of two rows says, and its numbers as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hpc_mlp.reporting.metrics import METRICS, Metric
from hpc_mlp.reporting.pooled import ALPHA


@dataclass(frozen=True)
class Comparison:
    """Test metric (`metrics.METRICS`) of row `name` minus that of row `against`, as fractions (0.01
    is one point; of losses, as they are). Of folds: of all images, each held out by one of `folds`,
    whose runs trained on `train_images`. `family`: the number of comparisons for which
    `p_adjusted`, `low` and `high` (95 %) hold together; all pairs, where the reference was itself
    chosen on the runs (`all_pairs`)."""

    name: str
    against: str
    # Those that both rows have.
    seeds: list[int]
    num_images: int
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    test: Literal["pooled", "folds", "mcnemar", "paired"]
    family: int = 1
    all_pairs: bool = False
    # The true difference that would have been found with 80 % power, and the seeds that would find
    # the one asked for (None: 100 do not, or of folds, which other seeds do not replace); both None
    # for single runs, which say nothing of seeds.
    detectable: float | None = None
    seeds_needed: int | None = None
    folds: int | None = None
    train_images: int | None = None
    metric: str = "accuracy"

    @property
    def measure(self) -> Metric:
        return METRICS[self.metric]

    @property
    def gain(self) -> float:
        """The difference, above 0 where `name` is better."""
        return -self.difference if self.measure.lower_is_better else self.difference

    @property
    def single(self) -> bool:
        """One run each on one split: it says nothing of the recipes."""
        return self.test in ("mcnemar", "paired")

    @property
    def differs(self) -> bool:
        """The trained models differ, at 5 % family-wise."""
        return self.p_adjusted < ALPHA

    @property
    def shown(self) -> bool:
        """The recipes differ, at 5 % family-wise: one seed on one split never shows that."""
        return self.differs and not self.single


@dataclass(frozen=True)
class Compared:
    """`against`: each variant with the reference of its dataset, in the order of the rows. `notes`:
    what was not compared, and how the reference was chosen."""

    against: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# Its numbers, as text


def measured(c: Comparison) -> str:
    return f"{'held-out' if c.folds else 'test'} {c.measure.noun}"


def amount(x: float, c: Comparison, sign: bool = False) -> str:
    return f"{points(x, c, sign)} points" if c.measure.share else points(x, c, sign)


def points(x: float, c: Comparison, sign: bool = False) -> str:
    """A difference in percentage points; of losses as it is."""
    if not c.measure.share:
        return f"{x + 0.0:{'+' if sign else ''}.{4 if c.num_images >= 2000 else 3}f}".replace(
            "-", "−"
        )
    # 0.0 is added for minus zero, the end of an interval that was turned round.
    text = f"{100 * x + 0.0:{'+' if sign else ''}.{2 if c.num_images >= 2000 else 1}f}"
    return text.replace("-", "−")


def interval(c: Comparison) -> str:
    """`95 % 0.7 … 1.5`, in the direction in which the difference was told."""
    low, high = (c.low, c.high) if c.difference >= 0 else (-c.high, -c.low)
    return f"95 % {points(low, c)} … {points(high, c)}"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
