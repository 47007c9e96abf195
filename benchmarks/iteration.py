"""Iterations of `smoothvla grpo` in LIBERO by a policy with random weights, SmolVLA's size by default.

    python benchmarks/iteration.py --inference central --n_workers 16
    python benchmarks/iteration.py --inference worker --n_workers 8

The command of docs/one-gpu.md (LoRA, bfloat16) on task 0 of libero_object, with a checkpoint that is made
first. Random weights solve nothing, and nothing would be learned, so here every episode lasts its whole time
and a digit of the gripper's last position says whether it succeeded. The starts of workers and simulators
count as rollouts of the first iteration.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}  # Before torch is loaded.

import torch
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from policies import make_actor, peak, save_checkpoint

from lerobot_smoothvla.cli.main import main as smoothvla
from lerobot_smoothvla.evaluation.report import markdown

COLUMNS = ("n_chunks", "rollout_s", "update_s")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "450m"), default="450m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--inference", choices=("central", "worker"), default="central")
    parser.add_argument("--n_workers", type=int, default=16)
    parser.add_argument("--n_groups", type=int, default=4)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--episode_length", type=int, default=280, help="control steps")
    parser.add_argument("--microbatch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1, help="iterations")
    return parser.parse_args()


@EnvConfig.register_subclass("coin_libero")
@dataclass
class CoinLiberoConfig(LiberoEnvConfig):
    """LIBERO, with that end of an episode in every process that is sent it."""

    def __setstate__(self, state: dict[str, Any]) -> None:  # noqa: D105
        self.__dict__.update(state)
        toss_a_coin(self.episode_length)


def toss_a_coin(episode_length: int | None) -> None:
    """In this process, once."""
    from lerobot.envs.libero import LiberoEnv

    from lerobot_smoothvla.envs.libero import ChunkedLiberoEnv

    reset_to = ChunkedLiberoEnv.reset_to

    def reset_and_count(env: Any, start: Any, shift: Any = None) -> Any:
        observation = reset_to(env, start, shift)
        env.n_stepped = 0
        return observation

    def step(env: Any, action: Any) -> Any:
        observation, reward, _, truncated, info = LiberoEnv.step(env, action)
        env.n_stepped += 1
        heads = int(1e6 * abs(env.position[0])) % 2 == 0
        return observation, reward, heads and env.n_stepped == episode_length, truncated, info

    changed: Any = ChunkedLiberoEnv
    if not hasattr(changed, "tossed"):
        changed.reset_to, changed.step, changed.tossed = reset_and_count, step, True


def main() -> int:
    """Run the iterations and print what they took."""
    arguments = parse_arguments()
    with TemporaryDirectory() as directory:
        run, checkpoint = Path(directory) / "grpo", Path(directory) / "policy"
        actor = make_actor(arguments.size, Path(directory), n_action_steps=10, load_vlm_weights=False)
        save_checkpoint(checkpoint, actor.policy)
        sys.argv[1:] = [
            "grpo",
            "--env.type=coin_libero",
            "--env.task=libero_object",
            "--env.task_ids=[0]",
            "--env.observation_height=256",
            "--env.observation_width=256",
            f"--env.episode_length={arguments.episode_length}",
            f"--policy.path={checkpoint}",
            f"--policy.device={arguments.device}",
            "--peft.method_type=LORA",
            "--peft.r=16",
            "--algorithm.bf16=true",
            "--algorithm.reward.weight=0.5",
            f"--algorithm.n_groups={arguments.n_groups}",
            f"--algorithm.group_size={arguments.group_size}",
            f"--algorithm.microbatch_size={arguments.microbatch_size}",
            f"--rollout.inference={arguments.inference}",
            f"--n_workers={arguments.n_workers}",
            f"--steps={arguments.steps}",
            f"--output_dir={run}",
        ]
        begin = time.monotonic()
        if code := smoothvla():
            return code
        minutes = (time.monotonic() - begin) / 60
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [[str(line["iteration"]), *(f"{line[name]:.1f}" for name in COLUMNS)] for line in lines]
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU"
    print(f"\n{markdown([['iteration', *COLUMNS], *rows])}")
    print(f"{minutes:.1f} minutes, the learner's peak {peak(arguments.device):.1f} GiB ({gpu})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
