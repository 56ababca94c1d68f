"""The model card: what a stranger must know of an exported model. Markdown; no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hpc_mlp.config import Config, flatten, identity
from hpc_mlp.runfiles import TestMetrics
from hpc_mlp.settings import build_config
from hpc_mlp.texts import markdown, markdown_code, printable

if TYPE_CHECKING:
    from hpc_mlp.predict.model import TrainedRun

_MOST_CLASSES = 100

_USE = {
    "onnx": """import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{file}")
classes = json.loads(session.get_modelmeta().custom_metadata_map["hpc_mlp"])["classes"]
images = np.zeros((1, {shape}), np.{dtype})  # values in 0..255
(probabilities,) = session.run(None, {{"images": images}})  # float32 [1, {classes}]""",
    "pt2": """import json, torch
extra = {{"hpc_mlp.json": ""}}
model = torch.export.load("{file}", extra_files=extra).module()
classes = json.loads(extra["hpc_mlp.json"])["classes"]
images = torch.zeros(1, {shape}, dtype=torch.{dtype})  # values in 0..255
probabilities = model(images)  # float32 [1, {classes}]""",
    "safetensors": """import json
from safetensors import safe_open
with safe_open("{file}", "pt") as file:
    about = json.loads(file.metadata()["hpc_mlp"])  # classes, mean, std, model
    weights = {{name: file.get_tensor(name) for name in file.keys()}}
# The model takes float32 [N, {shape}]: (pixels / 255 - mean) / std, and gives logits [N, {classes}].""",
}


def model_card(run: TrainedRun, file: str, format: str, dtype: str) -> str:
    """Markdown: use, data, recipe, metrics, limits."""
    parts = [
        f"# {markdown(run.name)}",
        _summary(run),
        _use(run, file, format, dtype),
        _data(run),
        _recipe(run),
    ]
    parts += [_metrics(run), _limits(run)]
    return "\n\n".join(parts) + "\n"


def is_card(text: str) -> bool:
    return text.startswith("# ") and "trained with hpc-mlp." in text


def _summary(run: TrainedRun) -> str:
    kind = build_config(run.config.config).model.kind
    parameters = "an unknown number of" if (n := run.config.num_parameters) is None else f"{n:,}"
    colour = "RGB" if run.image.channels == 3 else "gray"
    accuracy = f" Test accuracy {_percent(test.accuracy)} %." if (test := _test(run)) else ""
    return (
        f"Classifies {colour} images of {run.image.height}×{run.image.width} pixels into "
        f"{len(run.classes)} classes. Model {markdown_code(kind)}, {parameters} parameters, variant "
        f"{markdown_code(run.config.variant)}, seed {run.config.seed}; trained with hpc-mlp.{accuracy}"
    )


def _use(run: TrainedRun, file: str, format: str, dtype: str) -> str:
    shape = f"{run.image.channels}, {run.image.height}, {run.image.width}"
    code = _USE[format].format(file=printable(file), shape=shape, dtype=dtype, classes=len(run.classes))
    resize = (
        "Images must have this size already. In training they were resized with an antialiased bilinear filter "
        "(Pillow's BILINEAR), regardless of their proportions, EXIF rotation applied, transparency over white."
    )
    classes = ", ".join(markdown(name) for name in run.classes[:_MOST_CLASSES])
    more = f", … ({len(run.classes)} in all, in the file)" if len(run.classes) > _MOST_CLASSES else ""
    return f"## Use\n\n```python\n{code}\n```\n\n{resize}\n\nClasses, in the order of the outputs: {classes}{more}."


def _data(run: TrainedRun) -> str:
    dataset = run.config.dataset
    counts = ", ".join(f"{n:,} {markdown(split)}" for split, n in dataset.num_images.items())
    source = f" from {markdown(dataset.source)}" if dataset.source else ""
    numbers = [", ".join(f"{value:.4f}" for value in values) for values in (run.mean, run.std)]
    return (
        f"## Data\n\nImages{source}: {counts}. Dataset digest {markdown_code(dataset.digest)}, stored as "
        f"{markdown(run.encoding)}. Pixel mean {numbers[0]} and standard deviation {numbers[1]} of the training images "
        f"(0..1, by channel)."
    )


def _recipe(run: TrainedRun) -> str:
    config = build_config(run.config.config)
    defaults, ours = identity(flatten(Config())), identity(flatten(config))
    always = ("train.epochs", "train.batch_size", "optim.name", "optim.lr", "model.kind", "model.hidden")
    keys = [key for key in ours if key in always or ours[key] != defaults[key]]
    rows = "\n".join(f"| `{key}` | {markdown_code(_value(ours[key]))} |" for key in keys)
    stopped = {"epochs": "Ended", "early": "Stopped early", "max_seconds": "Stopped at its time limit"}
    lines = [f"## Recipe\n\n| key | value |\n|---|---|\n{rows}", "Other keys have hpc-mlp's defaults."]
    if (result := run.result) is not None:
        best = {"loss": f"the lowest validation loss ({_decimals(result.best_val_loss)})",
                "accuracy": f"the highest validation accuracy ({_decimals(result.best_val_accuracy)})",
                "last": "the last"}[config.train.monitor]  # fmt: skip
        lines.append(f"{stopped.get(result.stopped or '', 'Diverged')} after epoch {result.epochs_run}; the "
                     f"weights are those of epoch {result.best_epoch}, {best}.")  # fmt: skip
    versions = ", ".join(
        f"{markdown(name)} {markdown(version)}" for name, version in run.config.versions.items()
    )
    lines.append(f"Trained on {markdown(run.config.device or 'an unknown device')}; {versions}.")
    return "\n\n".join(lines)


def _metrics(run: TrainedRun) -> str:
    test = _test(run)
    if test is None:
        return "## Metrics\n\nNone: the run was not complete when it was exported."
    head = (
        f"## Metrics\n\nOn {test.num_images:,} test images, which had no part in training or in choosing the "
        f"epoch: accuracy {_percent(test.accuracy)} %, cross entropy {_decimals(test.loss)}; mean over classes: "
        f"precision {_percent(test.precision)}, recall {_percent(test.recall)}, "
        f"F1 {_percent(test.f1)} %."
    )
    rows = [
        f"| {markdown(row.name)} | {row.support:,} | "
        + " | ".join(map(_percent, (row.precision, row.recall, row.f1)))
        + " |"
        for row in test.per_class[:_MOST_CLASSES]
    ]
    table = "| class | images | precision | recall | F1 |\n|---|---:|---:|---:|---:|\n" + "\n".join(rows)
    return f"{head}\n\n{table}"


def _limits(run: TrainedRun) -> str:
    limits = [f"The run was {run.state} when it was exported."] if run.state != "done" else []
    limits.append(
        f"It knows these {len(run.classes)} classes only, and names one of them for any image whatever."
    )
    test = _test(run)
    if test and test.num_images:
        worst = sorted((row for row in test.per_class if row.recall < 1 and row.support),
                       key=lambda row: row.recall)[:3]  # fmt: skip
        if worst:
            text = ", ".join(f"{markdown(row.name)} ({_percent(row.recall)} %)" for row in worst)
            limits.append(f"The classes it recognises least often: {text}.")
        low, high = wilson(test.accuracy, test.num_images)
        limits.append(f"{test.num_images:,} test images place the accuracy between {_percent(low)} and "
                      f"{_percent(high)} % (95 %, Wilson's interval).")  # fmt: skip
    if len(run.members) == 1:
        limits.append("The figures are of one seed; another seed gives somewhat different ones.")
    else:
        members = ", ".join(map(markdown, run.members))
        limits.append(f"It averages {len(run.members)} runs ({members}); the metrics above are "
                      f"those of {markdown(run.name)} alone.")  # fmt: skip
    limits += [
        "The metrics hold for images like the test images; those of other cameras, places or crops were not "
        "tried. Measure it on your own: `hpc-mlp evaluate`.",
        "The probabilities are the softmax as trained; they were not calibrated.",
        "Fairness, robustness against tampered images and use in decisions about people were not examined.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share observed in `n` cases."""
    middle = share + z * z / (2 * n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def _test(run: TrainedRun) -> TestMetrics | None:
    return run.result.test if run.result else None


def _decimals(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
