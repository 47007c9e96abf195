"""Two GRPO updates of every other type of policy by the real command on real LIBERO, killed and resumed."""

from pathlib import Path

import pytest
from builders import POLICIES
from easy_runs import RUN, finish, kill_after, log_of, same, start_run
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file

# One of each type: `test_adapters` has their variants, `test_trainer` compares with an uninterrupted run.
TYPES = {"smolvla": 0.12, "pi0": 0.12, "pi05": 0.12, "diffusion-ddim": 0.06, "multi_task_dit": 0.12}
"""With the distance, m, that random weights move the gripper by often enough to learn from it."""
SHORT = (*RUN, "--wandb.enable=false", "--algorithm.lr=1e-3")


@pytest.mark.parametrize("name", TYPES)
def test_killed_and_resumed_it_learns_in_both_updates_and_stays_of_its_type(name: str, tmp_path: Path):
    POLICIES[name](tmp_path / "warm_start")
    output = tmp_path / "run"
    how = {"policy_type": name.split("-")[0], "distance": TYPES[name]}
    warm_start = f"--policy.path={tmp_path / 'warm_start'}"
    kill_after(start_run(output, warm_start, *SHORT, **how), output, iterations=1)
    finish(start_run(output, "--resume=true", **how))
    assert [line["n_minibatches"] >= 1 for line in log_of(output)] == [True, True]
    checkpoints = [output / f"checkpoints/00000{iteration}/pretrained_model" for iteration in range(3)]
    weights = [load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints]
    assert not same(weights[0], weights[1]) and not same(weights[1], weights[2])
    assert PreTrainedConfig.from_pretrained(checkpoints[2]).type == how["policy_type"]
