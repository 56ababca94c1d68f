"""A plugin whose model fails in a phase of one's choice."""

from __future__ import annotations

from pathlib import Path

# A linear model that raises in the phase `where`, once it has taken so many steps: its state
# remembers them.
PLUGIN = """
import torch
from torch import nn
from hpc_mlp.models.registry import register

class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        ctx.module.reach("backward")
        return dy, None

class Fragile(nn.Module):
    def __init__(self, features, classes, where, at):
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.where, self.at = where, at
        self.register_buffer("steps", torch.zeros(()))

    def reach(self, place):
        if place == self.where and self.steps >= self.at:
            raise ValueError(f"it breaks in {place}")

    def forward(self, images):
        self.reach("training" if self.training else "evaluation")
        if self.training:
            self.steps += 1
        y = self.linear(images.flatten(1))
        if self.where == "shape":
            y = y[:, :-1]
        return Breaks.apply(y, self) if self.training else y

@register("fragile")
def fragile(config, shape, classes):
    if config.options["where"] == "construction":
        raise KeyError("it breaks in construction")
    where, at = config.options["where"], config.options["at"]
    return Fragile(shape[0] * shape[1] * shape[2], classes, where, at)
"""


def variant(folder: Path, where: str, at: int) -> Path:
    (folder / "fragile.py").write_text(PLUGIN)
    options = f'options = {{ where = "{where}", at = {at} }}'
    (folder / "bad.toml").write_text(
        f'plugins = ["fragile.py"]\n[model]\nkind = "fragile"\n{options}\n'
    )
    return folder / "bad.toml"
