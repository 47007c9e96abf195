"""Whether the jerk that chunks command tells the measured one, and how much of it the policy chooses.

    python benchmarks/commanded_jerk.py docs/results/sft/checkpoints/last/pretrained_model

Rolls the policy out in LIBERO and takes the chunks of the successes, each from its second on: the
correlation of the logarithms of commanded and measured jerk RMS, and of the commanded one the part of the
variance that is between draws for the same look. The last line is one JSON object.
"""

import argparse
import json
import os
from contextlib import closing
from pathlib import Path

# Before torch and Mesa are loaded, here and in the workers: one thread a process.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

import numpy as np
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from torch import Tensor

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.envs.tasks import selected_tasks
from lerobot_smoothvla.episode import Episode
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.grpo.counterfactual import draw_again
from lerobot_smoothvla.grpo.trainer import sample_starts
from lerobot_smoothvla.rollout.engine import Actor, RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine
from lerobot_smoothvla.smoothness import chunk_jerk_rms


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--suites", default="libero_object,libero_spatial")
    parser.add_argument("--task_ids", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--n_episodes", type=int, default=64)
    parser.add_argument("--n_draws", type=int, default=7)
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def roll_out(arguments: argparse.Namespace, actor: Actor) -> list[Episode]:
    """One episode from each start."""
    env = LiberoEnvConfig(
        task=arguments.suites,
        task_ids=arguments.task_ids,
        observation_height=arguments.pixels,
        observation_width=arguments.pixels,
    )
    starts = sample_starts(
        selected_tasks(env), GRPOConfig(n_groups=arguments.n_episodes), arguments.seed, iteration=0
    )
    requests = [RolloutRequest(start, index, DeployedSampler()) for index, start in enumerate(starts)]
    with closing(make_engine(env, actor, arguments.n_workers)) as engine:
        return engine.run(requests)


def log_jerks(episode: Episode, actor: Actor, n_draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of the chunks: measured (C,), and commanded (1 + K, C) of each and of the draws."""
    commanded = draw_again(episode, actor, DeployedSampler(), n_draws, (seed,)).jerks
    measured = chunk_jerk_rms(episode.positions.double(), episode.dt, episode.executed)
    return measured.log(), commanded.log()


def main() -> None:
    """Measure, and print what was found."""
    arguments = parse_arguments()
    prepare_libero()
    require_gl()
    torch.set_num_threads(1)
    actor = load_actor(load_actor_config(arguments.checkpoint))
    episodes = [episode for episode in roll_out(arguments, actor) if episode.success]
    pairs = [log_jerks(episode, actor, arguments.n_draws, index) for index, episode in enumerate(episodes)]
    measured, commanded = (torch.cat([pair[i] for pair in pairs], -1) for i in (0, 1))
    known = measured.isfinite() & commanded.isfinite().all(0)
    measured, commanded = measured[known], commanded[:, known]
    within = commanded.var(0).mean().item()
    between = commanded.mean(0).var().item() - within / len(commanded)
    print(
        json.dumps(
            {
                "episodes": arguments.n_episodes,
                "successes": len(episodes),
                "chunks": len(measured),
                "correlation": round(float(np.corrcoef(measured, commanded[0])[0, 1]), 3),
                "share_within_a_look": round(within / (within + between), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
