"""`RUNS/report.html`: all sections in a file that needs no other; its figures as files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from hpc_mlp._version import __version__
from hpc_mlp.errors import RunError, UserError, printable
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.reporting import dataset, evaluation, figures, overview, reproduce
from hpc_mlp.reporting.context import Context, read_context
from hpc_mlp.reporting.doubtful import DoubtfulLabels
from hpc_mlp.reporting.shown import WrittenReport
from hpc_mlp.reporting.summary import Summary
from hpc_mlp.terminal import templates
from hpc_mlp.terminal.text import count


def write_report(
    summary: Summary, runs: Path | None, out: Path, shards: Path | None = None
) -> WrittenReport:
    """Write the page to `out` and its figures to `runs/figures` (replaced as a whole), or beside
    the page where the runs are of several folders, or nothing can be written in theirs; of folds,
    the list of doubtful labels beside the page, where it removes one of its own otherwise. `shards`
    overrides the shards folder that the runs name. The same runs give the same bytes. UserError
    where nothing can be written there."""
    labels = out.with_name(f"{out.stem}-doubtful.csv")
    kept = out.with_name(f"{out.stem}-figures")
    if runs is not None and os.access(runs, os.W_OK):
        kept = runs / "figures"
    try:
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".figures.") as temporary:
            folder = Path(temporary) / "figures"
            context = read_context(summary, folder, shards)
            if context is None:
                why = " ".join(summary.sentences)
                raise RunError(f"there is nothing to show of {runs or 'the runs'}: {why}")
            with figures.style():
                text, missing, doubtful = render(context, labels.name)
            shutil.rmtree(kept, ignore_errors=True)
            if folder.is_dir():
                folder.replace(kept)
        if doubtful is not None:
            write_bytes(labels, _listed(doubtful))
        elif _written_with(out, labels):
            labels.unlink()
        write_bytes(out, text.encode())
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error}). Choose a file elsewhere with --out FILE."
        ) from None
    return WrittenReport(out, kept, missing, None if doubtful is None else labels)


def _listed(doubtful: DoubtfulLabels) -> bytes:
    return f"{doubtful.as_csv()}\n".encode()


def _written_with(page: Path, labels: Path) -> bool:
    """Whether the page that is there tells that this command wrote `labels` beside it, as it is."""
    try:
        digest = hashlib.sha256(labels.read_bytes()).hexdigest()
        return f'data-labels="{digest}"'.encode() in page.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return False


def render(context: Context, labels_file: str) -> tuple[str, list[str], DoubtfulLabels | None]:
    """The page, what is missing from it, and the doubtful labels, which `labels_file` lists. Each
    section is worked out into plain data first, and `page.html.j2` lays them out."""
    sections = {
        **overview.sections(context),
        **evaluation.sections(context),
        **dataset.sections(context),
        "reproduce": reproduce.section(context),
    }
    said = [line for section in sections.values() for line in section.get("missing", ())]
    missing = list(dict.fromkeys([*context.missing, *said]))
    images = sum(context.dataset.num_images.values())
    subtitle = [
        count(sum(len(group.runs) for group in context.groups), "run"),
        count(len(context.groups), "group"),
        count(len(context.dataset.classes), "class"),
        *([count(images, "image")] if images else []),
    ]
    shown = {"subtitle": subtitle, "missing": missing, "version": __version__, "context": context}
    doubtful = sections["labels"]["doubtful"]
    digest = hashlib.sha256(_listed(doubtful)).hexdigest() if doubtful else ""
    shown |= {"labels_file": labels_file, "labels_digest": digest}
    text = environment().get_template("page.html.j2").render(sections | shown)
    return text, missing, doubtful


def environment() -> Environment:
    """Nothing that a template prints acts: no tag, no control character, no change of direction."""
    found = templates.environment(
        "hpc_mlp.reporting",
        lambda value: printable(value, keep="\n"),
        autoescape=True,
        lstrip_blocks=True,
    )
    found.filters["count"] = count
    found.filters["prose"] = _prose
    # Keys, not numbers.
    found.filters["breakable"] = lambda title: Markup(
        re.sub(r"(?<=[a-z])\.(?=[a-z])", ".<wbr>", escape(printable(title)))
    )
    return found


def _prose(text: str) -> Markup:
    """A percentage is not parted at the end of a line, and commands stand out."""
    whole = re.sub(r"(?<=\d) (?=%)", "\u00a0", escape(printable(text, keep="\n")))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", whole))
