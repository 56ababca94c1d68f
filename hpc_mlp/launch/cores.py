"""On how many processes the cores of this machine train a list of runs, and how they share them
with others. No torch.

A training step of an MLP gains less from a second thread than two runs gain from a core each.
Seconds of an epoch of four runs on 2 Zen 5 cores, one process with two threads against two with
one: Fashion-MNIST 784-512-256-10, batch 32, 5.8 and 4.6; photographs 12288-512-256-10, batch 32,
2.8 and 2.3; 784-2048-1024-10, batch 256, 16.5 and 14.7. Where others use the cores too, the gain is
larger by far: threads of one step wait for each other, processes do not."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise

from hpc_mlp.config.plan import RunSpec
from hpc_mlp.data.manifest import Manifest, resident_bytes
from hpc_mlp.errors import HpcMlpWarning
from hpc_mlp.machine.memory import cores, num_cpus
from hpc_mlp.machine.ranks import is_launched

# The part of a step that threads do not shorten; 0.37, 0.23 and 0.12 in the three cases above.
SERIAL = 0.2
# Some 4 s of training: with less, starting processes takes longer than it saves.
WORTH_FLOPS = 5e11
# Of a process without its images: torch, weights, optimizer state, activations.
PROCESS_BYTES = 1 << 30
# The part of the threads without an idle core from which on they had better not spin.
CROWDED = 0.25
# Of libgomp's waiting loop, instead of its 300,000.
SPINS = 1000


def share_cores() -> None:
    """Where others keep the cores busy, let threads that wait for each other go to sleep soon: call
    it before torch is imported. By default they spin for milliseconds, which takes the core from
    the very thread that they wait for.

    Seconds of an epoch of one run, Fashion-MNIST 784-512-256-10, on 2 Zen 5 cores, medians of 3:
    2.0, and 8.3 (at worst 19) beside two busy processes; with this 2.7, and 5.4.

    One of several processes started together leaves it alone: it would take the others' start for a
    crowd. Where torch is there already (a notebook that imported it first) nothing can be set any
    more, and a warning says what to do."""
    if is_launched() or "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return
    threads = min(thread_budget(), num_cpus())
    if threads == 1 or _idle_cores() > (1 - CROWDED) * threads:
        return
    if "torch" in sys.modules:
        warnings.warn(
            "others keep the cores busy, and threads that wait for each other will spin. To train "
            f"faster, set GOMP_SPINCOUNT={SPINS} in the environment, or import torch after hpc_mlp "
            "has begun to train.",
            HpcMlpWarning,
            stacklevel=2,
        )
    else:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def _idle_cores() -> float:
    """Of those that this process may use."""
    import psutil

    used = psutil.cpu_percent(interval=0.1, percpu=True)
    return float(sum(1 - used[core] / 100 for core in cores() if core < len(used)))


def thread_budget() -> int:
    """The threads that this command may use: OMP_NUM_THREADS where that is set, else one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(given) if given.isdigit() and int(given) > 0 else num_cpus()


def processes_for(specs: Sequence[RunSpec], manifest: Manifest, *, threads: int, free: int) -> int:
    """How many processes to deal `specs` out to, with `threads` threads and `free` bytes of memory
    for all of them.

    One, unless the runs are MLPs of equal layers, so that every process has the same to do; there
    is enough to do; and each of them can hold the images."""
    models = [spec.config.model for spec in specs]
    if len({(model.kind, model.hidden) for model in models}) != 1 or models[0].kind != "mlp":
        return 1
    if sum(_flops(spec, manifest) for spec in specs) < WORTH_FLOPS:
        return 1
    fits = min(_holding(spec, manifest, free) for spec in specs)
    most = max(1, min(len(specs), threads, fits, free // PROCESS_BYTES))

    def duration(count: int) -> float:
        """Of the process with most to do, by Amdahl's law, in steps on one thread."""
        each = -(-len(specs) // count)
        return round(each * (SERIAL + (1 - SERIAL) / (threads // count)), 6)

    # Of equally quick ones the fewest.
    return min(range(1, most + 1), key=duration)


def _flops(spec: RunSpec, manifest: Manifest) -> float:
    """Of training: 2 for each weight and image forward, 4 backward."""
    widths = [manifest.num_features, *spec.config.model.hidden, len(manifest.classes)]
    weights = sum(inputs * outputs for inputs, outputs in pairwise(widths))
    return 6.0 * weights * manifest.split("train").num_images * spec.config.train.epochs


def _holding(spec: RunSpec, manifest: Manifest, free: int) -> int:
    """How many processes can hold all images: streamed, each more would decode them all again."""
    if spec.config.data.mode == "streaming":
        return 1
    return int(free * spec.config.data.memory_fraction) // max(1, resident_bytes(manifest))
