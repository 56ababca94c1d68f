"""Training by `hpc-mlp train OUT` and `accelerate launch -m hpc_mlp.train OUT`."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpc_mlp.cli.options import Command, PlannedRuns, run_options
from hpc_mlp.errors import UserError
from hpc_mlp.machine import ranks

if TYPE_CHECKING:
    from hpc_mlp.config.plan import RunSpec, TrainOptions
    from hpc_mlp.data.remote import DatasetLocation
    from hpc_mlp.terminal.console import Console


@click.command(cls=Command)
@click.argument("out")
@run_options
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes to start here. [default: one per GPU; on CPUs as many as the runs can use, see "
    "above]",
)
def train(out: str, planned: PlannedRuns, options: TrainOptions, processes: int | None) -> None:
    """Train variants × seeds on the shards folder OUT, all at once, and show the table.

    What is complete is not trained again; what was interrupted goes on where it was.

    On CPUs, MLPs of equal widths are dealt out over the cores (OMP_NUM_THREADS of them, if it is
    set), where there is enough to do and each process can hold the images. Their results are the
    same for any number.

    \b
    hpc-mlp train shards
    hpc-mlp train shards --variants all,cnn --seeds 0-4 --set train.epochs=20
    hpc-mlp train shards --variants dropout --set model.dropout=0.1:0.5:0.1
    hpc-mlp train shards --search optim.lr=log:1e-4:1e-1 --trials 9 --halving 3
    accelerate launch --num_processes 2 -m hpc_mlp.train shards --variants all
    hpc-mlp train shards --log-format json > log.jsonl

    With --log-format json every line is an object: time, event, and for the event "run" (an epoch
    or a run has ended) what `status --format json` tells of it: name, variant, seed, state, detail,
    epoch, epochs, loss, val_loss, val_accuracy, learning_rate, best_epoch, best_val_loss,
    test_accuracy, images_per_second, seconds_left, node, and of a job time_left, requeues, job,
    log, submission; for the event "note": text. What is unknown is null. No table follows."""
    from hpc_mlp.data.remote import dataset_location, is_url
    from hpc_mlp.files.wrong_path import want_shards
    from hpc_mlp.launch.cores import share_cores
    from hpc_mlp.runs.folder import is_complete

    if not is_url(out):
        want_shards(Path(out), "train")
    shards, specs, runs = dataset_location(out), planned.specs(), planned.runs
    again = options.overwrite or options.extend
    todo = [s for s in specs if again or not is_complete(runs / s.name)]
    if os.environ.get("ACCELERATE_USE_CPU") == "True":
        options = replace(options, cpu=True)
    num_processes, threads = _wanted(processes, options, todo), None
    if num_processes is None:
        num_processes, threads = _on_cores(shards, specs, len(todo))
    # A single thread waits for nobody.
    if threads != 1:
        share_cores()
    if threads and num_processes > 1:
        options = replace(options, parallel="members")
    elif threads:
        # Read when torch is imported.
        os.environ["OMP_NUM_THREADS"] = str(threads)
    plan = TrainPlan(shards, specs, runs, options)
    sys.exit(plan.train() if num_processes == 1 else plan.train_in(num_processes, threads))


@dataclass(frozen=True)
class TrainPlan:
    """What a `train` command does: the processes that it starts read none of it again."""

    shards: DatasetLocation
    specs: list[RunSpec]
    runs: Path
    options: TrainOptions

    def train(self) -> int:
        """In this process, maybe one of several; the exit code. The first shows the table."""
        from hpc_mlp.terminal.console import Console

        code = 0 if self._is_done(Console(stderr=True)) else self._train()
        # A search that failed has none yet.
        trained = any((self.runs / spec.name).exists() for spec in self.specs if not spec.is_trial)
        shown = trained and code in (0, 1) and self.options.log_format != "json"
        if shown and not ranks.rank():
            from hpc_mlp.reporting.table import print_table

            print_table(self.runs, Console())
        return code

    def _train(self) -> int:
        from hpc_mlp.machine.command_line import importing

        with importing():
            from hpc_mlp.machine import stop
            from hpc_mlp.training.session import train_specs

        with stop.enforced():
            return train_specs(self.shards, self.specs, self.runs, self.options)

    def _is_done(self, console: Console) -> bool:
        """Whether every run is complete, which is then said: without torch, whose import takes
        longer than the look. UserError where a folder holds another run."""
        from hpc_mlp.data.remote import load_manifest
        from hpc_mlp.runs.folder import RunFolder, is_complete
        from hpc_mlp.runs.identity import complete_note, unfinished

        again = self.options.overwrite or self.options.extend
        # Of a search trials may never begin.
        kept = [spec for spec in self.specs if not spec.is_trial]
        if again or any(spec.plugins or not is_complete(self.runs / spec.name) for spec in kept):
            return False
        digest = load_manifest(self.shards).digest
        searched = any(spec.is_trial for spec in self.specs)
        if searched:
            from hpc_mlp.runs.brackets import next_runs, stand, write_records

            missing, _ = next_runs(self.specs, self.runs, digest)
            if not missing and not ranks.rank():
                write_records(stand(self.specs, self.runs), self.runs)
        else:
            missing = unfinished(self.specs, self.runs, digest)
        if missing:
            return False
        if not ranks.rank():
            for spec in kept:
                if not spec.config.train.keep_checkpoint:
                    RunFolder(self.runs / spec.name).drop_checkpoint()
            console.print(complete_note(len(kept), len(kept), searched=searched), style="dim")
        return True

    def train_in(self, num_processes: int, threads: int | None) -> int:
        """In processes of their own, of `threads` each; their common exit code."""
        from hpc_mlp.launch.spawn import run_processes, tidy
        from hpc_mlp.machine.command_line import COMMAND, command_line

        os.environ[COMMAND] = command_line()
        code = run_processes(
            "hpc_mlp.cli.train", [], num_processes, threads=threads, stdin=pickle.dumps(self)
        )
        tidy(self.runs / spec.name for spec in self.specs)
        return code


def _wanted(wanted: int | None, options: TrainOptions, unfinished: Sequence[RunSpec]) -> int | None:
    """The number of processes that the command line, Accelerate or the GPUs of this machine want; 1
    is this one. None: as the runs want it."""
    from hpc_mlp.config.plan import splits_batches
    from hpc_mlp.machine import gpus
    from hpc_mlp.terminal.text import count

    if ranks.is_launched():
        return 1
    if wanted is not None:
        num_gpus = 0 if options.cpu or wanted == 1 else gpus.count()
        if wanted > num_gpus > 0:
            raise UserError(
                f"--processes {wanted}: this machine shows {count(num_gpus, 'GPU')}, and each "
                f"process needs one of its own. Take --processes {num_gpus}, or add --cpu."
            )
        return wanted
    if os.environ.get("ACCELERATE_USE_CPU") == "True":
        return _asked_of_accelerate()
    # Set by `accelerate launch`, which has decided.
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return 1
    num_gpus = 0 if options.cpu else gpus.count()
    if not splits_batches(options.parallel, unfinished, num_gpus, gpu=True):
        num_gpus = min(num_gpus, max(1, len(unfinished)))
    if num_gpus or options.parallel == "data" or sys.platform != "linux":
        return max(1, num_gpus)
    return None


def _on_cores(
    shards: DatasetLocation, specs: Sequence[RunSpec], unfinished: int
) -> tuple[int, int | None]:
    """The number of processes, and the threads of each where they matter: those of a first start,
    whatever is complete by now, as torch promises the same bits for the same number only."""
    from hpc_mlp.data.remote import load_manifest
    from hpc_mlp.launch.cores import processes_for, thread_budget
    from hpc_mlp.machine.memory import free_machine_memory

    threads = thread_budget()
    if threads == 1 or len(specs) < 2:
        return 1, None
    manifest = load_manifest(shards)
    count = processes_for(specs, manifest, threads=threads, free=free_machine_memory())
    return max(1, min(count, unfinished)), threads // count


def _asked_of_accelerate() -> int:
    """`accelerate launch --cpu --num_processes N` starts a single process (1.15.0: N is only passed
    on to mpirun), so that N has to be read from its command line."""
    import psutil

    parent = psutil.Process().parent()
    words = (
        [word for argument in parent.cmdline() for word in argument.split("=")] if parent else []
    )
    for i, word in enumerate(words[:-1]):
        if word in ("--num_processes", "--num-processes") and words[i + 1].isdigit():
            return int(words[i + 1])
    return 1


@click.command(cls=Command)
def planned() -> None:
    """One of the processes of a `train` command, whose plan is its standard input."""
    from hpc_mlp.launch.spawn import end_with_parent

    end_with_parent()
    plan: TrainPlan = pickle.load(sys.stdin.buffer)
    sys.exit(plan.train())


if __name__ == "__main__":
    planned()
