"""A whole GRPO run on an adapter, on real LIBERO by the real command: kill, resume, stock LeRobot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from builders import TINY_SMOOTHVLA, save_checkpoint
from easy_runs import ENV, RUN, finish, kill_after, log_of, same, start_run
from safetensors.torch import load_file

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig

LORA = (
    *RUN,
    "--peft.method_type=LORA",
    "--peft.r=4",
    "--algorithm.lr=1e-3",
    "--wandb.disable_artifact=false",
)
STATE = ("pretrained_model/adapter_model.safetensors", "training_state/optimizer_state.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights."""
    path = tmp_path_factory.mktemp("base")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return path


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output directory of a run of two iterations."""
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(start_run(output, f"--policy.path={base}", *LORA))
    return output


def test_every_iteration_trains_the_adapter(uninterrupted: Path):
    adapters = [
        load_file(uninterrupted / f"checkpoints/00000{iteration}" / STATE[0]) for iteration in range(3)
    ]
    assert all("lora_" in key for key in adapters[0])
    assert not same(adapters[0], adapters[1]) and not same(adapters[1], adapters[2])
    assert all(line["n_minibatches"] >= 1 for line in log_of(uninterrupted))


def test_the_artifact_of_wandb_is_the_adapter(uninterrupted: Path):
    (run,) = (uninterrupted / "wandb").glob("offline-run-*/*.wandb")
    logged = run.read_bytes()
    assert b"adapter_model.safetensors" in logged and b"adapter_config.json" in logged


def test_killed_and_resumed_it_ends_with_the_same_adapter_on_the_same_base(
    uninterrupted: Path, base: Path, tmp_path: Path
):
    output = tmp_path / "killed"
    kill_after(start_run(output, f"--policy.path={base}", *LORA), output, iterations=1)
    finish(start_run(output, "--resume=true"))
    for name in STATE:
        first, second = (run / "checkpoints/last" / name for run in (uninterrupted, output))
        assert first.read_bytes() == second.read_bytes()
    adapter = json.loads((output / "checkpoints/last/pretrained_model/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base)


def test_stock_lerobot_eval_runs_the_checkpoint(uninterrupted: Path, tmp_path: Path):
    result = subprocess.run(
        [
            str(Path(sys.executable).parent / "lerobot-eval"),
            *(f"--policy.path={uninterrupted / 'checkpoints/last/pretrained_model'}", *ENV),
            *("--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path / 'eval'}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    assert "pc_success" in (tmp_path / "eval/eval_info.json").read_text()
