"""Control steps per second of LeRobot's evaluation loop and of our rollout engine, side by side in one run.

    python benchmarks/rollout.py

Both sides: the same tiny policy with random weights, which never succeeds, so all episodes last the full
horizon; the same task, image size, `n_action_steps` and number of processes. Theirs is `eval_policy` over the
async vector environment of `make_env`, as `lerobot-eval` runs it. Resets are counted, building simulators is
not. The sides take turns, and the ratio is the median over the pairs. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

# Before torch and Mesa are loaded, here and in the processes of both sides: one thread a process.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

import torch
import yaml
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import make_env, make_env_pre_post_processors
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies import make_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_policy

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.rollout.engine import Actor, RolloutRequest
from lerobot_smoothvla.rollout.local import make_actor, make_engine

PRESET = Path(__file__).parents[1] / "configs" / "policy" / "smoothvla_tiny.yaml"
SEED = 1000


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--task_id", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=256, help="as the Hub's LIBERO datasets have it")
    parser.add_argument("--n_action_steps", type=int, default=8)
    parser.add_argument("--n_processes", type=int, default=2)
    parser.add_argument("--episode_length", type=int, help="the suite's own where left out")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side")
    return parser.parse_args()


def random_actor(checkpoint: Path, image_size: int, n_action_steps: int) -> Actor:
    """The tiny policy with random weights, its processors saved for the workers."""
    torch.manual_seed(0)
    image = PolicyFeature(FeatureType.VISUAL, (3, image_size, image_size))
    settings = yaml.safe_load(PRESET.read_text()) | {"n_action_steps": n_action_steps, "device": "cpu"}
    settings.pop("type")
    config = SmoothVLAConfig(
        **settings,
        input_features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    )
    for processor in make_pre_post_processors(config):
        processor.save_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    return make_actor(config, SmoothVLAPolicy(config))


def steps_per_second(run: Callable[[], int]) -> float:
    """Control steps that `run` returns, over the time it takes."""
    begin = time.perf_counter()
    n_steps = run()
    return n_steps / (time.perf_counter() - begin)


def stock_side(
    env_config: LiberoEnvConfig, actor: Actor, arguments: argparse.Namespace
) -> tuple[Callable[[], int], Callable[[], None]]:
    """LeRobot's loop, warm: one batch of episodes, and what ends its processes."""
    envs = make_env(env_config, n_envs=arguments.n_processes, use_async_envs=True)
    env = envs[arguments.suite][arguments.task_id]
    env_preprocessor, env_postprocessor = make_env_pre_post_processors(env_config, actor.policy.config)
    env.reset(seed=[SEED] * arguments.n_processes)

    def run() -> int:
        outcome = eval_policy(
            env,
            actor.policy,
            env_preprocessor,
            env_postprocessor,
            actor.preprocessor,
            actor.postprocessor,
            n_episodes=arguments.n_processes,
            start_seed=SEED,
        )
        assert outcome["aggregated"]["pc_success"] == 0, "an episode was shorter than the horizon"
        return arguments.n_processes * env.call("_max_episode_steps")[0]

    return run, env.close


def our_side(
    env_config: LiberoEnvConfig, actor: Actor, arguments: argparse.Namespace
) -> tuple[Callable[[], int], Callable[[], None]]:
    """Our engine, warm: one episode a process, and what ends the processes."""
    engine = make_engine(env_config, actor, arguments.n_processes)

    def run() -> int:
        requests = [
            RolloutRequest(Start(arguments.suite, arguments.task_id, k, SEED + k), k, DeployedSampler())
            for k in range(arguments.n_processes)
        ]
        return sum(episode.n_steps for episode in engine.run(requests))

    run()
    return run, engine.close


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    prepare_libero()
    require_gl()
    env_config = LiberoEnvConfig(
        task=arguments.suite,
        task_ids=[arguments.task_id],
        observation_height=arguments.image_size,
        observation_width=arguments.image_size,
        episode_length=arguments.episode_length,
    )
    with TemporaryDirectory() as directory:
        actor = random_actor(Path(directory), arguments.image_size, arguments.n_action_steps)
        stock, close_stock = stock_side(env_config, actor, arguments)
        ours, close_ours = our_side(env_config, actor, arguments)
        pairs = []
        for index in range(arguments.pairs):
            pairs.append((steps_per_second(stock), steps_per_second(ours)))
            print(f"pair {index + 1}: stock {pairs[-1][0]:.2f}, ours {pairs[-1][1]:.2f} steps/s", flush=True)
        close_stock()
        close_ours()
    print(
        json.dumps(
            {
                "stock_steps_per_s": round(statistics.median(pair[0] for pair in pairs), 2),
                "ours_steps_per_s": round(statistics.median(pair[1] for pair in pairs), 2),
                "ratio": round(statistics.median(pair[1] / pair[0] for pair in pairs), 2),
                **vars(arguments),
            }
        )
    )


if __name__ == "__main__":
    main()
