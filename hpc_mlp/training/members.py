"""What is known of each run while its bank trains: history, best epoch, whether and why it stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hpc_mlp.plan import RunSpec
from hpc_mlp.runs import Json, RunFolder


@dataclass
class Member:
    spec: RunSpec
    folder: RunFolder
    history: list[Json] = field(default_factory=list)  # the lines of metrics.jsonl
    best_epoch: int = 0
    stopped: str | None = None  # "epochs", "early", "max_seconds", "diverged"
    seconds: float = 0.0  # of training and validation so far, over all attempts

    def state(self) -> Json:
        """JSON for the checkpoint."""
        return {
            "history": self.history,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }

    def restore(self, state: Json) -> None:
        self.history = list(state["history"])
        self.best_epoch = state["best_epoch"]
        self.stopped = state["stopped"]
        self.seconds = state["seconds"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The metrics line of the best epoch."""
        return self.history[self.best_epoch - 1] if self.best_epoch else None

    @property
    def epoch_seconds(self) -> float:
        """What the present epoch has taken so far, over all attempts."""
        return self.seconds - sum(float(line["seconds"]) for line in self.history)

    def finish_epoch(self, line: Json) -> bool:
        """Take in an epoch's line; decide whether the run goes on. True if this is the best epoch so far."""
        self.history.append(line)
        train = self.spec.config.train
        epoch, loss = line["epoch"], line["val_loss"]
        if not (math.isfinite(loss) and math.isfinite(line["train_loss"])):
            self.stopped = "diverged"
            return False
        improved = self.best is None or loss < self.best["val_loss"]
        if improved:
            self.best_epoch = epoch
        if epoch >= train.epochs:
            self.stopped = "epochs"
        elif train.early_stopping and epoch - self.best_epoch >= train.patience:
            self.stopped = "early"
        elif train.max_seconds is not None and self.seconds >= train.max_seconds:
            self.stopped = "max_seconds"
        return improved

    def result(
        self, test: Json | None, num_parameters: int, num_images: int, device: str, bank_size: int
    ) -> Json:
        """result.json; `num_images`: size of the training split."""
        epochs = len(self.history)
        best = self.best or {}
        return {
            "status": "diverged" if self.stopped == "diverged" else "done",
            "stopped": self.stopped,
            "epochs_run": epochs,
            "best_epoch": self.best_epoch,
            "best_val_loss": best.get("val_loss"),
            "best_val_accuracy": best.get("val_accuracy"),
            "test": test,
            "num_parameters": num_parameters,
            "seconds": self.seconds,
            "images_per_second": epochs * num_images / self.seconds if self.seconds else 0.0,
            "device": device,
            "bank_size": bank_size,
        }
