"""Meta-World from demonstrations to a fine-tuned policy, by a user's commands in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
LAST = Path("checkpoints") / "last" / "pretrained_model"
ENV = ("--env.type=metaworld", "--env.task=handle-press-v3")


def run(program: str, *arguments: str) -> None:
    """A command that should end well, on one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    done = subprocess.run(
        [BIN / program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every stage has left its result."""
    out = tmp_path_factory.mktemp("metaworld")
    dataset = ("--dataset.repo_id=local/handle", f"--dataset.root={out / 'demos'}")
    short = (*ENV, "--env.episode_length=16")
    run("smoothvla", "demos", *ENV, *dataset, "--episodes_per_task=1", "--noise_share=1", "--n_workers=1")
    run(
        *("lerobot-train", "policy=smoothvla_tiny", *dataset, f"--output_dir={out / 'sft'}", "--steps=3"),
        *("--batch_size=4", "--num_workers=0", "--save_freq=0", "--policy.push_to_hub=false"),
    )
    run(
        *("smoothvla", "grpo", *short, f"--policy.path={out / 'sft' / LAST}", f"--output_dir={out / 'grpo'}"),
        *("--steps=2", "--algorithm.n_groups=1", "--algorithm.group_size=2", "--n_workers=0"),
    )
    run(
        *(
            "smoothvla",
            "eval",
            *short,
            f"--policy.path={out / 'grpo' / LAST}",
            f"--output_dir={out / 'eval'}",
        ),
        *("--eval.n_episodes=2", "--eval.n_workers=0"),
    )
    return out


def test_demonstrations_are_what_a_policy_sees_at_the_environments_rate(output: Path):
    dataset = LeRobotDataset("local/handle", root=output / "demos")
    assert (dataset.fps, dataset.meta.info.robot_type, dataset.num_episodes) == (80, "sawyer", 1)
    assert tuple(dataset.features["observation.image"]["shape"]) == (480, 480, 3)
    for key in ("observation.state", "action"):
        assert dataset.features[key]["names"] == {"motors": ["x", "y", "z", "gripper"]}
    assert dataset[0]["task"] == "Press a handle down"
    assert dataset[0]["observation.image"].mean() > 0.1
    summary = json.loads((output / "demos" / "meta" / "demonstrations.json").read_text())
    assert summary["tasks"] == {"handle-press-v3/0": {"attempts": 1, "kept": 1, "failed_seeds": []}}


def test_grpo_ran_two_iterations(output: Path):
    lines = [json.loads(line) for line in (output / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(line["jerk_rms"] > 0 and line["episode_steps"] <= 16 for line in lines)


def test_the_evaluation_is_of_held_out_seeds_in_metres(output: Path):
    info = json.loads((output / "eval" / "eval_info.json").read_text())["policy"]
    episodes = info["per_episode"]
    assert [(e["suite"], e["init_state"], e["seed"]) for e in episodes] == [
        ("handle-press-v3", 0, 1000),
        ("handle-press-v3", 0, 1001),
    ]
    assert info["unit"] == "m"
