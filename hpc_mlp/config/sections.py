"""Typed configuration: pydantic sections, TOML files as deltas over the defaults, `--set` last.

`Config()` is the notebook's recipe. Every key is described in `configs/default.toml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hpc_mlp.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


def parse_interval(text: str) -> tuple[float | None, int | None]:
    """`"60 s"` → (60.0, None), `"200 steps"` → (None, 200)."""
    number, _, unit = text.strip().partition(" ")
    try:
        if unit in ("s", "seconds") and float(number) > 0:
            return float(number), None
        if unit in ("step", "steps") and int(number) > 0:
            return None, int(number)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not an interval: write seconds ('60 s') or steps ('200 steps')")


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class DataConfig(Section):
    mode: Literal["auto", "resident", "streaming"] = "auto"
    memory_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    shuffle_buffer: Count = 4096
    workers: Annotated[int, Field(ge=0)] = 2
    # Of a cross-validation; 1: the split as it was converted.
    folds: Annotated[int, Field(ge=1, le=100)] = 1


class ModelConfig(Section):
    kind: str = "mlp"
    hidden: tuple[Count, ...] = (512, 256)
    dropout: Rate | tuple[Rate, ...] = 0.5
    batchnorm: bool = False
    activation: Literal["relu", "gelu", "silu", "tanh", "leaky_relu"] = "relu"
    # residual_mlp: number of blocks
    blocks: Count = 4
    # residual_mlp: inner width over outer width
    expansion: Count = 4
    # Cnn: feature maps per stage.
    channels: tuple[Count, ...] = (32, 64, 128)
    # resnet18: true, or the path of a local weights file
    pretrained: bool | str = False
    # For models registered by the user.
    options: dict[str, Any] = Field(default_factory=dict)

    def dropout_rates(self, depth: int) -> tuple[float, ...]:
        """One dropout rate for each of `depth` hidden layers."""
        if not isinstance(self.dropout, tuple):
            return (self.dropout,) * depth
        if len(self.dropout) != depth:
            raise UserError(
                f"model.dropout has {len(self.dropout)} rates for {depth} hidden layers: "
                f"give one number for all, or {depth} numbers."
            )
        return self.dropout


# Where keys are not given: the references' (arXiv 2302.06675 and its code; torch.optim.Muon).
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "lion": {"lr": 1e-4, "betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "nesterov": True},
}


class OptimConfig(Section):
    name: Literal["adam", "adamw", "sgd", "lion", "muon"] = "adam"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    decay_bias_and_norm: bool = True
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Positive = 1e-8
    momentum: Rate = 0.9
    nesterov: bool = False
    clip_norm: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_own(cls, keys: Any) -> Any:
        known = (
            _OPTIMIZER_DEFAULTS.get(str(keys.get("name"))) if isinstance(keys, Mapping) else None
        )
        return {**known, **keys} if known else keys

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("optim.nesterov needs optim.momentum above 0")
        return self


class ScheduleConfig(Section):
    name: Literal["constant", "step", "cosine", "onecycle"] = "constant"
    warmup_epochs: NonNegative = 0.0
    step_epochs: Positive = 3.0
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    final_fraction: Fraction = 0.0
    peak_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3


class AugmentConfig(Section):
    horizontal_flip: Fraction = 0.0
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    shift: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    erasing: Fraction = 0.0
    # Registered by a plugin, in this order.
    custom: tuple[str, ...] = ()


class TrainConfig(Section):
    epochs: Count = 10
    batch_size: Count = 32
    early_stopping: bool = True
    patience: Count = 3
    # Or one that a plugin registers.
    loss: str = "cross_entropy"
    # Which epoch is best: by "loss", "accuracy" or (macro) "f1" of validation, or by a metric that
    # a plugin registers; or the "last". See `runs.monitor.best_line`.
    monitor: str = "loss"
    # tf32: NVIDIA GPUs round the factors of products to 10 bits; elsewhere it is fp32.
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    checkpoint_every: str = "60 s"
    keep_checkpoint: bool = False
    label_smoothing: Rate = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    mixup: NonNegative = 0.0
    ema: Rate = 0.0
    max_seconds: Positive | None = None
    trackers: tuple[Literal["tensorboard"], ...] = ()

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _number_is_seconds(cls, value: Any) -> Any:
        return (
            f"{value:g} s"
            if isinstance(value, int | float) and not isinstance(value, bool)
            else value
        )

    @field_validator("checkpoint_every")
    @classmethod
    def _parses(cls, value: str) -> str:
        parse_interval(value)
        return value

    @model_validator(mode="after")
    def _smoothing_is_of_the_cross_entropy(self) -> TrainConfig:
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(
                f"train.label_smoothing belongs to the cross entropy: set it to 0 with train.loss "
                f"{self.loss!r}, which may smooth labels itself"
            )
        return self


class LaunchConfig(Section):
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_minutes: Count = 240
    nodes: Count = 1
    # Per node.
    gpus_per_job: Annotated[int, Field(ge=0)] = 0
    # Default: one per GPU, or one.
    tasks_per_node: Count | None = None
    cpus_per_task: Count = 2
    memory_gb: Positive | None = None
    array_parallelism: Count | None = None
    max_requeues: Annotated[int, Field(ge=0)] = 100
    # How long before the time limit the checkpoint is asked for.
    signal_seconds: Count = 90
    # e.g. "apptainer exec image.sif python"; default: this interpreter
    python: str | None = None
    setup: tuple[str, ...] = ()
    srun_args: tuple[str, ...] = ()
    # Any other sbatch option.
    sbatch: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """Processes of a job on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_job)


class Config(Section):
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _muon_needs_hidden_weights(self) -> Config:
        widths = {"mlp": self.model.hidden, "cnn": self.model.channels}.get(self.model.kind)
        if self.optim.name == "muon" and widths is not None and len(widths) < 2:
            raise ValueError(
                "optim.name 'muon' updates the weights between hidden layers (the first and the "
                f"last layer's are left to AdamW), and a model of {list(widths)} has none: give it "
                "two hidden layers, or use adamw"
            )
        return self


# Keys that change how a run is carried out, not what comes out of it.
_OPERATIONAL = {
    "data.mode", "data.memory_fraction", "data.workers",
    "train.checkpoint_every", "train.keep_checkpoint", "train.max_seconds", "train.trackers",
}  # fmt: skip


def known_keys() -> list[str]:
    """Every dotted key of the configuration, in order."""
    return list(_defaults())


def flat(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{section: {key: value}} as `{"optim.lr": 0.001, …}`."""
    return {
        f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()
    }


def flatten(config: Config) -> dict[str, Any]:
    """`flat`, of JSON values."""
    return flat(config.model_dump(mode="json"))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a flat configuration that decides a run's result, see `run_identity`."""
    return {
        k: v for k, v in config.items() if not k.startswith("launch.") and k not in _OPERATIONAL
    }


def run_identity(
    config: Mapping[str, Mapping[str, Any]],
    seed: int,
    digest: str,
    plugins: Sequence[str] = (),
    pretrained: str | None = None,
    fold: int | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, flat: two runs of equal identity are the same run.
    `config`: JSON values as config.json has them; keys that an older version lacked have the
    defaults. `digest`: of the dataset. `plugins`, `pretrained`: sha256 of the files of code and of
    first weights; None where that is not known. `fold`: of a cross-validation."""
    files = {"plugins": list(plugins), "model.pretrained.sha256": pretrained}
    known = identity(_defaults() | flat(config)) | {"seed": seed, "dataset.digest": digest} | files
    return known if fold is None else known | {"fold": fold}


@cache
def _defaults() -> dict[str, Any]:
    return flatten(Config())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `optim.lr: 0.001 → 0.01` for what differs between two flat identities."""
    keys = sorted({*old, *new})
    return [
        f"{key}: {old.get(key)!r} → {new.get(key)!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]
