"""The model card: what a stranger must know of an exported model. Markdown; no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hpc_mlp.config.loading import build_config
from hpc_mlp.config.sections import Config, flatten, identity
from hpc_mlp.errors import printable
from hpc_mlp.runs.calibration import is_fitted
from hpc_mlp.terminal.templates import environment
from hpc_mlp.terminal.text import front_matter, markdown, markdown_code

if TYPE_CHECKING:
    from hpc_mlp.inference.model import TrainedRun

# Classes that are listed one by one; the file itself has them all.
_MOST_CLASSES = 100
# Told whether they are the defaults or not.
_ALWAYS = "train.epochs train.batch_size optim.name optim.lr model.kind model.hidden".split()
# What hubs call them, and what they are.
_METRICS = {
    "accuracy": "accuracy",
    "precision": "precision, mean over the classes",
    "recall": "recall, mean over the classes",
    "f1": "F1, mean over the classes",
}
_ENDED = {"epochs": "Ended", "early": "Stopped early", "max_seconds": "Stopped at its time limit"}


def model_card(run: TrainedRun, file: str, format: str, dtype: str) -> str:
    """Markdown: a YAML head, then use, data, recipe, metrics, limits."""
    config = build_config(run.config.config)
    # Those that its optimizer has.
    plain = Config.model_validate({"optim": {"name": config.optim.name}})
    defaults, ours = identity(flatten(plain)), identity(flatten(config))
    number = run.config.num_parameters
    test = run.result.test if run.result else None
    mistaken = [row for row in test.per_class if row.recall < 1 and row.support] if test else []
    templates = environment("hpc_mlp.inference", markdown, keep_trailing_newline=True)
    templates.filters |= {
        "code": _code,
        "verbatim": lambda text: Markup(printable(text)),
        "decimals": lambda value: "not finite" if value is None else f"{value:.4f}",
    }
    templates.tests["fitted"] = is_fitted
    template = templates.get_template("card.md.j2")
    return front_matter(_head(run, format)) + template.render(
        run=run,
        classes=run.classes,
        config=config,
        dataset=run.config.dataset,
        result=run.result,
        test=test,
        parameters="an unknown number of" if number is None else f"{number:,}",
        file=file,
        format=format,
        dtype=dtype,
        shape=f"{run.image.channels}, {run.image.height}, {run.image.width}",
        recipe={k: v for k, v in ours.items() if k in _ALWAYS or v != defaults[k]},
        ended=_ENDED,
        worst=sorted(mistaken, key=lambda row: row.recall)[:3],
        most=_MOST_CLASSES,
        wilson=wilson,
    )


def _head(run: TrainedRun, format: str) -> dict[str, Any]:
    """What model hubs read. They take a metric only with its value: none, no `model-index`."""
    head: dict[str, Any] = {
        "library_name": "hpc-mlp",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "hpc-mlp", format],
        "metrics": list(_METRICS),
    }
    test = run.result.test if run.result else None
    if test is None or not test.num_images:
        return head
    dataset = run.config.dataset
    result = {
        "task": {"type": "image-classification"},
        "dataset": {
            "type": "hpc-mlp",
            "name": dataset.source or dataset.digest,
            "split": "test",
            "revision": dataset.digest,
        },
        "metrics": [
            {"type": name, "value": getattr(test, name), "name": title}
            for name, title in _METRICS.items()
        ],
    }
    return head | {"model-index": [{"name": run.name, "results": [result]}]}


def _code(value: Any) -> Markup:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Markup(markdown_code(text))


def is_card(text: str) -> bool:
    return text.startswith(("---\n", "# ")) and "trained with hpc-mlp." in text


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share observed in `n` cases."""
    middle = share + z * z / (2 * n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
