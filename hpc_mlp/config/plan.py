"""What to run: variants × seeds × swept values → a list of `RunSpec`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.loading import (
    Tree,
    build_config,
    check_key,
    chosen_file,
    merge,
    read_layers,
    read_toml,
    set_key,
)
from hpc_mlp.config.plugins import Plugin, read_plugin
from hpc_mlp.config.registry import check_names
from hpc_mlp.config.sections import AugmentConfig, Config
from hpc_mlp.errors import UserError
from hpc_mlp.files.digest import file_sha256

ALL = ("baseline", "dropout", "batchnorm", "dropout_batchnorm")


# How several processes train: each its part of the runs, or of each batch.
Parallel = Literal["auto", "members", "data"]
LogFormat = Literal["auto", "text", "json"]


@dataclass(frozen=True)
class TrainOptions:
    """How runs are trained, whatever they are: nothing of it is part of a run. `overwrite`: anew,
    also those that are complete; `extend`: those that were planned with fewer epochs too (see
    `runs.extend`). `log_format` is that of the progress."""

    cpu: bool = False
    parallel: Parallel = "auto"
    overwrite: bool = False
    log_format: LogFormat = "auto"
    extend: bool = False

    def __post_init__(self) -> None:
        if self.extend and self.overwrite:
            raise UserError("--extend keeps what --overwrite trains anew: give one of them.")


@dataclass(frozen=True)
class SearchRole:
    """What a run is to a search (see `config.search`): one of its trials, or `final`, which is
    trained with the values of the winner. `space`: key → range in words, as far as the variant
    leaves keys free; `trials`: as asked for; `draw`: the seed of the points. `trial`: the number of
    the trial whose values the run has; None of a final run while nobody has won."""

    space: dict[str, str]
    trials: int
    halving: int | None = None
    draw: int = 0
    trial: int | None = None
    final: bool = False


@dataclass(frozen=True)
class RunSpec:
    """One run to train: `name` is its folder below RUNS."""

    name: str
    variant: str
    seed: int
    config: Config
    # Dotted key → this run's value.
    swept: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    # Of the file that `model.pretrained` names.
    pretrained_sha256: str | None = None
    search: SearchRole | None = None
    # The epochs after which it leaves its bank for now, with a checkpoint.
    until: int | None = None
    # Of `config.data.folds`, from 0; None without a cross-validation.
    fold: int | None = None

    @property
    def is_trial(self) -> bool:
        """Of a search: the test images are not for it."""
        return self.search is not None and not self.search.final


@dataclass(frozen=True)
class Variant:
    """A named delta over the defaults. `fixed` keys are what makes the variant what it is: neither
    `--config` nor `--set` changes them. `plugins` are Python files that register models and
    more."""

    name: str
    tree: Tree
    fixed: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()


def splits_batches(
    parallel: Parallel, specs: Sequence[RunSpec], processes: int, *, gpu: bool
) -> bool:
    """Whether `processes` share each batch of `specs`, rather than the runs being dealt out to
    them.

    "auto" does so where there are fewer runs than processes, but on GPUs never for MLPs, even if
    some then have nothing to do: an MLP's step is bound by the memory traffic of its weights, which
    each GPU would move in full. Four runs of 12288-512-256-10 on 8 GPUs would take 5 to 7 times as
    long as on one of them (predicted, not measured)."""
    if parallel != "auto":
        return parallel == "data"
    mlps = gpu and all(spec.config.model.kind in ("mlp", "residual_mlp") for spec in specs)
    return 0 < len(specs) < processes and not mlps


def load_variant(name: str) -> Variant:
    """A shipped variant by name, or the user's own file by path (`my_variant.toml`)."""
    path = chosen_file("variants", "variant", name, "all")
    tree = read_toml(path)
    fixed = _strings(tree, "fixed", path)
    plugins = _plugins(tree, path)
    for key in fixed:
        check_key(key, str(path))
    build_config(tree, str(path))
    stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", path.stem)
    return Variant(stem, tree, tuple(fixed), plugins)


def _strings(tree: Tree, key: str, path: Path) -> list[str]:
    """Taken out of the tree."""
    found = tree.pop(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UserError(f"{path}: {key} must be a list of strings.")
    return found


def _plugins(tree: Tree, path: Path) -> tuple[Plugin, ...]:
    names = _strings(tree, "plugins", path)
    return tuple(read_plugin((path.parent / name).resolve()) for name in names)


def parse_variants(text: str) -> list[Variant]:
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        names += ALL if part == "all" else [part] if part else []
    if not names:
        raise UserError("--variants is empty: give names such as baseline,dropout or all.")
    return check_distinct([load_variant(name) for name in dict.fromkeys(names)])


def check_distinct(variants: list[Variant]) -> list[Variant]:
    """`variants`; UserError where two have the same name."""
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--variants names two variants called {name!r}: rename one of them.")
    return variants


def parse_seeds(text: str) -> list[int]:
    """`"0-4"` → 0..4, `"0,3"` → 0 and 3, and mixtures."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise UserError(f"--seeds {text!r}: write numbers and ranges, such as 0-4 or 0,3.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 100_000 or last >= 2**31:
            raise UserError(
                f"--seeds {text!r}: {part.strip()} is not a range of seeds from 0 to 2147483647."
            )
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def augment_config(assignments: Iterable[str]) -> AugmentConfig:
    """`["augment.rotation=15"]` (or `rotation=15`) → the section; over those of variants'
    files."""
    assignments = list(assignments)
    variants = [load_variant(text).tree for text in assignments if _is_file(text)]
    tree: Tree = {"augment": merge(*(variant.get("augment", {}) for variant in variants))}
    texts = [
        text if text.startswith("augment.") else f"augment.{text}"
        for text in assignments
        if not _is_file(text)
    ]
    for key, values in parse_set(texts).items():
        if len(values) > 1:
            raise UserError(f"--augment {key}: give one value.")
        set_key(tree, key, values[0])
    return build_config(tree, "--augment").augment


def augment_plugins(assignments: Iterable[str]) -> list[Plugin]:
    """Of the variants' files among them."""
    return [
        plugin for text in assignments if _is_file(text) for plugin in load_variant(text).plugins
    ]


def _is_file(assignment: str) -> bool:
    return assignment.endswith(".toml") and "=" not in assignment


def plan_runs(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    config_files: Sequence[Path] = (),
    sets: dict[str, list[Any]] | None = None,
) -> list[RunSpec]:
    """Every combination as a validated `RunSpec`, seeds and then folds innermost. Names are
    unique."""
    sets = sets or {}
    common = read_layers(config_files)
    shared = [plugin for path in config_files for plugin in _plugins(read_toml(path), path)]
    check_free("--set", sets, variants)
    specs: list[RunSpec] = []
    for variant in variants:
        free = {key: values for key, values in sets.items() if key not in variant.fixed}
        swept = [key for key, values in free.items() if len(values) > 1]
        plugins = tuple({file.sha256: file for file in (*variant.plugins, *shared)}.values())
        tree = merge(variant.tree, _without(common, variant.fixed))
        for combination in itertools.product(*free.values()):
            values = dict(zip(free, combination, strict=True))
            run_tree = merge(tree)
            for key, value in values.items():
                set_key(run_tree, key, value)
            config = build_config(run_tree, f"variant {variant.name}")
            if not plugins:
                check_names(config, f"variant {variant.name}")
            here = {key: values[key] for key in swept}
            suffix = "".join(f"-{key}={_plain(value)}" for key, value in here.items())
            weights = pretrained_sha256(config)
            folds = range(config.data.folds) if config.data.folds > 1 else [None]
            specs += [
                RunSpec(
                    f"{variant.name}-s{s}{suffix}" + ("" if fold is None else f"-f{fold}"),
                    variant.name,
                    s,
                    config,
                    here,
                    plugins,
                    weights,
                    fold=fold,
                )
                for s in seeds
                for fold in folds
            ]
    if len({spec.name for spec in specs}) != len(specs):
        raise UserError("--set: two of the swept values are the same.")
    return specs


def check_free(option: str, keys: Iterable[str], variants: Sequence[Variant]) -> None:
    """UserError where one of the keys is fixed in all of the variants."""
    for key in keys:
        if all(key in variant.fixed for variant in variants):
            names = ", ".join(variant.name for variant in variants)
            raise UserError(
                f"{option} {key}: this is what makes {names}; choose another variant or write your "
                "own."
            )


def make_specs(
    variants: str = "all",
    seeds: str = "0",
    config_files: Sequence[Path] = (),
    sets: Iterable[str] = (),
) -> list[RunSpec]:
    """From a user's `--variants`, `--seeds`, `--config` and `--set` to what is to be run."""
    return plan_runs(parse_variants(variants), parse_seeds(seeds), config_files, parse_set(sets))


def pretrained_sha256(config: Config) -> str | None:
    """sha256 of the file that `model.pretrained` names; None where there is none."""
    name = config.model.pretrained
    if not isinstance(name, str):
        return None
    try:
        return file_sha256(Path(name))
    except OSError:
        return None


def _without(tree: Tree, keys: Sequence[str]) -> Tree:
    return {
        section: {key: value for key, value in table.items() if f"{section}.{key}" not in keys}
        for section, table in tree.items()
    }


def _plain(value: Any) -> str:
    """A value as part of a folder name."""
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text)
