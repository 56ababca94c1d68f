"""Which runs are the same run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.sections import differences, run_identity
from hpc_mlp.errors import UserError, printable
from hpc_mlp.runs.folder import Json, Run, RunFolder
from hpc_mlp.runs.records import RunConfig
from hpc_mlp.terminal.text import count, one_of


def identity_of(spec: RunSpec, digest: str) -> Json:
    """Of a run that is to be trained on the dataset `digest`; see
    `config.sections.run_identity`."""
    tables = spec.config.model_dump(mode="json")
    return run_identity(
        tables,
        spec.seed,
        digest,
        [plugin.sha256 for plugin in spec.plugins],
        spec.pretrained_sha256,
        spec.fold,
    )


ANEW = "Use another --runs folder, or --overwrite to train it anew."


def is_begun(path: Path, spec: RunSpec, digest: str, remedy: str = ANEW) -> bool:
    """Whether the run is in the folder `path` already. UserError, with the `remedy`, where that
    holds another one: its configuration, its dataset or a file of its code differs."""
    old = RunFolder(path).config()
    if old is None:
        return False
    before, now = old.identity(), identity_of(spec, digest)
    # Runs of before 0.2 do not say which files they were trained with.
    if len(old.plugin_records) < len(old.plugins):
        before["plugins"] = now["plugins"]
    if before["model.pretrained.sha256"] is None:
        now["model.pretrained.sha256"] = None
    changed = [] if before.pop("plugins") == now.pop("plugins") else _changed(old, spec)
    if lines := [*changed, *differences(before, now)]:
        raise UserError(
            f"{printable(path)} holds another run:\n  "
            + "\n  ".join(map(printable, lines))
            + f"\n{remedy}"
        )
    return True


def unfinished(specs: Iterable[RunSpec], runs: Path, digest: str) -> list[RunSpec]:
    """Those still to be trained. UserError where a folder holds another run."""
    return [
        spec
        for spec in specs
        if not is_begun(runs / spec.name, spec, digest)
        or RunFolder(runs / spec.name).result() is None
    ]


def complete_note(done: int, total: int, *, searched: bool = False) -> str:
    are, them = one_of(done, "is", "are"), one_of(done, "it", "them")
    anew = "begins the whole search" if searched else f"trains {them}"
    return f"{done:,} of {count(total, 'run')} {are} complete; --overwrite {anew} anew."


def _changed(old: RunConfig, spec: RunSpec) -> Iterable[str]:
    """A line for each plugin that is not the one that the run was trained with."""
    before = {record.name: record.sha256 for record in old.plugin_records}
    now = {plugin.path.name: plugin.sha256 for plugin in spec.plugins}
    for name in {**before, **now}:
        if name not in now:
            yield f"{name} is no longer a plugin of the variant"
        elif name not in before:
            yield f"{name} is a new plugin of the variant"
        elif before[name] != now[name]:
            yield (
                f"{name} has changed since the run was trained (sha256 {before[name][:12]}… → "
                f"{now[name][:12]}…)"
            )
    if before == now:
        yield "the plugins stand in another order"


def once(runs: Sequence[Run], by: Iterable[str] = ()) -> tuple[list[Run], list[str]]:
    """The runs without copies, and a line for each that is left out. A copy has the variant and the
    identity of another and the same values of the keys `by` (which may be such as decide no
    result); of several, the one that still has the name it was trained under counts."""
    keys = list(by)
    found: dict[str, list[Run]] = {}
    for run in runs:
        # What is compared on purpose.
        values = [
            str(run.path.parent) if key == "folder" else run.config.value(key) for key in keys
        ]
        found.setdefault(
            repr((run.variant, sorted(run.config.identity().items()), values)), []
        ).append(run)
    copies: dict[Path, Run] = {}
    for same in found.values():
        first, *others = sorted(same, key=lambda run: (run.path.name != run.config.name, run.name))
        copies |= {run.path: first for run in others}
    kept = [run for run in runs if run.path not in copies]
    lines = [
        f"{run.name} is the same run as {copies[run.path].name} (configuration, dataset and "
        "seed): counted once."
        for run in runs
        if run.path in copies
    ]
    return kept, lines
