"""Episodes per second over rollout workers: local processes, Ray actors, processes around one policy.

    python benchmarks/scaling.py

Every worker rolls out `--episodes` episodes of `--episode_length` control steps with the tiny policy, random
weights (it never succeeds), so that the work grows with the workers. Building workers and simulators is not
counted. Efficiency is the rate per worker over that of one of the same backend; beyond the cores at hand
it has to fall. The last line is one JSON object, with the bytes that an iteration moves.
"""

import argparse
import json
import os
import pickle
import statistics
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

# Before torch and Mesa are loaded, here and in the workers: one thread a process.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from rollout import SEED, random_actor

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio
from lerobot_smoothvla.rollout.configuration import RolloutConfig
from lerobot_smoothvla.rollout.engine import Actor, RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["local", "ray", "central"])
    parser.add_argument("--n_workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--episodes", type=int, default=4, help="of each worker")
    parser.add_argument("--episode_length", type=int, default=80)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def measure(backend: str, n_workers: int, actor: Actor, arguments: argparse.Namespace) -> dict[str, float]:
    """Median episodes/s of some repetitions, seconds that new weights take, and bytes that move."""
    env_config = LiberoEnvConfig(
        task="libero_object",
        task_ids=[0],
        observation_height=arguments.image_size,
        observation_width=arguments.image_size,
        episode_length=arguments.episode_length,
    )
    requests = [
        RolloutRequest(Start("libero_object", 0, k % 40, SEED + k), k, FlowMatchingRatio())
        for k in range(n_workers * arguments.episodes)
    ]
    config = RolloutConfig(inference="central") if backend == "central" else RolloutConfig(backend)
    with closing(make_engine(env_config, actor, n_workers, config)) as engine:
        engine.run(requests[:n_workers])  # Builds the simulators.
        rates, weights = [], []
        for _ in range(arguments.repetitions):
            begin = time.perf_counter()
            engine.load_weights(actor.policy)
            loaded = time.perf_counter()
            episodes = engine.run(requests)
            rates.append(len(requests) / (time.perf_counter() - loaded))
            weights.append(loaded - begin)
    return {
        "episodes_per_s": round(statistics.median(rates), 3),
        "load_weights_s": round(statistics.median(weights), 4),
        "bytes_per_episode": len(pickle.dumps(episodes[0])),
    }


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    prepare_libero()
    require_gl()
    results = []
    with TemporaryDirectory() as directory:
        actor = random_actor(Path(directory), arguments.image_size, n_action_steps=8)
        for backend in arguments.backends:
            one: float | None = None
            for n_workers in arguments.n_workers:
                measured = measure(backend, n_workers, actor, arguments)
                rate = measured["episodes_per_s"] / n_workers
                one = rate if one is None else one
                row = {
                    "backend": backend,
                    "n_workers": n_workers,
                    **measured,
                    "efficiency": round(rate / one, 2),
                }
                print(json.dumps(row), flush=True)
                results.append(row)
    weights = sum(t.numel() * t.element_size() for t in actor.policy.state_dict().values())
    print(
        json.dumps(
            {"results": results, "weights_bytes": weights, "n_cores": os.cpu_count(), **vars(arguments)}
        )
    )


if __name__ == "__main__":
    main()
