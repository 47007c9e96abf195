"""What rollout workers hold in memory, and what they share with one another.

    python benchmarks/memory.py

Each worker rolls out one short episode in every task.
PSS counts what processes share in equal parts; private is what ending a worker would free.
"""

import argparse
import json
import os
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

# Before torch and Mesa are loaded: one thread a process.
os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}

import psutil
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from rollout import SEED, random_actor

from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.machine import parent_of
from lerobot_smoothvla.rollout.engine import RolloutRequest
from lerobot_smoothvla.rollout.local import ProcessEngine, make_engine

HORIZON = 8


def memory(pid: int) -> dict[str, int]:
    """Of a process, MiB."""
    info = psutil.Process(pid).memory_full_info()
    sizes = {"rss": info.rss, "pss": info.pss, "private": info.uss}
    return {name: size // 2**20 for name, size in sizes.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--task_ids", nargs="+", type=int, default=[0])
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--apart", action="store_true", help="workers build simulators of their own")
    arguments = parser.parse_args()
    prepare_libero()
    require_gl()
    env_config = LiberoEnvConfig(
        task=arguments.suite,
        task_ids=arguments.task_ids,
        observation_height=64,
        observation_width=64,
        episode_length=HORIZON,
    )
    requests = [
        RolloutRequest(Start(arguments.suite, task_id, worker, SEED), worker, DeployedSampler())
        for task_id in arguments.task_ids
        for worker in range(arguments.n_workers)
    ]
    with TemporaryDirectory() as directory:
        actor = random_actor(Path(directory), 64, HORIZON)
        make = ProcessEngine if arguments.apart else make_engine
        with closing(make(env_config, actor, arguments.n_workers)) as engine:
            engine.run(requests)
            pids = [worker._process.pid or 0 for worker in engine._workers]
            found = [memory(pid) for pid in pids]
            server = memory(parent_of(pids[0]))
    for row in found:
        print(row)
    print(f"The server that they were forked from: {server}")
    print(json.dumps(vars(arguments) | {"workers": found, "server": server}))


if __name__ == "__main__":
    main()
