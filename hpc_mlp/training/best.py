"""The weights of each member's best epoch: in best.safetensors, or on the way there."""

from __future__ import annotations

from torch import Tensor

from hpc_mlp.models.weights import load_weights
from hpc_mlp.runs.folder import BEST
from hpc_mlp.training.checkpoint import Checkpoint, LeaseCheck, Position, best_epoch, save_tensors
from hpc_mlp.training.members import Member
from hpc_mlp.training.state import best_weights, part


class BestWeights:
    """The file follows the checkpoint: a checkpoint holds all that it needs, so that it never
    depends on a file that is newer, or was not written any more."""

    def __init__(self, check_lease: LeaseCheck) -> None:
        self._check_lease = check_lease
        # Run's name → weights on the CPU, where they are newer than the file.
        self._unsaved: dict[str, dict[str, Tensor]] = {}

    def keep(self, member: Member, tensors: dict[str, Tensor]) -> None:
        """The present weights, among the `tensors` of the member's checkpoint, are its best."""
        found = best_weights(member.spec, tensors)
        copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in found.items()}
        self._unsaved[member.spec.name] = copies

    def of(self, member: Member) -> dict[str, Tensor]:
        """Where the file is older, not those in it."""
        return self._unsaved.get(member.spec.name) or load_weights(member.folder.path / BEST)

    def beside(self, member: Member, position: Position) -> dict[str, Tensor]:
        """The best weights for a checkpoint of `position`, where its own are not these."""
        if not member.best_epoch or _are_present(member, position):
            return {}
        return {f"best/{key}": tensor for key, tensor in self.of(member).items()}

    def recover(self, member: Member, checkpoint: Checkpoint) -> None:
        """Write the file again where a kill came between the checkpoint and it."""
        tensors = checkpoint.tensors
        present = _are_present(member, checkpoint.position)
        best = best_weights(member.spec, tensors) if present else part(tensors, "best/")
        if best and best_epoch(member.folder.path) != member.best_epoch:
            self._write(member, best)

    def save(self, member: Member) -> None:
        """Write the file, where the weights are newer."""
        if (best := self._unsaved.pop(member.spec.name, None)) is not None:
            self._write(member, best)

    def _write(self, member: Member, weights: dict[str, Tensor]) -> None:
        about = {"epoch": member.best_epoch, "name": member.spec.name}
        save_tensors(member.folder.path / BEST, weights, about, self._check_lease)


def _are_present(member: Member, position: Position) -> bool:
    """Whether the weights at `position` are the member's best."""
    epochs, steps = position
    return 0 < member.best_epoch == epochs + (steps > 0)
