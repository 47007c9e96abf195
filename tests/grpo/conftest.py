"""A whole run that `test_trainer`, `test_lora_run` and `test_faults` look at, each with its own settings."""

from pathlib import Path

import pytest
from builders import TINY_SMOOTHVLA, save_checkpoint
from easy_runs import finish, start_run

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights, as if it had been pushed to the Hub."""
    path = tmp_path_factory.mktemp("warm_start")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA, repo_id="me/warm-start"))
    return path


@pytest.fixture(scope="module")
def uninterrupted(
    warm_start: Path, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Output directory of a run of two iterations with the test module's settings."""
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(start_run(output, f"--policy.path={warm_start}", *settings))
    return output
