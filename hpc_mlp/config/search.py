"""Settings that are searched: `--search`, `[search]` in a TOML file → trials as `RunSpec`s.

Trial i has the i-th of the scrambled Sobol points (Owen 1998; `scipy.stats.qmc.Sobol`), a
coordinate for each key in the order of their names: a function of (draw, i) alone, the same for
every variant and any number of trials."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from hpc_mlp.config.assignments import split_outside
from hpc_mlp.config.loading import check_key, get_key, parse_value, read_toml
from hpc_mlp.config.plan import RunSpec, SearchRole, Variant, check_free, parse_seeds, plan_runs
from hpc_mlp.config.sections import Config, identity
from hpc_mlp.errors import UserError, unknown_name

# The folder of the trials below RUNS.
FOLDER = "search"
# Not those that people give to --seeds.
SEEDS = "1000"
_MOST_TRIALS = 10_000
_DIGITS = 4
_GRAMMAR = (
    "write LOW:HIGH, log:LOW:HIGH or choice:A|B|…, such as optim.lr=log:1e-4:1e-1, "
    "model.dropout=0:0.6 or 'model.hidden=choice:[512,256]|[1024,512]'"
)


@dataclass(frozen=True)
class SearchRange:
    """The values of one key: `choices`, or numbers from `low` to `high`, uniform, of `log` their
    logarithms; `whole` ones for a key that takes those."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, u: float) -> Any:
        """Of a coordinate in [0, 1); numbers with four significant digits."""
        if self.choices:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        if self.whole:
            # Each number has an equal part, by their logarithms the part up to the next one.
            bounds = self.low, self.high + 1
        else:
            bounds = self.low, self.high
        if self.log:
            bounds = math.log(bounds[0]), math.log(bounds[1])
        value = bounds[0] + u * (bounds[1] - bounds[0])
        value = math.exp(value) if self.log else value
        if self.whole:
            return min(int(self.high), max(int(self.low), math.floor(value)))
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))

    def text(self) -> str:
        if self.choices:
            return "choice:" + "|".join(json.dumps(value, default=str) for value in self.choices)
        return f"{'log:' if self.log else ''}{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class SettingsSearch:
    """`space`: by key; `trials` of each variant, with `seeds` each; `halving`: of a variant's
    trials one in so many goes on, None: all do; `draw`: the seed of the Sobol points."""

    space: dict[str, SearchRange]
    trials: int
    halving: int | None = None
    seeds: tuple[int, ...] = (1000,)
    draw: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.trials <= _MOST_TRIALS:
            raise UserError(f"--trials {self.trials}: give a number from 1 to {_MOST_TRIALS:,}.")
        if self.halving is not None and self.halving < 2:
            raise UserError(
                f"--halving {self.halving}: one trial in so many goes on, such as 3; 0 lets all of "
                "them."
            )

    def values(self) -> list[dict[str, Any]]:
        """Of each trial."""
        from scipy.stats import qmc

        keys = sorted(self.space)
        # A power of two: of other numbers scipy warns that they are no balanced set.
        points = qmc.Sobol(len(keys), rng=self.draw).random_base2((self.trials - 1).bit_length())
        return [
            {key: self.space[key].at(u) for key, u in zip(keys, point, strict=True)}
            for point in points[: self.trials].tolist()
        ]


def _check_searched(key: str, where: str) -> None:
    check_key(key, where)
    # What decides no result is not searched either.
    same = key.startswith("data.") or key in ("train.epochs", "train.monitor")
    if same or not identity({key: None}):
        raise UserError(f"{where}: {key} is the same for all trials: use --set.")


def parse_range(key: str, text: str, where: str = "--search") -> SearchRange:
    """`"log:1e-4:1e-1"`, `"0:0.6"`, `"choice:[512,256]|[1024,512]"`."""
    _check_searched(key, where)
    kind, _, rest = text.strip().partition(":")
    if kind == "choice":
        choices = tuple(parse_value(part) for part in split_outside(rest, "|"))
        return _choices(choices, f"{where} {key}={text}")
    log = kind == "log"
    parts = (rest if log else text).split(":")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise UserError(f"{where} {key}={text}: {_GRAMMAR}.") from None
    return _numbers(key, low, high, log, f"{where} {key}={text}")


def _choices(choices: tuple[Any, ...], where: str) -> SearchRange:
    if len(choices) < 2 or any(choices.count(choice) > 1 for choice in choices):
        raise UserError(f"{where}: give two different values or more, such as choice:A|B.")
    return SearchRange(choices=choices)


def _numbers(key: str, low: float, high: float, log: bool, where: str) -> SearchRange:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{where}: two finite numbers are wanted, the lower one first.")
    if log and low <= 0:
        raise UserError(f"{where}: a logarithm needs numbers above 0.")
    default = get_key(Config().model_dump(), key)
    if isinstance(default, bool | str):
        raise UserError(f"{where}: {key} takes no number; {_GRAMMAR}.")
    whole = isinstance(default, int)
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{where}: {key} takes whole numbers.")
    return SearchRange(low, high, log, whole)


def make_range(key: str, value: Any, where: str) -> SearchRange:
    """Of a TOML or Python value: text as of --search, two numbers of a tuple, a list of choices."""
    if isinstance(value, str):
        return parse_range(key, value, where)
    _check_searched(key, where)
    ends = value if isinstance(value, tuple) and len(value) == 2 else ()
    if ends and all(isinstance(end, Real) for end in ends):
        return _numbers(key, float(ends[0]), float(ends[1]), False, f"{where} {key}={value}")
    if isinstance(value, list):
        return _choices(tuple(value), f"{where} {key}={value}")
    raise UserError(f"{where} {key}={value!r}: {_GRAMMAR}.")


def read_search(
    files: Sequence[Path] = (),
    words: Iterable[str] | Mapping[str, Any] = (),
    trials: int | None = None,
    halving: int | None = None,
    seeds: str | None = None,
) -> SettingsSearch | None:
    """`[search]` of the TOML files, over it what `--search` and the other options say (`words`: or
    key → value, see `make_range`). None where nothing is searched. `halving` 0: none."""
    space: dict[str, SearchRange] = {}
    told: dict[str, Any] = {}
    for path in files:
        where = f"{path} [search]"
        for key, value in _leaves(read_toml(path).get("search", {}), where):
            if "." in key:
                space[key] = make_range(key, value, where)
            elif key in ("trials", "halving", "draw"):
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    raise UserError(f"{where}: {key} = {value!r}: a whole number is wanted.")
                told[key] = value
            elif key == "seeds":
                told[key] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            else:
                known = ["trials", "halving", "seeds", "draw"]
                raise UserError(f"{where}: {unknown_name('key', key, known)}")
    if isinstance(words, Mapping):
        space |= {key: make_range(key, value, "search") for key, value in words.items()}
    else:
        for word in words:
            key, sign, text = word.partition("=")
            if not sign or not text.strip():
                raise UserError(f"--search {word!r}: {_GRAMMAR}.")
            space[key.strip()] = parse_range(key.strip(), text)
    given = {"trials": trials, "halving": halving, "seeds": seeds}
    told |= {key: value for key, value in given.items() if value is not None}
    if not space:
        if given := {key: value for key, value in told.items() if value}:
            option = next(iter(given)).replace("seeds", "search-seeds")
            raise UserError(f"--{option} belongs to a search: {_GRAMMAR} of --search.")
        return None
    if "trials" not in told:
        raise UserError("--search: say how many settings are tried, such as --trials 27.")
    chosen = tuple(parse_seeds(told.get("seeds", SEEDS)))
    return SettingsSearch(
        space, told["trials"], told.get("halving") or None, chosen, told.get("draw", 0)
    )


def _leaves(tree: Any, where: str, above: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: this must be a table.")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, where, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def plan_search(
    search: SettingsSearch | None,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    config_files: Sequence[Path] = (),
    sets: dict[str, list[Any]] | None = None,
) -> list[RunSpec]:
    """`plan_runs`, where something is searched: of each variant its trials, then the runs with
    fresh `seeds` that the winner's values are set in (see `resolved`). Trials of equal values, as
    a variant has them whose searched keys are `fixed`, are one: the first."""
    if search is None:
        return plan_runs(variants, seeds, config_files, sets)
    sets = sets or {}
    for key, several in sets.items():
        if len(several) > 1 or key in search.space:
            both = "is searched and set" if key in search.space else "has several values"
            raise UserError(f"--set {key} {both}: search it with choice:A|B, or set one value.")
    if used := sorted({*seeds} & {*search.seeds}):
        raise UserError(
            f"--seeds {used[0]}: the search uses this seed, and the winner is trained with fresh "
            "ones. Choose other --seeds or --search-seeds."
        )
    check_free("--search", search.space, variants)
    check_free("--set", sets, variants)
    drawn, specs = search.values(), list[RunSpec]()
    for variant in variants:
        keys = [key for key in sorted(search.space) if key not in variant.fixed]
        space = {key: search.space[key].text() for key in keys}
        role = SearchRole(space, search.trials, search.halving, search.draw)
        seen: list[dict[str, Any]] = []
        mine = {key: value for key, value in sets.items() if key not in variant.fixed}
        for trial, values in enumerate(drawn):
            own = {key: values[key] for key in keys}
            if own in seen:
                continue
            seen.append(own)
            given = mine | {key: [value] for key, value in own.items()}
            specs += [
                replace(
                    spec,
                    name=f"{FOLDER}/{spec.name}-t{trial:03d}",
                    swept=own,
                    search=replace(role, trial=trial),
                )
                for spec in plan_runs([variant], search.seeds, config_files, given)
            ]
        finals = plan_runs([variant], seeds, config_files, mine)
        if any(spec.fold is not None for spec in finals):
            raise UserError(
                "--search and --folds: images that one fold holds out would help to choose in the "
                "others. Search first, then give the winner's values to --set with --folds."
            )
        specs += [replace(spec, search=replace(role, final=True)) for spec in finals]
    return specs
