"""What stands in the files of a run folder, as checked types (see `runs` for the files).

Numbers are finite, shares lie in [0, 1], counts are bounded, tables have the sizes that belong
together. Keys that an older version did not write yet have defaults; a newer one's are left
alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from hpc_mlp.config.plugins import PluginRecord
from hpc_mlp.config.sections import run_identity
from hpc_mlp.files.checked import JsonRecord
from hpc_mlp.runs.calibration import HIGHEST, LOWEST

# JSON has integers without end; those below are exact as float64 too.
_LARGEST = 2**53
MAX_SIDE = 65_536

Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Seconds, rates; None where it was not finite.
Amount = Annotated[float, Field(ge=0.0)] | None


def _bounded(value: Any) -> Any:
    """A free JSON value without integers that no float holds."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("an integer is too large")
    for item in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _bounded(item)
    return value


FreeTable = Annotated[dict[str, Any], AfterValidator(_bounded)]


# Of a metric of the user's own: it becomes a column's, and a part of a file's.
MetricName = Annotated[str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,99}\z")]
OwnMetrics = dict[MetricName, float | None]


class EpochLine(JsonRecord):
    """A line of metrics.jsonl. None where a number was not finite, or is not known. `metrics`: of
    the user's own, on validation."""

    epoch: Annotated[Count, Field(ge=1)]
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: Share | None = None
    # Macro F1 over all classes of the dataset.
    val_f1: Share | None = None
    learning_rate: float | None = None
    images_per_second: Amount = None
    seconds: Amount = None
    metrics: OwnMetrics = Field(default_factory=dict)


class ClassMetrics(JsonRecord):
    name: str = Field(alias="class")
    precision: Share
    recall: Share
    f1: Share
    support: Count


class TestMetrics(JsonRecord):
    """ "test" in result.json. `confusion_matrix`: counts [K][K], true row, predicted column."""

    num_images: Count
    loss: float | None
    accuracy: Share
    precision: Share
    recall: Share
    f1: Share
    per_class: tuple[ClassMetrics, ...]
    confusion_matrix: tuple[tuple[Count, ...], ...]
    # Expected calibration error; with the run's temperature, loss and error.
    ece: Share | None = None
    calibrated_loss: float | None = None
    calibrated_ece: Share | None = None
    # Of the user's own.
    metrics: OwnMetrics = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> TestMetrics:
        matrix = self.confusion_matrix
        if any(len(row) != len(matrix) for row in matrix):
            raise ValueError("confusion_matrix is not square")
        if sum(map(sum, matrix)) != self.num_images:
            raise ValueError("confusion_matrix does not add up to num_images")
        if len(self.per_class) != len(matrix):
            raise ValueError(
                f"per_class has {len(self.per_class)} classes, confusion_matrix {len(matrix)}"
            )
        return self


class Result(JsonRecord):
    """result.json"""

    # "halved": a trial of a search that was not promoted, and may go on.
    status: Literal["done", "diverged", "halved"]
    stopped: str | None = None
    epochs_run: Count = 0
    best_epoch: Count | None = None
    best_val_loss: float | None = None
    best_val_accuracy: Share | None = None
    best_val_f1: Share | None = None
    # Of the user's own.
    best_val_metrics: OwnMetrics = Field(default_factory=dict)
    # Of a fold: on the archive's own test split where it brought one, else on what is held out.
    test: TestMetrics | None = None
    # Of a fold, where `test` is of the archive's own.
    held_out: TestMetrics | None = None
    # Fitted on the validation images; None where it could not be, or by an older version.
    temperature: Annotated[float, Field(ge=LOWEST, le=HIGHEST)] | None = None
    num_parameters: Count | None = None
    seconds: Amount = None
    images_per_second: Amount = None
    device: str | None = None
    bank_size: Count | None = None


class Failed(JsonRecord):
    """failed.json"""

    error: str = ""
    traceback: str = ""


class Dataset(JsonRecord):
    """ "dataset" in config.json. `mean`, `std`: by channel, of training pixels in 0..1; None in
    runs of before these keys."""

    path: str = ""
    digest: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: tuple[Side, Side]
    channels: Literal[1, 3]
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    encoding: str = "png"
    max_pixels: Annotated[Count, Field(ge=1)] | None = None
    source: str | None = None
    num_images: dict[str, Count] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> Dataset:
        for name in ("mean", "std"):
            values: Sequence[float] | None = getattr(self, name)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        return self


class MetricRecord(JsonRecord):
    """A metric of the user's own, in config.json."""

    higher_is_better: bool = True


class RunConfig(JsonRecord):
    """config.json. `config`: {section: {key: value}}; it is checked where it is used
    (`config.loading.build_config`), as a newer version may have more keys."""

    name: str = ""
    variant: str
    seed: Count
    # Of `data.folds`, from 0.
    fold: Count | None = None
    swept: FreeTable = Field(default_factory=dict)
    # Of a search: the number of the trial whose values it has.
    trial: Count | None = None
    config: Annotated[dict[str, dict[str, Any]], AfterValidator(_bounded)]
    # Up to 0.1 the paths alone.
    plugins: tuple[PluginRecord | str, ...] = ()
    # That the plugins register.
    metrics: dict[MetricName, MetricRecord] = Field(default_factory=dict)
    pretrained_sha256: str | None = None
    dataset: Dataset
    num_parameters: Count | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    device: str | None = None
    hostname: str | None = None

    def identity(self) -> dict[str, Any]:
        """See `run_identity`; a plugin's path stands for a sha256 that is not known."""
        plugins = [plugin if isinstance(plugin, str) else plugin.sha256 for plugin in self.plugins]
        return run_identity(
            self.config, self.seed, self.dataset.digest, plugins, self.pretrained_sha256, self.fold
        )

    @property
    def plugin_records(self) -> tuple[PluginRecord, ...]:
        return tuple(plugin for plugin in self.plugins if isinstance(plugin, PluginRecord))

    def value(self, dotted: str) -> Any:
        """`config.value("train.monitor")`; None where there is no such key."""
        found: Any = self.config
        for part in dotted.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found


# Of a run whose config.json says nothing.
UNKNOWN = RunConfig(
    variant="",
    seed=0,
    config={},
    dataset=Dataset(digest="", classes=("",), image_size=(1, 1), channels=3),
)
