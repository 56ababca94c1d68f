"""What is known of each run while its bank trains: history, best epoch, why it stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.registry import own
from hpc_mlp.runs.folder import Json, RunFolder
from hpc_mlp.runs.monitor import Monitor, best_line

# What of a member its checkpoint holds, beside the data mode, which this session may choose.
_KEPT = ("history", "best_epoch", "stopped", "seconds", "images")


@dataclass
class Member:
    spec: RunSpec
    folder: RunFolder
    # The lines of metrics.jsonl.
    history: list[Json] = field(default_factory=list)
    best_epoch: int = 0
    # "epochs", "early", "max_seconds", "diverged"
    stopped: str | None = None
    # Of training and validation so far, over all sessions.
    seconds: float = 0.0
    # Trained on in the epochs of `history`.
    images: int = 0
    # "resident" or "streaming": the order of the images depends on it
    data_mode: str = ""

    def state(self) -> Json:
        """JSON for the checkpoint."""
        return {name: getattr(self, name) for name in (*_KEPT, "data_mode")}

    def restore(self, state: Json) -> None:
        for name in _KEPT:
            setattr(self, name, state[name])
        # Planned with fewer epochs when it was written (see `runs.extend`).
        if self.stopped == "epochs" and len(self.history) < self.spec.config.train.epochs:
            self.stopped = self._ended(len(self.history))

    @property
    def best(self) -> dict[str, Any] | None:
        """The metrics line of the best epoch."""
        return self.history[self.best_epoch - 1] if self.best_epoch else None

    @property
    def epoch_seconds(self) -> float:
        """What the present epoch has taken so far, over all sessions."""
        return self.seconds - sum(float(line["seconds"]) for line in self.history)

    @property
    def seconds_left(self) -> float:
        """Until `train.max_seconds`."""
        limit = self.spec.config.train.max_seconds
        return math.inf if limit is None else limit - self.seconds

    @property
    def paused(self) -> bool:
        """Whether it has come as far as it is to go for now, and may go on later."""
        until = self.spec.until
        return not self.stopped and until is not None and len(self.history) >= until

    @property
    def metrics(self) -> list[str]:
        """Names of the user's own."""
        return list(own("metric", self.spec.plugins))

    @property
    def monitor(self) -> Monitor:
        name = self.spec.config.train.monitor
        found = own("metric", self.spec.plugins).get(name)
        return Monitor(name, found is None or found.higher_is_better)

    def finish_epoch(self, line: Json, images: int, *, cut: bool = False) -> bool:
        """Take in the line of an epoch of so many images; decide whether the run goes on. `cut`:
        its time was up within this epoch. True if this is the best epoch so far."""
        self.history.append(line)
        self.images += images
        epoch: int = line["epoch"]
        loss: float = line["val_loss"]
        if not (math.isfinite(loss) and math.isfinite(line["train_loss"])):
            self.stopped = "diverged"
            return False
        best = best_line(self.history, self.monitor)
        self.best_epoch = best["epoch"] if best else 0
        self.stopped = "max_seconds" if cut else self._ended(epoch)
        return self.best_epoch == epoch

    def _ended(self, epoch: int) -> str | None:
        """Why the run ends after this epoch; None where it goes on."""
        train = self.spec.config.train
        if epoch >= train.epochs:
            return "epochs"
        if train.early_stopping and epoch - self.best_epoch >= train.patience:
            return "early"
        return "max_seconds" if self.seconds_left <= 0 else None

    def result(
        self,
        measured: Mapping[str, Json],
        num_parameters: int,
        device: str,
        bank_size: int,
        temperature: float | None = None,
    ) -> Json:
        """result.json. `measured`: "test", and of a fold maybe "held_out"; empty where there were
        no weights to test. `temperature`: see `runs.calibration`."""
        best, status = self.best or {}, "diverged" if self.stopped == "diverged" else "done"
        return {
            "status": "halved" if self.paused else status,
            "stopped": self.stopped or "halved",
            "epochs_run": len(self.history),
            "best_epoch": self.best_epoch,
            "best_val_loss": best.get("val_loss"),
            "best_val_accuracy": best.get("val_accuracy"),
            "best_val_f1": best.get("val_f1"),
            **({"best_val_metrics": best["metrics"]} if "metrics" in best else {}),
            "test": measured.get("test"),
            **{key: found for key, found in measured.items() if key != "test"},
            "temperature": temperature,
            "num_parameters": num_parameters,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds if self.seconds else 0.0,
            "device": device,
            "bank_size": bank_size,
        }
