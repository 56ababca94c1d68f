"""What an H100 would take for the captured step: a prediction, no measurement, from what the step
holds.

    python tests/rehearsal/device.py tools/bench_predict.py [--json FILE]

The graph's nodes are counted on the pretended CUDA runtime, without a GPU; bytes follow from the
layers; times from the assumptions below (optimistic, expected, pessimistic). Where it is far from
what a GPU measures, an assumption is wrong or the step does something that nobody thought of: that
difference is what to look for."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "rehearsal")]

from check_step import LAUNCHES, Rehearsed  # noqa: E402
from device import count, noted  # noqa: E402

# Bytes a µs: 3.0 TB/s, read and written by a device-to-device copy.
BANDWIDTH = 3.0e6
# µs of a small node of a graph, with the gap before it
NODE = (1.5, 2.0, 2.5)
# µs of a small product
PRODUCT = (3.5, 6.0, 10.0)
PRODUCT_SHARE = (
    0.85,
    0.7,
    0.5,
)  # of the bandwidth, for products of 32 rows: bound by the weights that they read
# Of the bandwidth, for the fused update.
UPDATE_SHARE = (0.92, 0.85, 0.75)
# µs: 65,536 elements by one block, 32 dependent rounds
UPDATE_LEAST = 29.0
# Bytes a parameter: gradient, weight and two moments read, weight and two moments written.
FLOOR_BYTES = 28
# Launches that gather and normalise a batch, before the step.
FEED = 2


@dataclass(frozen=True)
class Prediction:
    """Of one step of a bank, batch 32. Times in µs: optimistic, expected, pessimistic."""

    parameters: int
    nodes: int
    products: int
    updates: int
    # Launches outside of the graph.
    outside: int
    floor: float
    times: tuple[float, float, float]


def predict(shape: tuple[int, int, int], seeds: int) -> Prediction:
    test = Rehearsed("all", seeds, shape=shape)
    with noted() as first:
        test.train(0)
    with noted(finish=False) as later:
        test.train(1)
    captured = [line for line in first if line.endswith("captured")]
    products = sum(line.startswith("PRODUCT") for line in captured)
    updates = sum("FusedAdam" in line for line in captured)
    outside = count(later, *LAUNCHES) + FEED
    parameters = sum(p.numel() for p in test.bank.parameters())
    first_layer = sum(
        p.numel() for name, p in test.bank.named_parameters() if "linears.0.weight" in name
    )
    # Weights are read forward and for the gradient of the input (but the first), gradients of
    # weights are written.
    moved = 4 * (3 * parameters - first_layer)
    floor = FLOOR_BYTES * parameters / BANDWIDTH

    def time(i: int) -> float:
        return (
            (len(captured) - products - updates + outside) * NODE[i]
            + max(products * PRODUCT[i], moved / BANDWIDTH / PRODUCT_SHARE[i])
            + max(updates * UPDATE_LEAST, floor / UPDATE_SHARE[i])
        )

    times = (time(0), time(1), time(2))
    return Prediction(parameters, len(captured), products, updates, outside, floor, times)


def main() -> None:
    shapes = {"photos": (3, 64, 64), "fashion": (1, 28, 28)}
    cases = {
        (name, members): predict(shape, members // 4)
        for name, shape in shapes.items()
        for members in (4, 20, 32)
    }
    for (name, members), found in cases.items():
        low, expected, high = (round(time) for time in found.times)
        print(
            f"{name}, {members} members: {found.parameters / 1e6:.1f} M parameters, "
            f"{found.nodes} nodes "
            f"({found.products} products, {found.updates} updates), {found.outside} launches "
            "outside; floor "
            f"{found.floor:.0f} µs; predicted {low} / {expected} / {high} µs a step"
        )
    if "--json" in sys.argv:
        table: dict[str, dict[str, object]] = {}
        for (name, members), found in cases.items():
            table.setdefault(name, {})[str(members)] = asdict(found)
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
