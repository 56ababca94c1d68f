"""Two sides compared, in the terminal and as a page with pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import UserError
from hpc_mlp.reporting import metrics as measures
from hpc_mlp.reporting.columns import COLUMNS, interval_cell
from hpc_mlp.reporting.comparison import amount, p_text, points
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.pair import ImageDifferences, ImageVerdict, Match, Pair, read_pair
from hpc_mlp.reporting.table import plain_table, writable
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.shown import Showable, text_console
from hpc_mlp.terminal.text import count

METRICS = ("seeds", "best_epoch", "val_loss", "test_accuracy", "precision", "recall", "f1")
# Pictures of a kind on the page.
MOST_PICTURES = 24
# Of a terminal, from which on `mean ± sd` stand on a line; and metrics that are shown from there
# on. The page has all of them.
_WIDE, _WIDE_ONLY = 110, ("precision", "recall")


def compare(
    first: str | PathLike[str],
    second: str | PathLike[str],
    *,
    out: str | Path | None = None,
    shards: str | Path | None = None,
    metric: str = "accuracy",
) -> PairResult:
    """How two runs, or two folders of runs, differ, as `hpc-mlp compare` shows it: settings,
    metrics, test images. `out`: also write the page with pictures; `shards`: the shards folder,
    where it is no longer at the path that the runs name; `metric`: in which they are compared, as
    of `table`. UserError where there is no run."""
    if not (isinstance(first, str | PathLike) and isinstance(second, str | PathLike)):
        raise UserError("two runs or two folders of runs are compared; several runs: table(runs).")
    pair = read_pair(Path(first), Path(second), metric)
    if out is None:
        return PairResult(pair)
    page = Path(out)
    return PairResult(pair, page, write_page(pair, page, Path(shards) if shards else None))


@dataclass(frozen=True, repr=False)
class PairResult(Showable):
    """`pair` has all numbers and images; `page`: where it was written; `missing`: what it lacks."""

    pair: Pair
    page: Path | None = None
    missing: Sequence[str] = ()

    def parts(self) -> Iterator[RenderableType]:
        yield from _parts(self.pair, str, narrow=False)
        yield from map(Text, sentences(self.pair))
        if self.page is not None:
            yield Text(str(self.page), Style(link=self.page.as_posix()))
        yield from (Text(f"missing: {line}") for line in self.missing)

    def __repr__(self) -> str:
        print_pair(self.pair, text_console(buffer := io.StringIO()))
        return buffer.getvalue().rstrip("\n")

    __str__ = __repr__

    def records(self) -> list[dict[str, Any]]:
        """A recipe and side each: means over seeds, fractions, None where there is no value."""
        sides = [(m.name, *side) for m in self.pair.matches for side in _sides(m)]
        metrics = list(dict.fromkeys(key for *_, group in sides for key in group.values))
        return [
            {"recipe": name, "side": side, "seeds": group.seeds, "n": group.n}
            | {key: value.mean if (value := group.values.get(key)) else None for key in metrics}
            for name, side, group in sides
        ]


def print_pair(pair: Pair, console: Console) -> None:
    safe = writable(console)
    last: RenderableType = Text()
    for part in _parts(pair, safe, narrow=console.width < _WIDE):
        if isinstance(part, Table) or isinstance(last, Table):
            console.print()
        console.print(part)
        last = part
    console.print()
    for line in sentences(pair):
        console.print(safe(line), highlight=False)


def _parts(pair: Pair, safe: Callable[[str], str], *, narrow: bool) -> Iterator[RenderableType]:
    """What stands above the sentences."""
    for side, title in zip("AB", pair.titles, strict=True):
        yield Text(safe(f"{side}  {title}"))
    if pair.settings:
        yield _table([["differs in", "A", "B"], *map(list, pair.settings)], 3, safe)
    else:
        yield Text("\nConfiguration, data and versions are the same.")
    names = [name for name in METRICS if not (narrow and name in _WIDE_ONLY)]
    cells = metric_cells(pair, names)
    if narrow:
        cells = [[cell.replace(" ± ", "\n± ") for cell in row] for row in cells]
    yield _table(cells, 3, safe)


def _table(cells: Sequence[Sequence[str]], texts: int, safe: Callable[[str], str]) -> Table:
    """Its first columns are texts, the others numbers."""
    table = plain_table()
    for i, title in enumerate(cells[0]):
        table.add_column(safe(title), overflow="fold", justify="left" if i < texts else "right")
    for row in cells[1:]:
        table.add_row(*map(safe, row))
    return table


def _sides(match: Match) -> tuple[tuple[str, Group], ...]:
    return ("A", match.first), ("B", match.second)


def metric_cells(pair: Pair, names: Sequence[str] = METRICS) -> list[list[str]]:
    """Titles, then two lines for each recipe that both sides have."""
    names = list(dict.fromkeys([*names, measures.METRICS[pair.metric].column]))
    rows = [["", "", *(COLUMNS[name].title for name in names)]]
    for match in pair.matches:
        for side, group in _sides(match):
            cells = (COLUMNS[name].cell(group) for name in names)
            rows.append([match.name if side == "A" else "", side, *cells])
    return rows


def sentences(pair: Pair) -> list[str]:
    lines = [*map(_comparison, pair.matches), *_counts(pair.images), *pair.notes]
    tested = [match for match in pair.matches if match.comparison]
    if len(tested) > 1:
        lines.append(f"p is adjusted for all {len(tested)} comparisons (Holm).")
    return [line for line in lines if line]


def _comparison(match: Match) -> str:
    c = match.comparison
    if c is None:
        return ""
    kind = "these two models" if c.single else count(len(c.seeds), "shared seed")
    images = "test images" if not c.folds else "held-out images"
    kind = f"{c.folds} folds, {kind}" if c.folds else kind
    told = "" if c.differs else "; they cannot be told apart"
    has = f"is right on {points(c.difference, c, sign=True)} points of"
    if c.metric != "accuracy":
        lower = ", of which less is better," if c.measure.lower_is_better else ""
        has = f"has {amount(c.difference, c, sign=True)} of {c.measure.noun}{lower} on"
    return (
        f"{match.name}: B {has} {c.num_images:,} {images} (95 % {interval_cell(c)}, "
        f"p {p_text(c.p_adjusted)}; {kind}){told}."
    )


def _counts(images: ImageDifferences | None) -> list[str]:
    if images is None:
        return []
    first, second = map(len, images.better)
    return [
        f"A is right more often on {count(first, 'test image')}, B on {second:,}; on "
        f"{len(images.otherwise):,} they are as often right but say another class, and on "
        f"{images.alike:,} they say the same."
    ]


def write_page(pair: Pair, out: Path, shards: Path | None) -> list[str]:
    """The page as one file; what is missing from it, in lines. UserError where it cannot be
    written."""
    from hpc_mlp.files.atomic import write_bytes
    from hpc_mlp.reporting.page import environment

    galleries, missing = _galleries(pair, shards)
    metrics = metric_cells(pair)
    text = (
        environment()
        .get_template("pair.html.j2")
        .render(
            pair=pair,
            columns=["", "", "seeds", *(f"#{title}" for title in metrics[0][3:])],
            metrics=metrics,
            sentences=sentences(pair),
            galleries=galleries,
            missing=missing,
            classes=pair.sides[0][0].config.dataset.classes,
        )
    )
    try:
        write_bytes(out, text.encode())
    except OSError as error:
        raise UserError(f"the page cannot be written ({error}). Choose --out FILE.html.") from None
    return missing


def _galleries(pair: Pair, shards: Path | None) -> tuple[list[Json], list[str]]:
    """Pictures with what both say of them, by kind."""
    from hpc_mlp.reporting.context import read_shards
    from hpc_mlp.reporting.gallery import read_samples

    if pair.images is None:
        return [], []
    kinds = list(_kinds(pair.images))
    wanted = {one.index: one for _, images in kinds for one in images}
    try:
        found = read_shards(shards, pair.sides[0][0].config.dataset, "compare --data")
        samples = read_samples(found.folder, found.manifest, pair.images.splits, wanted)
    except UserError as error:
        return [], [f"No pictures: {error}"]
    if any(samples[i].label != one.label for i, one in wanted.items() if i in samples):
        return [], ["No pictures: the test images are not in the order of the predictions."]
    return [
        {"title": title, "shown": [(one, samples[one.index]) for one in images]}
        for title, images in kinds
        if images and all(one.index in samples for one in images)
    ], []


def _kinds(images: ImageDifferences) -> Iterator[tuple[str, list[ImageVerdict]]]:
    for title, found in (
        ("Right more often in A", images.better[0]),
        ("Right more often in B", images.better[1]),
        ("As often right, taken for other classes", images.otherwise),
    ):
        shown = found[:MOST_PICTURES]
        of = f", {len(shown)} of {len(found):,}" if len(shown) < len(found) else ""
        yield f"{title}{of}", shown
