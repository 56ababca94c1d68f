"""Which GPUs a shell may use, whatever they are called, and one job on each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.process import Cli

from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.errors import RunError, UserError
from hpc_mlp.launch.slots import check_tasks, make_slots, release
from hpc_mlp.launch.work_queue import Queue, QueuedCommand
from hpc_mlp.machine import gpus
from hpc_mlp.machine.memory import num_cpus


def test_slots_follow_the_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = LaunchConfig()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert [slot.devices for slot in make_slots(launch, None, False)] == [("2",), ("5",), ("7",)]
    assert [slot.devices for slot in make_slots(launch, 2, False)] == [("2",), ("5",)]
    pairs = make_slots(LaunchConfig(gpus_per_job=2), None, False)
    assert [slot.devices for slot in pairs] == [("2", "5")]
    on_cpu = make_slots(launch, 2, True)
    assert [slot.devices for slot in on_cpu] == [(), ()] and on_cpu[0].threads == max(
        1, num_cpus() // 2
    )
    with pytest.raises(RunError, match="shows 3 GPUs"):
        make_slots(LaunchConfig(gpus_per_job=4), None, False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_nvidia_smi(tmp_path, monkeypatch, "GPU 0: H200 (UUID: GPU-x)", "GPU 1: H200 (UUID: GPU-y)")
    assert [slot.devices for slot in make_slots(launch, None, False)] == [("GPU-x",), ("GPU-y",)]


def test_without_a_choice_of_the_shell_devices_are_named_by_uuid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nvidia-smi's index 0 is the first on the PCI bus, CUDA's the fastest: on a mixed node another
    GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_nvidia_smi(
        tmp_path, monkeypatch, "GPU 0: T4 (UUID: GPU-slow)", "GPU 1: H200 (UUID: GPU-fast)"
    )
    written = tmp_path / "devices"
    for slot in make_slots(LaunchConfig(), None, False):
        command = ["sh", "-c", f"echo $CUDA_VISIBLE_DEVICES >> {written}"]
        Queue([slot], tmp_path / "locks").run([QueuedCommand(command, tmp_path / "log")])
        assert slot.locks == (f"gpu-{slot.devices[0]}",)
    assert written.read_text().split() == ["GPU-slow", "GPU-fast"]


def test_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path, cli: Cli
) -> None:
    """NCCL would end in "duplicate GPU detected" after a minute."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_nvidia_smi(tmp_path, monkeypatch, "GPU 0: H200 (UUID: GPU-x)", "GPU 1: H200 (UUID: GPU-y)")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused = cli("train", digits, "--runs", tmp_path / "runs", "--processes", 3)
    assert refused.exit_code == 2
    assert "shows 2 GPUs" in refused.stderr and "--processes 2, or add --cpu" in refused.stderr
    submitted = ("submit", digits, "--runs", tmp_path / "runs", "--cluster", "local", "--set")
    for gpus_of_job in (0, 1):
        refused = cli(*submitted, "launch.tasks_per_node=2", "--gpus-per-job", gpus_of_job)
        assert refused.exit_code == 2 and "a job has 1 GPU," in refused.stderr
    with pytest.raises(UserError, match="a job has 2 GPUs"):
        check_tasks(LaunchConfig(gpus_per_job=2, tasks_per_node=4))
    assert not (tmp_path / "runs").exists()


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    (folder / "nvidia-smi").write_text(
        "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines)
    )
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        # As CUDA reads it.
        ("1,-1,0", ["1"]),
        ("1,1", ["1"]),
        (" 0 , 3", ["0", "3"]),
        ("GPU-aaaa-1,MIG-bbbb-2", ["GPU-aaaa-1", "MIG-bbbb-2"]),
    ],
)
def test_what_the_shell_was_given_is_respected(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible() == devices
    slots = make_slots(LaunchConfig(), None, False)
    assert [list(slot.devices) for slot in slots] == ([[name] for name in devices] or [[]])


def test_a_gpu_cut_into_mig_devices_has_a_slot_for_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fake_nvidia_smi(
        tmp_path,
        monkeypatch,
        "GPU 0: A100-SXM4-40GB (UUID: GPU-a)",
        "  MIG 3g.20gb     Device  0: (UUID: MIG-1)",
        "  MIG 3g.20gb     Device  1: (UUID: MIG-2)",
        "GPU 1: A100-SXM4-40GB (UUID: GPU-b)",
    )
    assert gpus.visible() == ["MIG-1", "MIG-2", "GPU-b"]
    with pytest.raises(UserError, match="MIG"):
        make_slots(LaunchConfig(gpus_per_job=2), None, False)


def test_a_gpu_is_taken_once_whatever_it_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By number, by UUID, by a shortened UUID, or as one of a pair."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    fake_nvidia_smi(
        tmp_path, monkeypatch, "GPU 0: H200 (UUID: GPU-aa11)", "GPU 1: H200 (UUID: GPU-bb22)"
    )
    taken = make_slots(LaunchConfig(), None, False)[0].take(tmp_path)
    assert taken is not None
    for visible, number in (("1", 1), ("GPU-bb22", 1), ("GPU-bb", 1), ("0,1", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        slot = make_slots(LaunchConfig(gpus_per_job=number), None, False)[0]
        assert slot.take(tmp_path) is None, visible
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert make_slots(LaunchConfig(), None, False)[0].take(tmp_path) is not None
    release(taken)
