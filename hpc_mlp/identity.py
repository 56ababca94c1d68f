"""Which runs are the same run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hpc_mlp.config import differences, run_identity
from hpc_mlp.errors import UserError
from hpc_mlp.plan import RunSpec
from hpc_mlp.runfiles import RunConfig
from hpc_mlp.runs import Json, RunFolder
from hpc_mlp.texts import printable


def identity_of(spec: RunSpec, digest: str) -> Json:
    """Of a run that is to be trained on the dataset `digest`; see `config.run_identity`."""
    tables = spec.config.model_dump(mode="json")
    return run_identity(
        tables, spec.seed, digest, [plugin.sha256 for plugin in spec.plugins], spec.pretrained_sha256
    )


def is_begun(path: Path, spec: RunSpec, digest: str) -> bool:
    """Whether the run is in the folder `path` already. UserError where that holds another one: its configuration, its
    dataset or a file of its code differs."""
    old = RunFolder(path).config()
    if old is None:
        return False
    before, now = old.identity(), identity_of(spec, digest)
    # Runs of before 0.2 do not say which code they were trained with: the same, as far as is known.
    unknown = {
        key
        for key, value in before.items()
        if value is None and key in ("plugins", "model.pretrained.sha256")
    }
    known = [{key: value for key, value in each.items() if key not in unknown} for each in (before, now)]
    changed = [] if known[0].get("plugins") == known[1].get("plugins") else _changed(old, spec)
    lines = differences(*({key: value for key, value in each.items() if key != "plugins"} for each in known))
    if lines := [*changed, *lines]:
        raise UserError(
            f"{printable(path)} holds another run:\n  " + "\n  ".join(map(printable, lines))
            + "\nUse another --runs folder, or --overwrite to train it anew."
        )  # fmt: skip
    return True


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
            yield (f"{name} has changed since the run was trained (sha256 {before[name][:12]}… → "
                   f"{now[name][:12]}…)")  # fmt: skip
    if before == now:
        yield "the plugins stand in another order"
