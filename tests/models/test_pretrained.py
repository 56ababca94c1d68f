"""`model.pretrained` of ResNet18: a local file, and a clear word where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from hpc_mlp.config.sections import ModelConfig
from hpc_mlp.errors import UserError
from hpc_mlp.models.registry import build_module


def resnet(pretrained: bool | str, size: int = 32) -> dict[str, torch.Tensor]:
    config = ModelConfig(kind="resnet18", pretrained=pretrained)
    return build_module(config, (3, size, size), 5, seed=0).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_local_file_where_shapes_fit(tmp_path: Path, suffix: str) -> None:
    theirs = torchvision.models.resnet18().state_dict()
    path = tmp_path / f"weights{suffix}"
    torch.save(theirs, path) if suffix == ".pth" else save_file(theirs, path)
    mine, fresh = resnet(str(path)), resnet(False)
    # The stem is another for small images, the head for five classes.
    for key, tensor in mine.items():
        own = key in ("conv1.weight", "fc.weight", "fc.bias")
        assert torch.equal(tensor, (fresh if own else theirs)[key]), key
    assert torch.equal(resnet(str(path), size=128)["conv1.weight"], theirs["conv1.weight"])


def test_without_a_network_the_message_names_the_file_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # Nobody listens there.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be downloaded .* --set model.pretrained=FILE"):
        resnet(True)


@pytest.mark.parametrize("content, says", [(None, "no file"), (b"x", "not a weights file")])
def test_a_wrong_file(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        resnet(str(path))
