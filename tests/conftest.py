"""Fixtures that several test modules share. Everything is real but small, and nothing asks the Hub."""

import logging
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl

TASKS = ("pick up the red cube", "pick up the blue cube")


def pytest_configure() -> None:
    """Runs before LeRobot is imported: LIBERO and the Hub's client read the environment on import."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_libero(allow_download=False)
    require_gl()
    torch.set_num_threads(1)  # Small networks are slower on several.
    # In the background of a script Ctrl-C is ignored, and would be by what is started here and ended by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Takes back what LeRobot's `init_logging` did: its handler writes to the stderr of that test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return (yield)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a LeRobotDataset (`smoothvla/tiny`) with LIBERO's keys: 2 tasks, 20 frames of each."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("datasets") / "tiny"
    image = {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channel"]}
    dataset = LeRobotDataset.create(
        repo_id="smoothvla/tiny",
        fps=10,
        root=root,
        features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
            "action": {"dtype": "float32", "shape": (7,), "names": None},
        },
        use_videos=False,
    )
    rng = np.random.default_rng(0)
    for task in TASKS:
        for _ in range(20):
            dataset.add_frame(
                {
                    "observation.images.image": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                    "observation.images.image2": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                    "observation.state": rng.standard_normal(8).astype(np.float32),
                    "action": rng.uniform(-1, 1, 7).astype(np.float32),
                    "task": task,
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a random SmolVLM (0.1 M parameters), its processor and a byte tokenizer."""
    from builders import write_smolvlm

    return write_smolvlm(tmp_path_factory.mktemp("backbones") / "smolvlm")


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small policy `name`, a key of `POLICIES` that the test module has a fixture for."""
    from builders import POLICIES

    path = tmp_path_factory.mktemp(name)
    POLICIES[name](path)
    return path


@pytest.fixture
def actor(checkpoint: Path) -> Any:
    """Of that policy, new for every test."""
    from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config

    return load_actor(load_actor_config(checkpoint))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB, which only root may mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
