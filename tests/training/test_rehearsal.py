"""The GPU path rehearsed without one, on a pretended device (tests/rehearsal/device.py tells
how)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.process import REPOSITORY

HERE = Path(__file__).parents[1]


def rehearse(*arguments: str) -> None:
    """pytest on the pretended device, in a process of its own since its runtime is preloaded."""
    device = HERE / "rehearsal" / "device.py"
    why = subprocess.run(
        [sys.executable, device, "--check"], capture_output=True, text=True, timeout=60
    ).stderr
    if why and os.environ.get("CI") != "true":
        pytest.skip(why.strip())
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, device, "-m", "pytest", "-W", "error:The AccumulateGrad node", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0 and " passed" in done.stdout and " skipped" not in done.stdout, (
        done.stdout + done.stderr
    )


@pytest.mark.slow
def test_what_a_captured_step_asks_of_the_device() -> None:
    rehearse("tests/rehearsal/check_step.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", ["check_training.py", "check_two_devices.py"])
def test_trainings_on_the_emulated_device(check: str) -> None:
    rehearse(f"tests/rehearsal/{check}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gpu_tests_pass_on_the_emulated_device() -> None:
    rehearse("-p", "emulate_all", "-m", "gpu", "tests/training/test_gpu.py")
