"""The MLPs, as plain torch modules: what the bank stacks, and what its weights are saved as."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.errors import UserError
from hpc_mlp.models.registry import ImageShape, register

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}


class MLP(nn.Sequential):
    """Linear → [BatchNorm1d] → activation → [Dropout] for every hidden width, then Linear.

    Keys of the state dict are those of the plain `nn.Sequential` of the same layers."""

    def forward(self, input: Tensor) -> Tensor:
        """float32 [B, C, H, W] or [B, D] → logits float32 [B, K]"""
        x = input.flatten(1)
        for layer in self:
            x = layer(x)
        return x


@register("mlp")
def mlp(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> MLP:
    width = image_shape[0] * image_shape[1] * image_shape[2]
    layers: list[nn.Module] = []
    for hidden, rate in zip(config.hidden, config.dropout_rates(len(config.hidden)), strict=True):
        layers.append(nn.Linear(width, hidden))
        if config.batchnorm:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(ACTIVATIONS[config.activation]())
        if rate > 0:
            layers.append(nn.Dropout(rate))
        width = hidden
    layers.append(nn.Linear(width, num_classes))
    return MLP(*layers)


class _InvertedBottleneck(nn.Module):
    """x + Dropout(W2 act(W1 norm(x))), W1 wider by `expansion` (arXiv 2306.13575, eq. 2)."""

    def __init__(self, width: int, expansion: int, activation: str, rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.act = ACTIVATIONS[activation]()
        self.down = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] → [B, D]"""
        y: Tensor = self.dropout(self.down(self.act(self.up(self.norm(x)))))
        return x + y


class ResidualMLP(nn.Module):
    """Linear embedding, residual inverted-bottleneck blocks, LayerNorm, Linear head."""

    def __init__(self, config: ModelConfig, num_features: int, num_classes: int) -> None:
        super().__init__()
        if not config.hidden:
            raise UserError(
                "model.hidden is empty: residual_mlp takes its width from the first number."
            )
        width = config.hidden[0]
        rates = config.dropout_rates(config.blocks)
        self.embed = nn.Linear(num_features, width)
        self.blocks = nn.Sequential(
            *(
                _InvertedBottleneck(width, config.expansion, config.activation, rate)
                for rate in rates
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, C, H, W] → logits float32 [B, K]"""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(images.flatten(1)))))
        return logits


@register("residual_mlp")
def residual_mlp(config: ModelConfig, image_shape: ImageShape, num_classes: int) -> ResidualMLP:
    return ResidualMLP(config, image_shape[0] * image_shape[1] * image_shape[2], num_classes)
