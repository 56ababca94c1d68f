"""Two sides compared, in the terminal and as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc_mlp.errors import UserError
from hpc_mlp.reporting.columns import COLUMNS, interval_cell
from hpc_mlp.reporting.pair import ImageDifferences, ImageVerdict, Match, Pair
from hpc_mlp.reporting.sentences import p_text, points
from hpc_mlp.reporting.table import plain_table, writable
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import count

METRICS = ("seeds", "best_epoch", "val_loss", "test_accuracy", "precision", "recall", "f1")
# Pictures of a kind on the page.
MOST_PICTURES = 24
# Of a terminal, from which on `mean ± sd` stand on a line; and metrics that are shown from there
# on. The page has all of them.
_WIDE, _WIDE_ONLY = 110, ("precision", "recall")


def print_pair(pair: Pair, console: Console) -> None:
    safe = writable(console)

    def show(cells: list[list[str]], texts: int) -> None:
        """The first columns are texts, the others numbers."""
        table = plain_table()
        for i, title in enumerate(cells[0]):
            table.add_column(safe(title), overflow="fold", justify="left" if i < texts else "right")
        for row in cells[1:]:
            table.add_row(*map(safe, row))
        console.print(table)

    for side, title in zip("AB", pair.titles, strict=True):
        console.print(safe(f"{side}  {title}"), highlight=False)
    console.print()
    if pair.settings:
        show([["differs in", "A", "B"], *map(list, pair.settings)], 3)
    else:
        console.print("Configuration, data and versions are the same.")
    console.print()
    narrow = console.width < _WIDE
    cells = metric_cells(pair, [name for name in METRICS if not (narrow and name in _WIDE_ONLY)])
    if narrow:
        cells = [[cell.replace(" ± ", "\n± ") for cell in row] for row in cells]
    show(cells, 3)
    for i, line in enumerate(sentences(pair)):
        console.print(*([""] if i == 0 else []), safe(line), sep="\n", highlight=False)


def metric_cells(pair: Pair, names: Sequence[str] = METRICS) -> list[list[str]]:
    """Titles, then two lines for each recipe that both sides have."""
    rows = [["", "", *(COLUMNS[name].title for name in names)]]
    for match in pair.matches:
        for side, group in (("A", match.first), ("B", match.second)):
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
    kind = "these two models" if c.test == "mcnemar" else count(len(c.seeds), "shared seed")
    told = "" if c.differs else "; they cannot be told apart"
    return (
        f"{match.name}: B is right on {points(c.difference, c, sign=True)} points of "
        f"{c.num_images:,} test images (95 % {interval_cell(c)}, p {p_text(c.p_adjusted)}; "
        f"{kind}){told}."
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
        samples = read_samples(found.folder, found.manifest, "test", wanted)
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
